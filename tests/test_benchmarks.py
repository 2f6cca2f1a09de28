"""Scripts of the benchmarks name what there is: nothing else runs most of them."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent / "benchmarks").glob("*.py"))


def taken(script):
    """Yield module and name of all that a script imports from the project."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kedit_"):
            for one in node.names:
                yield node.module, one.name


def there(module, name):
    """Tell whether a module has a name, which may be that of a module in it."""
    if hasattr(import_module(module), name):
        return True
    try:
        import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_imports_is_there(script):
    assert [f"{module}.{name}" for module, name in taken(script) if not there(module, name)] == []
