"""What people install: one package a wheel, typed, at one version, with its plugin and its data."""

from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

import kedit_core
from tests.clean_environment import build

ROOT = Path(__file__).parent.parent
SOURCES = {
    "kedit_core": ROOT,
    **{
        path.parent.name.replace("-", "_"): path.parent
        for room in ("plugins", "contrib")
        for path in (ROOT / room).glob("*/pyproject.toml")
    },
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Return the wheel of every package of this repository."""
    built = build(tmp_path_factory.mktemp("wheels"), *SOURCES.values())
    return {path.name.partition("-")[0]: path for path in built}


def names_in(wheel: Path) -> list[str]:
    with ZipFile(wheel) as file:
        return file.namelist()


def metadata_of(wheel: Path) -> Message:
    (name,) = (one for one in names_in(wheel) if one.endswith(".dist-info/METADATA"))
    with ZipFile(wheel) as file:
        return message_from_bytes(file.read(name))


@pytest.mark.parametrize("package", SOURCES)
def test_a_wheel_holds_one_package_that_says_it_is_typed(wheels, package):
    names = names_in(wheels[package])
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {package}
    assert f"{package}/py.typed" in names


@pytest.mark.parametrize("package", SOURCES)
def test_a_wheel_holds_every_file_of_its_package(wheels, package):
    source = SOURCES[package] / package
    files = {
        path.relative_to(source.parent).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= set(names_in(wheels[package]))


@pytest.mark.parametrize("package", SOURCES)
def test_a_wheel_has_the_version_of_all(wheels, package):
    assert metadata_of(wheels[package])["Version"] == kedit_core.__version__


def test_core_brings_the_command_and_the_template_of_a_method(wheels):
    names = names_in(wheels["kedit_core"])
    with ZipFile(wheels["kedit_core"]) as file:
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "kedit = kedit_core.cli:main" in file.read(entries).decode()
    assert "kedit_core/template/pyproject.toml" in names
