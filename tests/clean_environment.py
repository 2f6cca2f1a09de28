"""An environment with kedit's wheels and what they declare, and nothing else of this repository."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

from attrs import frozen
from packaging.requirements import Requirement


@frozen(kw_only=True)
class CleanEnvironment:
    """A virtual environment.

    Attributes:
        folder: of the environment.
        scratch: current folder of what runs in it, empty at first.
    """

    folder: Path
    scratch: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; ``path`` adds a folder of further distributions."""
        program, *arguments = command
        variables = {
            "HOME": str(self.scratch),
            "KEDIT_CACHE": str(self.scratch / "cache"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(path or ""),
        }
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=self.scratch,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *wheels: Path) -> None:
        """Install wheels as they are: no index, no dependencies."""
        pip("--python", str(self.python), "install", "--no-index", "--no-deps", *map(str, wheels))


def make(folder: Path, wheels: Sequence[Path], *extras: str) -> CleanEnvironment:
    """Return an environment with wheels, and links to the distributions that they declare to need."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    for name in closure([need for wheel in wheels for need in declared_by(wheel)], extras):
        for top in tops(name):
            link = site / top.name
            if not link.exists():
                link.symlink_to(top)
    (folder / "scratch").mkdir()
    environment = CleanEnvironment(folder=folder / "env", scratch=folder / "scratch")
    environment.install(*wheels)
    return environment


def build(folder: Path, *sources: Path) -> list[Path]:
    """Return the wheels of some source folders, built into ``folder``."""
    before = set(folder.glob("*.whl"))
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    pip("wheel", *options, *map(str, sources))
    return sorted(set(folder.glob("*.whl")) - before)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def declared_by(wheel: Path) -> list[str]:
    """Return what a wheel says that it requires."""
    with ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(file.read(metadata)).get_all("Requires-Dist") or []


def closure(declared: Sequence[str], extras: Sequence[str]) -> set[str]:
    """Return the names of all distributions that are needed, directly or in turn."""
    found: set[tuple[str, str]] = set()
    waiting = [(text, extra) for text in declared for extra in ("", *extras)]
    while waiting:
        text, asked = waiting.pop()
        need = Requirement(text)
        if need.name.startswith("kedit") or not wanted(need, asked):
            continue
        for extra in {"", *need.extras} - {extra for name, extra in found if name == need.name}:
            found.add((need.name, extra))
            waiting += [(one, extra) for one in distribution(need.name).requires or ()]
    return {name for name, _ in found}


def wanted(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def tops(name: str) -> Iterator[Path]:
    """Yield the files and folders that a distribution puts into site-packages."""
    found = distribution(name)
    assert found.files is not None, name
    root = Path(str(found.locate_file("")))
    for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
        yield root / top
