"""docs/write-a-method.md says what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "write-a-method.md").read_text(encoding="utf-8")
GRACE = ROOT / "tests" / "third_party" / "kedit-grace"


def test_the_code_on_the_page_is_the_code_of_the_example():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    sources = [path.read_text(encoding="utf-8") for path in GRACE.rglob("*.py")]
    shown = [block for block in blocks if "TestAnchor" not in block]
    assert len(shown) >= 2
    for block in shown:
        assert any(block in source for source in sources), block


def test_the_links_of_the_page_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", PAGE) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
