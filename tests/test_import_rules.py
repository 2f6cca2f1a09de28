"""Who may import whom, and how large things may grow: docs/explanation/design.md, by reading the source."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "kedit_core" / "template"
GRACE = ROOT / "tests" / "third_party" / "kedit-grace"
LIBRARIES = {"kedit_locate", "kedit_memory"}
HEAVY = {"torch", "transformers", "numpy", "triton", "safetensors", "tokenizers"}
OPTIONAL = {"triton"}
"""Imported when it is there; torch brings it on Linux."""


class Package:
    """One distribution of this repository, read from its folder."""

    def __init__(self, folder: Path, name: str, room: str = "") -> None:
        self.name = name
        self.source = folder / name
        self.project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        self.room = room or ("core" if folder == ROOT else folder.parent.name)

    @property
    def modules(self) -> list[Path]:
        """Return its modules; the template that core carries is a package of its own."""
        carried = TEMPLATE.rglob("*.py") if self.room == "core" else ()
        return sorted(set(self.source.rglob("*.py")) - set(carried))

    @property
    def entry_points(self) -> dict[str, str]:
        return self.project.get("entry-points", {}).get("kedit", {})

    @property
    def dependencies(self) -> dict[str, str]:
        extras = self.project.get("optional-dependencies", {}).values()
        declared = [*chain(*extras), *self.project["dependencies"]]
        found = (re.match(r"([\w.-]+)(.*)", one) for one in declared)
        return {match[1]: match[2].strip() for match in found if match}

    @property
    def may_import(self) -> set[str]:
        """Return the kedit packages that this one may import, its own among them."""
        alone = self.room in ("core", "example") or self.name in LIBRARIES
        libraries = set() if alone else LIBRARIES
        return {self.name, "kedit_core"} | libraries


def packages() -> list[Package]:
    folders = [ROOT, *sorted((ROOT / "plugins").iterdir()), *sorted((ROOT / "contrib").iterdir())]
    folders = [folder for folder in folders if (folder / "pyproject.toml").is_file()]
    names = [
        "kedit_core" if folder == ROOT else folder.name.replace("-", "_") for folder in folders
    ]
    return [Package(folder, name) for folder, name in zip(folders, names, strict=True)]


PACKAGES = packages()
EXAMPLES = [Package(TEMPLATE, "my_package", "example"), Package(GRACE, "kedit_grace", "example")]
"""What strangers start from: held to the rules for code, but no distributions of ours."""
STRANGERS = [one for one in PACKAGES if one.room == "contrib"] + EXAMPLES

each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
each_source = pytest.mark.parametrize(
    "package", [*PACKAGES, *EXAMPLES], ids=lambda package: package.name
)


def offenders(package: Package, look: Callable[[Path], Collection[object]]) -> dict[str, object]:
    """Return what ``look`` finds in each module of a package, where it finds anything."""
    found = {str(path.relative_to(ROOT)): look(path) for path in package.modules}
    return {path: what for path, what in found.items() if what}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Return the dotted names that are imported; ``from a import b`` counts as ``a.b``."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def strings(tree: ast.Module) -> set[str]:
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: not functions, not what only type checkers read."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def top(name: str) -> str:
    return name.partition(".")[0]


# --- who may import whom -------------------------------------------------------------------------


def test_every_folder_of_plugins_and_contrib_is_looked_at():
    found = {package.name for package in PACKAGES}
    assert {"kedit_core", "kedit_locate", "kedit_rome", "kedit_atlas"} <= found
    assert all(package.modules for package in PACKAGES)


@each_source
def test_a_package_imports_only_what_its_room_may(package):
    def look(path):
        ours = {top(name) for name in imported(ast.walk(tree_of(path)))}
        return {name for name in ours if name.startswith("kedit_")} - package.may_import

    assert offenders(package, look) == {}


@each_source
def test_a_package_names_no_module_in_a_string_that_it_may_not_import(package):
    pattern = re.compile(r"(kedit_\w+)(?:\.\w+)*(?::\w+)?")

    def look(path):
        named = {match[1] for text in strings(tree_of(path)) if (match := pattern.fullmatch(text))}
        return named - package.may_import

    assert offenders(package, look) == {}


def test_core_knows_no_other_package_not_even_in_a_string_or_a_comment():
    others = re.compile(r"(?<!\w)kedit[_-](?!core\b)[a-z]\w*")
    core = next(package for package in PACKAGES if package.room == "core")
    assert offenders(core, lambda path: others.findall(path.read_text(encoding="utf-8"))) == {}


@each_source
def test_what_begins_with_an_underscore_stays_in_its_package(package):
    def look(path):
        foreign = {
            name
            for name in imported(ast.walk(tree_of(path)))
            if top(name).startswith("kedit_") and top(name) != package.name
        }
        return {name for name in foreign if any(part.startswith("_") for part in name.split("."))}

    assert offenders(package, look) == {}


@pytest.mark.parametrize("package", STRANGERS, ids=lambda package: package.name)
def test_a_stranger_reaches_into_no_object_of_ours(package):
    def look(path):
        return {
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute)
            and re.match(r"_(?!_)", node.attr)
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        }

    assert offenders(package, look) == {}


@each_source
def test_every_import_is_declared_by_the_package_that_makes_it(package):
    declared = {name.replace("-", "_") for name in package.dependencies}
    known = {*sys.stdlib_module_names, package.name, *OPTIONAL, *declared}
    assert (
        offenders(package, lambda path: set(map(top, imported(ast.walk(tree_of(path))))) - known)
        == {}
    )


# --- what loads early stays light ------------------------------------------------------------------


def light_modules() -> list[Path]:
    """Return the modules that are imported before any model is touched."""
    found = []
    for package in [*PACKAGES, *EXAMPLES]:
        for target in package.entry_points.values():
            folder = package.source.parent.joinpath(*target.split("."))
            found.append(folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py"))
        found += [path for path in package.modules if path.name == "config.py"]
    return [*found, ROOT / "kedit_core" / "__init__.py"]


@pytest.mark.parametrize("path", light_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_entry_points_and_configurations_import_nothing_heavy(path):
    early = {top(name) for name in imported(run_at_import(tree_of(path)))}
    assert early & HEAVY == set()


def test_nor_does_anything_that_they_import_in_turn():
    names = [
        ".".join(path.relative_to(package.source.parent).with_suffix("").parts)
        for package in PACKAGES
        for path in light_modules()
        if path in package.modules
    ]
    names = [name.removesuffix(".__init__") for name in names]
    code = (
        f"import sys\nfrom importlib import import_module\nfor name in {names!r}:\n"
        f"    import_module(name)\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


# --- how large things may grow ---------------------------------------------------------------------


@each_source
def test_a_module_is_at_most_300_lines(package):
    def look(path):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        return [lines] if lines > 300 else []

    assert offenders(package, look) == {}


@each_source
def test_a_function_fits_a_screen_of_50_lines(package):
    def look(path):
        return {
            node.name: node.end_lineno - node.lineno + 1
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno - node.lineno + 1 > 50
        }

    assert offenders(package, look) == {}


@each_source
def test_a_module_is_called_after_what_it_holds(package):
    vague = {"utils", "util", "helpers", "common", "base", "manager"}
    assert offenders(package, lambda path: {path.stem.strip("_")} & vague) == {}


# --- versions --------------------------------------------------------------------------------------


def test_all_versions_are_in_lockstep():
    import kedit_core

    assert {package.project["version"] for package in PACKAGES} == {kedit_core.__version__}


@each_source
def test_a_package_requires_its_siblings_from_this_version_to_the_next(package):
    major, minor = package.project["version"].split(".")[:2]
    wanted = f">={major}.{minor},<{major}.{int(minor) + 1}"
    siblings = {
        name: bounds for name, bounds in package.dependencies.items() if name.startswith("kedit-")
    }
    assert ("kedit-core" in siblings) == (package.room != "core")
    assert set(siblings.values()) <= {wanted}


@each_source
def test_a_package_is_typed_and_says_so(package):
    assert (package.source / "py.typed").is_file()


@each_package
def test_a_package_carries_the_name_of_its_folder_and_its_plugin_is_its_own_module(package):
    assert package.project["name"].replace("-", "_") == package.name
    assert {top(target) for target in package.entry_points.values()} <= {package.name}


def test_the_development_requirements_install_every_package():
    text = (ROOT / "requirements-dev.txt").read_text()
    installed = set(re.findall(r"^-e (\S+)$", text, flags=re.MULTILINE))
    folders = {str(package.source.parent.relative_to(ROOT)) for package in PACKAGES}
    assert installed == folders
