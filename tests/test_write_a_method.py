"""docs/write-a-method.md says what is there."""

import ast
import re
from pathlib import Path

import pytest

import kedit_core.testing

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "write-a-method.md").read_text(encoding="utf-8")
GRACE = ROOT / "tests" / "third_party" / "kedit-grace"
TEMPLATE = ROOT / "kedit_core" / "template"


def written(code: str) -> str:
    """Return the lines of a piece of code, however deep it stands."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def test_the_code_on_the_page_is_the_code_of_the_example():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    sources = [written(path.read_text(encoding="utf-8")) for path in GRACE.rglob("*.py")]
    shown = [block for block in blocks if "TestAnchor" not in block]
    assert len(shown) >= 2
    for block in shown:
        assert any(written(block) in source for source in sources), block


def documented() -> set[str]:
    """Return the full names of everything on the page of public names."""
    text = (ROOT / "docs" / "reference" / "public-names.md").read_text(encoding="utf-8")
    found = set()
    for section in text.split("\n## ")[1:]:
        module = section.partition("\n")[0]
        found |= {f"{module}.{name}" for name in re.findall(r"^\| `(\w+)", section, re.MULTILINE)}
    return found


@pytest.mark.parametrize("folder", [GRACE, TEMPLATE], ids=["example", "template"])
def test_what_strangers_start_from_imports_documented_names_alone(folder):
    used = {
        f"{node.module}.{alias.name}"
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kedit_core")
        for alias in node.names
    }
    testing = {f"kedit_core.testing.{name}" for name in kedit_core.testing.__all__}
    assert used
    assert used - testing <= documented()


def test_the_links_of_the_page_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", PAGE) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
