"""The template of a method, and copies of it under a name of one's own."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from attrs import frozen

from kedit_core.errors import KeditError

_PREFIX = "kedit"
_LONGEST = 40


@frozen(kw_only=True)
class MethodNames:
    """What a new method is called in each place.

    Attributes:
        method: after ``--method``, and the name of the entry point.
    """

    method: str

    @property
    def distribution(self) -> str:
        """Return the name that people install."""
        return f"{_PREFIX}-{self.method}"

    @property
    def package(self) -> str:
        """Return the name of the importable package."""
        return f"{_PREFIX}_{self.identifier}"

    @property
    def identifier(self) -> str:
        """Return the name as code writes it; the recipe's module has an underscore before it."""
        return self.method.replace("-", "_")

    @property
    def words(self) -> str:
        """Return the beginning of class names."""
        return "".join(word.capitalize() for word in self.method.split("-"))

    def fill(self, text: str) -> str:
        """Return a text or path of the template with these names in the place of its own."""
        names = {
            "my_package": self.package,
            "my-method": self.method,
            "my_method": self.identifier,
            "MyMethod": self.words,
        }
        # In one pass: a new name may hold one of the template's.
        return re.sub("|".join(names), lambda found: names[found[0]], text)


def names_for(method: str) -> MethodNames:
    """Return the names of a new method.

    Raises:
        KeditError: a package or an entry point cannot have this name.
    """
    if method.startswith((f"{_PREFIX}-", f"{_PREFIX}_")):
        raise KeditError(
            f"leave out {method[:6]!r}: the package of {method[6:]!r} gets it by itself"
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", method):
        raise KeditError(
            f"{method[:_LONGEST]!r} can be no method's name: lower-case letters and digits, words "
            "joined by '-'"
        )
    if len(method) > _LONGEST:
        raise KeditError(f"{method[:20]}… is {len(method)} letters long; {_LONGEST} are enough")
    names = MethodNames(method=method)
    if find_spec(names.package) is not None:
        raise KeditError(
            f"a package {names.distribution} is installed already; choose another name"
        )
    return names


def write_template(names: MethodNames, folder: Path) -> tuple[Path, ...]:
    """Copy the template into ``folder`` under new names, whole or not at all, and return its files.

    Args:
        names: of the method.
        folder: must not exist.

    Raises:
        KeditError: it exists, or cannot be written.
    """
    try:
        if folder.exists():
            raise KeditError(f"{folder} exists already; choose another --out, or another name")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kedit-", dir=folder.parent) as room:
            made = Path(room) / folder.name
            for path, text in _template():
                target = made / names.fill(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(names.fill(text), encoding="utf-8")
            shutil.move(made, folder)
    except OSError as error:
        raise KeditError(f"{folder} cannot be written ({error.strerror})") from None
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _template() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file of the template."""
    with as_file(files("kedit_core") / "template") as root:
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
