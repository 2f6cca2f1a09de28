"""The reference says all there is: every hook, every argument, every error and every check."""

import inspect
import re
from pathlib import Path

import pytest

from kedit_core import errors, hookspecs
from kedit_core.testing import checks

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
HOOKS = [name for name, hook in vars(hookspecs).items() if hasattr(hook, "kedit_spec")]
ERRORS = [
    name
    for name, error in vars(errors).items()
    if inspect.isclass(error) and issubclass(error, errors.KeditError)
]


def section(page, title):
    """Return what a page says under one heading."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title}"
    return found[1]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_signature_and_all_of_its_arguments(hook):
    said = section("hooks.md", hook)
    arguments = inspect.signature(getattr(hookspecs, hook)).parameters
    assert f"{hook}({', '.join(arguments)})" in said
    documented = re.findall(r"^- (\w+): \S", said, flags=re.MULTILINE)
    assert documented == list(arguments)
    assert "**Contract**" in said


@pytest.mark.parametrize("hook", HOOKS)
def test_every_argument_of_a_hook_has_a_type(hook):
    signature = inspect.signature(getattr(hookspecs, hook))
    untyped = [n for n, one in signature.parameters.items() if one.annotation is one.empty]
    assert untyped == []
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_implemented_by_a_plugin_of_some_test(hook):
    folders = (ROOT / "tests", *(ROOT / "plugins").glob("*/tests"))
    pattern = re.compile(rf"@hookimpl[^\n]*\n\s*def {hook}\(")
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in files)


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_documented_with_its_fields_and_an_example(error):
    said = section("errors.md", error)
    assert re.search(r"^> \S", said, flags=re.MULTILINE)
    if error != "KeditError":
        fields = inspect.signature(getattr(errors, error)).parameters
        assert [name for name in fields if f"`{name}`" not in said] == []


def test_every_check_is_on_the_page_of_the_contract_with_its_sentence():
    page = (REFERENCE / "contract.md").read_text(encoding="utf-8")
    for check in checks():
        assert f"`{check.name}`" in page
        assert check.sentence.replace("``", "`") in page


def test_the_index_links_every_page():
    index = (REFERENCE.parent / "index.md").read_text(encoding="utf-8")
    pages = {f"{path.parent.name}/{path.name}" for path in REFERENCE.glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", index))
