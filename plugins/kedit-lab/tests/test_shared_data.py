"""The data sets beside the checkout, whole: how many requests they hold, and their first ones."""

from itertools import islice
from pathlib import Path

import pytest

from kedit_core import EditRequest, Plugins
from kedit_core.errors import RequestError

FOLDER = Path(__file__).parents[3].parent / "shared" / "data"
COUNTS = {
    "counterfact_edit.json": ("counterfact", 10_000, 0),
    "counterfact_train.json": ("counterfact", 10_000, 0),
    "counterfact_val.json": ("counterfact", 1_919, 0),
    "zsre_mend_1k.json": ("zsre", 998, 2),
    "wise_hallucination_200.json": ("wise-hallucination", 200, 0),
    "wise_temporal.json": ("wise-temporal", 75, 0),
}
FIRST = {
    "counterfact_edit.json": ("Danielle Darrieux", "English", "French", 1, 1),
    "counterfact_train.json": ("Toko Yasuda", "piano", "guitar", 1, 1),
    "counterfact_val.json": ("BBC One", "Sega", "BBC", 1, 1),
    "zsre_mend_1k.json": ("UniFirst", "unmanned aircraft", "uniform", 1, 1),
    "wise_hallucination_200.json": ("carole gist", "She was also the first contestant", None, 0, 1),
    "wise_temporal.json": ("Tesla, Inc.,", "originally known as Tesla Motors", None, 0, 1),
}
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"the data sets of research are not beside the checkout, in {FOLDER}",
)


def read(name, schema=None):
    source = str(FOLDER / name) if schema is None else f"{schema}:{FOLDER / name}"
    return list(Plugins.installed().call_all("read_requests", source=source))


@pytest.mark.parametrize("name", COUNTS)
def test_a_file_gives_as_many_requests_as_it_holds_records(name):
    schema, good, bad = COUNTS[name]
    found = read(name)
    assert len([one for one in found if isinstance(one, EditRequest)]) == good
    assert len([one for one in found if isinstance(one, RequestError)]) == bad
    named = Plugins.installed().call_all("read_requests", source=f"{schema}:{FOLDER / name}")
    assert found[:5] == list(islice(named, 5))


@pytest.mark.parametrize("name", COUNTS)
def test_its_first_request_is_this_one(name):
    first = next(iter(Plugins.installed().call_all("read_requests", source=str(FOLDER / name))))
    subject, new, true, paraphrases, locality = FIRST[name]
    assert (first.subject, first.target_true) == (subject, true)
    assert first.target_new.startswith(new)
    assert (len(first.paraphrases), len(first.locality)) == (paraphrases, locality)


def test_the_two_records_without_an_alternative_are_named():
    bad = [one for one in read("zsre_mend_1k.json") if isinstance(one, RequestError)]
    assert [(one.where.rpartition(", ")[2], one.problem) for one in bad] == [
        ("record 535", "field 'alt' is empty"),
        ("record 724", "field 'alt' is empty"),
    ]


def test_as_memit_scores_zsre_every_record_is_a_request():
    assert all(isinstance(one, EditRequest) for one in read("zsre_mend_1k.json", "zsre-memit"))


def test_probes_without_an_answer_are_left_out_and_named():
    found = read("wise_hallucination_200.json")
    assert sum("left_out" in one.extra for one in found) == 4
    assert sum(len(one.locality) for one in found) == 196
