"""What kedit works with on this machine, what is wrong with it, and what can be cleared away."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from kedit_core.cache import TensorCache
from kedit_core.errors import JournalError, RunBusyError
from kedit_core.files import check_writable
from kedit_core.journal import Journal, open_journal, reading, undisturbed
from kedit_core.leftovers import QUIET, Leftover, temporary_in, unused_in
from kedit_core.machine import machine, versions
from kedit_core.plugins import Plugins


def _many(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(values)


@frozen(kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        what: a ``plugin``, the ``cache``, a ``leftover``, or a ``run``.
        about: a name or a path.
        problem: what is wrong.
        size: bytes that deleting it gives back.
        fixable: it can be deleted without losing anything.
        fixed: it was.
    """

    what: str
    about: str
    problem: str
    size: int = 0
    fixable: bool = False
    fixed: bool = False


@frozen(kw_only=True)
class Health:
    """What was found.

    Attributes:
        versions: of Python, kedit's packages, torch and transformers.
        devices: what models can be put on, in words.
        plugins: names of those that work.
        cache: its folder.
        cache_files: how many are in it.
        cache_size: bytes of them.
        findings: what is wrong.
        notes: what could not be looked at, and why.
    """

    versions: Mapping[str, str]
    devices: tuple[str, ...] = field(converter=_many)
    plugins: tuple[str, ...] = field(converter=_many)
    cache: Path
    cache_files: int
    cache_size: int
    findings: tuple[Finding, ...] = field(converter=_many)
    notes: tuple[str, ...] = field(converter=_many)

    @property
    def left(self) -> tuple[Finding, ...]:
        """Return what is still wrong."""
        return tuple(one for one in self.findings if not one.fixed)


class Doctor:
    """Looks at one thing after the other.

    Attributes:
        findings: what is wrong, so far.
        notes: what could not be looked at, so far.
    """

    def __init__(self, *, fix: bool = False) -> None:
        """Begin; with ``fix`` what nothing needs is deleted once it is found."""
        self._fix = fix
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self._seen: set[Path] = set()

    def look_at_plugins(self, plugins: Plugins) -> None:
        """Find the plugins that cannot be used."""
        for row in plugins.rows():
            if row.problem:
                about = f"{row.name} ({row.package})" if row.package else row.name
                self.findings.append(Finding(what="plugin", about=about, problem=row.problem))

    def look_at_cache(self, cache: TensorCache) -> tuple[int, int]:
        """Find what is damaged or left over in a cache; return how many files it has, and their bytes."""
        count, size = 0, 0
        try:
            check_writable(cache.folder / "any.safetensors")
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error})"
            self.findings.append(Finding(what="cache", about=str(cache.folder), problem=problem))
        for file in cache.files():
            count, size = count + 1, size + file.size
            if file.problem:
                found = Leftover(path=file.path, size=file.size, why=file.problem, quiet=0.0)
                self._found("cache", found)
        for kind in sorted(cache.folder.iterdir()) if cache.folder.is_dir() else ():
            self._look_for_temporary(kind)
        return count, size

    def look_at_run(self, run: Path) -> None:
        """Find the files of a run that nothing needs, those that are missing, and leftovers beside it."""
        for folder in (run.resolve(), run.resolve().parent):
            self._look_for_temporary(folder)
        try:
            with self._opened(run) as journal:
                for found in unused_in(journal):
                    self._found("run", found)
                for path in _missing(journal):
                    self.findings.append(
                        Finding(
                            what="run", about=str(run / path), problem="is missing; a row names it"
                        )
                    )
        except RunBusyError as error:
            self.notes.append(
                f"{error.run}: process {error.pid} works on it; its files are left alone"
            )
        except JournalError as error:
            self.findings.append(Finding(what="run", about=error.what, problem=error.problem))

    @contextmanager
    def _opened(self, run: Path) -> Iterator[Journal]:
        """Open a journal while nobody else writes; only for reading where nothing is deleted."""
        if self._fix:
            with closing(open_journal(run)) as journal:
                yield journal
        else:
            with undisturbed(run) as journal:
                yield journal

    def _look_for_temporary(self, folder: Path) -> None:
        if folder in self._seen:
            return
        self._seen.add(folder)
        for found in temporary_in(folder, "left over from a process that was killed"):
            if found.quiet < QUIET:
                minutes = int(found.quiet // 60)
                self.notes.append(f"{found.path}: may be in use, written to {minutes} minutes ago")
            else:
                self._found("leftover", found)

    def _found(self, what: str, leftover: Leftover) -> None:
        """Take note of something that nothing needs, and delete it if that is wanted."""
        finding = Finding(
            what=what,
            about=str(leftover.path),
            problem=leftover.why,
            size=leftover.size,
            fixable=True,
        )
        if self._fix:
            try:
                leftover.delete()
                finding = evolve(finding, fixed=True)
            except OSError as error:
                problem = f"{leftover.why}; cannot be deleted ({error.strerror or error})"
                finding = evolve(finding, problem=problem)
        self.findings.append(finding)


def examine(
    runs: Sequence[str | Path] = (),
    *,
    fix: bool = False,
    plugins: Plugins | None = None,
    cache: TensorCache | None = None,
) -> Health:
    """Return what kedit works with here and what is wrong with it.

    Args:
        runs: folders of runs to look at too.
        fix: delete what nothing needs: damaged files of the cache, files of runs that no row names, and what
            killed processes left behind. Never anything of a run on which another process works.
        plugins: by default all installed ones.
        cache: by default the user's.

    Raises:
        JournalError: one of ``runs`` is none.
    """
    for run in runs:
        with reading(run):
            pass
    plugins = plugins if plugins is not None else Plugins.installed()
    cache = cache if cache is not None else TensorCache()
    doctor = Doctor(fix=fix)
    doctor.look_at_plugins(plugins)
    count, size = doctor.look_at_cache(cache)
    for run in runs:
        doctor.look_at_run(Path(run))
    packages = [row.package.partition(" ")[0] for row in plugins.rows() if row.package]
    return Health(
        versions={
            "python": platform.python_version(),
            **versions(["kedit-core", *packages, "torch", "transformers", "safetensors", "triton"]),
        },
        devices=_devices(),
        plugins=[row.name for row in plugins.rows() if not row.problem],
        cache=cache.folder,
        cache_files=count,
        cache_size=size,
        findings=doctor.findings,
        notes=doctor.notes,
    )


def _missing(journal: Journal) -> list[str]:
    """Return the files that rows name and that are not there."""
    query = "SELECT path FROM edits WHERE path != '' UNION SELECT path FROM originals"
    named = [row["path"] for row in journal.rows(query)]
    return [path for path in named if not (journal.folder.path / path).is_file()]


def _devices() -> list[str]:
    here = machine()
    found = [f"cpu: {here['processor']}, cores {here['cores']}, threads {here['threads']}"]
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory / 2**30
        found.append(f"cuda:{number}: {torch.cuda.get_device_name(number)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple graphics")
    return found
