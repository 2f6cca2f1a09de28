"""The report as a file: what it says, that it is sound HTML, and that no run makes it large or unsafe."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import product
from math import inf, nan

import pytest
from attrs import evolve

from kedit_core.judgements import Judgement
from kedit_core.reports import EvalReport, Score
from kedit_core.schedule import Schedule
from kedit_lab.report.page import LARGEST, found, page
from kedit_lab.report.verdict import headline, troubles

EMPTY = {"meta", "line", "path", "wbr"}


class Reader(HTMLParser):
    """Checks that every element ends, and keeps what a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == [], "some element has no end"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.setdefault(self.open[-1] if self.open else "", []).append(data)

    def said(self, tag):
        return [" ".join(one.split()) for one in self.words.get(tag, ())]


def plain(text):
    """Return a sentence with plain blanks."""
    return re.sub(r"\s", " ", text)


def exact(value):
    """Return what makes every score of the edits' own prompts this value."""

    def change(_, one):
        own = one.metric == "reliability.exact"
        return Score(metric=one.metric, value=value, request=one.request) if own else one

    return change


@pytest.mark.parametrize("edits", [1, 2, 13, 200])
def test_a_report_of_any_length_is_sound_and_small(made, edits):
    text = page(made.two_methods(edits, Schedule(evaluate_on="all", interval=max(1, edits // 20))))
    assert len(text.encode()) <= LARGEST
    assert Reader(text).said("h1")


def test_no_text_of_a_run_becomes_markup(made):
    reader = Reader(page(made.hostile()))
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_a_page_names_no_address_and_forbids_all_of_them(made):
    text = page(made.six_methods())
    assert not re.search(r"https?:|src=|href=|url\(|@import", text)
    assert "default-src 'none'" in text


def test_an_absurd_run_still_fits(made):
    asked = made.requests(12, tuple(f"relation {i} {'z' * 3_000}" for i in range(12)))
    schedules = [
        Schedule(interval=T, evaluate_on=on) for T, on in product((1, 2, 4), ("all", "window"))
    ]
    run = made.run(
        *(
            made.cell(f"{i} {'label ' * 500}", 12, schedule, model=model * 900, asked=asked)
            for i in range(14)
            for schedule in schedules
            for model in "ab"
        ),
        plan={f"key {i}": "v" * 10_000 for i in range(1_000)},
        machine={f"part {i}": "m" * 9_000 for i in range(300)},
    )
    text = page(run)
    assert len(text.encode()) <= LARGEST
    assert "more comparison" in text
    assert "more line" in text
    Reader(text)


def test_tables_have_heads_and_charts_have_words(made):
    text = page(made.stopped())
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        assert "<th" in table
    pictures = re.findall(r"<svg[^>]*>", text)
    assert pictures
    assert all('role="img"' in one and 'aria-label="' in one for one in pictures)
    assert "memit 80.0 % at first and 96.7 % after 120 edits" in plain(text)


def test_the_headline_says_what_was_asked(made):
    assert (
        plain(headline(made.two_methods())) == "200 edits of atlas:gpt2, one by one: memit and rome"
    )
    batched = made.run(made.cell("memit", 300, Schedule(batch_size=100)))
    assert plain(headline(batched)) == "300 edits of atlas:gpt2, 100 at a time: memit"
    assert headline(made.run(made.cell("rome", 1, Schedule()))) == "1 edit of atlas:gpt2: rome"


@pytest.mark.parametrize(
    ("edits", "value", "said"),
    [
        (1, 1.0, "The edit holds."),
        (1, 0.0, "The edit does not hold."),
        (20, 1.0, "All 20 edits hold."),
        (20, 0.0, "None of 20 edits holds."),
        (20, 0.25, "25.0 % of 20 edits hold."),
        (20, nan, "The scores of the edits are not finite: no verdict can be given."),
        (20, inf, "The scores of the edits are not finite: no verdict can be given."),
    ],
)
def test_the_verdict_on_one_method(made, edits, value, said):
    run = made.run(made.cell("rome", edits, Schedule(batch_size="all"), change=exact(value)))
    assert plain(found(run)).startswith(said)


def test_the_verdict_names_who_keeps_most_and_does_not_break_ties(made):
    schedule = Schedule(batch_size="all")

    def cells(*values):
        names = ("rome", "memit", "pmet")
        return made.run(
            *(
                made.cell(name, 20, schedule, change=exact(value))
                for name, value in zip(names, values, strict=False)
            )
        )

    assert plain(found(cells(0.5, 0.9))).startswith(
        "memit keeps most, 90.0 % of 20 edits; rome keeps 50.0 %."
    )
    assert plain(found(cells(0.5, 0.9, 0.9))).startswith(
        "memit and pmet keep most, 90.0 % of 20 edits; rome keeps fewest, 50.0 %."
    )
    assert plain(found(cells(0.9, 0.9))).startswith("rome and memit keep 90.0 % of 20 edits alike.")


def test_the_verdict_says_when_streams_ended_at_different_places(made):
    run = made.stopped()
    assert found(run).startswith("Not every stream came as far: rome keeps ")
    ended, unfinished = troubles(run)
    assert ended.startswith("rome was stopped after 140 of 200 edits: perplexity grew by 2.74")
    assert unfinished == "memit is not finished: 120 of 200 edits made."


def test_the_verdict_says_what_is_missing(made):
    assert found(made.run()) == "Nothing has been done yet."
    assert found(made.run(made.cell("rome", 20, reached=0))) == "Nothing has been judged yet."
    one = made.run(made.cell("rome", 100, reached=0), made.cell("memit", 100))
    assert "Of rome there is no such score." in found(one)
    bare = made.two_methods(100, baseline=False)
    assert "unedited" not in found(bare)
    assert troubles(bare)[-1].startswith("The unedited model was not measured")
    assert "rome: perplexity was not finite after 130 edits." in troubles(made.not_finite())


def test_judging_windows_claims_nothing_about_the_end(made):
    run = made.two_methods(100, Schedule(interval=10, evaluate_on="window"))
    assert "when just made" in found(run)
    assert "nothing is known about forgetting" in page(run)


def test_neighbours_are_said_to_be_as_before_where_that_was_measured(made):
    asked = made.requests(4)
    scores = [Score(metric="reliability.exact", value=1.0, request=one.id) for one in asked]
    scores += [Score(metric="locality.unchanged", value=0.975, request=one.id) for one in asked]
    report = EvalReport(method="memit", step=4, scores=tuple(scores))
    cell = made.cell("memit", 4, Schedule(batch_size="all"), asked=asked)
    judged = Judgement(at=4, interval=4, judged=[one.id for one in asked], report=report)
    run = made.run(evolve(cell, judgements=(judged,)))
    assert plain(found(run)) == "All 4 edits hold. Neighbours: 97.5 % as before."


def test_only_what_is_exactly_all_is_called_100_percent(made):
    run = made.run(made.cell("memit", 20, Schedule(batch_size="all"), change=exact(0.99999)))
    assert plain(found(run)).startswith(">99.9 % of 20 edits hold.")


def test_an_order_that_stopped_early_is_told_from_a_mean_of_all(made):
    run = made.run(made.cell("memit", 100, seed=0), made.cell("memit", 100, seed=1, reached=50))
    assert "1 of 2 orders" in page(run)
    assert "memit (seed 1) is not finished: 50 of 100 edits made." in troubles(run)


def test_metrics_of_strangers_get_a_chart_and_a_row_under_their_own_names(made):
    def change(_, one):
        return Score(metric="stranger.score", value=one.value) if one.metric == "drift" else one

    text = page(made.run(made.cell("memit", 20, change=change)))
    assert "<h3>stranger.score</h3>" in text


def test_the_colours_of_words_can_be_read_on_their_paper():
    style = (files("kedit_lab.report") / "templates" / "style.css").read_text()
    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        words = ["ink", "pale", "lost", *(f"s{place}" for place in range(8))]
        for name in words:
            assert contrast(colours[name], colours["paper"]) >= 4.5, name


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2 defines it."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
