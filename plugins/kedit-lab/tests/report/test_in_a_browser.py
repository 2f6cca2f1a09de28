"""The report in a real, headless Chromium: it is whole, quiet, asks nobody, and answers the reader."""

import pytest

from kedit_lab.report.page import page

OVERLAPS = """
const found = [];
for (const svg of document.querySelectorAll('svg')) {
  const box = svg.getBoundingClientRect();
  if (!box.width) continue;
  const texts = [...svg.querySelectorAll('text')].map((one) => [one, one.getBoundingClientRect()]);
  for (const [one, a] of texts) {
    if (a.left < 0 || a.right > document.documentElement.clientWidth + 1) found.push(`cut: ${one.textContent}`);
    for (const [other, b] of texts) {
      if (one === other) break;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 4) found.push(`${other.textContent} on ${one.textContent}`);
    }
  }
}
return found;
"""
READOUT = (
    "const one = document.getElementById('readout'); return one.hidden ? null : one.innerText;"
)
SHOWN = (
    "return [...document.querySelectorAll(arguments[0])]"
    ".filter((one) => one.getClientRects().length).length"
)
HEADINGS = (
    "return [...document.querySelectorAll('.view')].filter((one) => !one.hidden)"
    ".map((one) => one.querySelector('h2').textContent)"
)
PRESSED = "return [...document.querySelectorAll(arguments[0])].map((one) => one.ariaPressed)"


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """Return a function that writes the report of a sample, once."""
    folder = tmp_path_factory.mktemp("reports")

    def write(name):
        path = folder / f"{name.replace(' ', '-')}.html"
        if not path.exists():
            path.write_text(page(made.SAMPLES[name]()), encoding="utf-8")
        return path

    return write


def pytest_generate_tests(metafunc):
    if "sample" in metafunc.fixturenames:
        metafunc.parametrize("sample", NAMES)


NAMES = (
    "one edit", "two methods", "ten thousand edits", "ten thousand at once", "six methods",
    "six methods at once", "no baseline", "not finite", "one not judged", "nothing judged", "no cell",
    "stopped", "four T", "five orders", "taken out again", "stages", "grid", "hostile",
)  # fmt: skip


def test_every_sample_is_looked_at(made):
    assert set(NAMES) == set(made.SAMPLES)


def test_a_report_is_whole_and_quiet_and_fits_the_screen(chromium, written, sample):
    path = written(sample)
    for width, dark in ((1280, False), (360, True)):
        chromium.open(path, width, dark)
        assert chromium.complaints() == []
        assert chromium.requests() == [path.absolute().as_uri()], (
            "a report asks nothing of a network"
        )
        assert chromium.run("return document.title") != "taken"
        assert chromium.run("return document.documentElement.scrollWidth") == width
        assert chromium.run(OVERLAPS) == [], "words of a picture lie on each other"


def test_the_legend_takes_a_method_out_of_every_picture_and_puts_it_back(chromium, written):
    chromium.open(written("two methods"))
    charts, lines = chromium.run(SHOWN, ".chart"), chromium.run(SHOWN, ".line")
    assert lines == 2 * charts > 0
    assert chromium.run(SHOWN, ".matrix") == 2
    chromium.click("[data-toggle='1']")
    assert chromium.run(PRESSED, "[data-toggle]") == ["true", "false"]
    assert chromium.run(SHOWN, ".line") == charts
    assert chromium.run(SHOWN, ".end.s1") == 0
    assert chromium.run(SHOWN, ".matrix") == 1
    chromium.click("[data-toggle='1']")
    assert chromium.run(SHOWN, ".line") == lines
    assert chromium.run(SHOWN, ".matrix") == 2


def test_the_legend_listens_to_the_keyboard(chromium, written):
    chromium.open(written("two methods"))
    chromium.press("[data-toggle='0']", " ")
    assert chromium.run(SHOWN, ".line.s0") == 0


def test_the_mouse_over_a_chart_shows_what_each_visible_line_says_there(chromium, written):
    chromium.open(written("two methods"))
    assert chromium.run(READOUT) is None
    chromium.hover(".chart svg", 0.85, 0.5)
    said = chromium.run(READOUT).split()
    assert said[:3] == ["after", "200", "edits"]
    assert said[3::3] == ["memit", "rome"]
    ends = [f"{value}%" for value in said[4::3]]
    drawn = chromium.run(
        "return [...document.querySelector('.chart').querySelectorAll('.end')].map((one) => one.textContent)"
    )
    assert ends == ["".join(one.split()) for one in drawn[:2]]
    chromium.click("[data-toggle='0']")
    chromium.hover(".chart svg", 0.5, 0.5)
    assert "memit" not in chromium.run(READOUT)
    chromium.hover("h1", 0.5, 0.5)
    assert chromium.run(READOUT) is None


def test_the_arrow_keys_walk_along_a_chart(chromium, written):
    chromium.open(written("two methods"))
    right = "\ue014"
    chromium.press(".chart svg", right)
    assert chromium.run(READOUT).startswith("after 10 edits")
    chromium.press(".chart svg", right)
    assert chromium.run(READOUT).startswith("after 20 edits")


def test_the_read_out_says_the_spread_over_orders_and_what_is_not_finite(chromium, written):
    chromium.open(written("five orders"), 360)
    chromium.hover(".chart svg", 0.85, 0.5)
    assert "(" in chromium.run(READOUT)
    assert " to " in chromium.run(READOUT)
    chromium.open(written("not finite"))
    chromium.hover(".chart:nth-of-type(5) svg", 0.85, 0.5)
    assert "not finite" in chromium.run(READOUT)


def test_the_mouse_over_a_matrix_names_the_edits_and_the_judgement(chromium, written):
    chromium.open(written("two methods"))
    chromium.hover(".matrix svg", 0.2, 0.8)
    said = chromium.run(READOUT)
    assert "% hold" in said
    assert "judged after" in said
    chromium.hover(".matrix svg", 0.9, 0.15)
    assert chromium.run(READOUT) is None


def test_a_choice_of_T_changes_the_whole_comparison(chromium, written):
    chromium.open(written("four T"))
    assert chromium.run(HEADINGS) == ["T = 100"]
    chromium.click("[data-choose='1']")
    assert chromium.run(HEADINGS) == ["T = 10"]
    assert chromium.run(PRESSED, "[data-choose]") == ["false", "true", "false", "false"]


def test_dark_readers_get_a_dark_page(chromium, written):
    paper = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    chromium.open(written("two methods"), dark=False)
    assert min(chromium.run(paper)) > 200
    chromium.open(written("two methods"), dark=True)
    assert max(chromium.run(paper)) < 60


def test_hostile_texts_are_shown_as_they_are(chromium, written, made):
    chromium.open(written("hostile"))
    assert chromium.run("return document.body.innerText").count(made.HOSTILE[:40]) > 5
    assert (
        chromium.run("return document.querySelectorAll('main script, main img, main b b').length")
        == 0
    )
