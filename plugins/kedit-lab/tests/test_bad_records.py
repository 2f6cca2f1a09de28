"""What the readers say to each broken record; ``python test_bad_records.py`` prints the whole list."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import frozen

from kedit_core import EditRequest, Plugins
from kedit_core.errors import RequestError

DATA = Path(__file__).parent / "data"
REMOVED = object()


@frozen
class Broken:
    """A record of a fixture with one field changed, and what must be said of it."""

    name: str
    schema: str
    file: str
    place: tuple[str | int, ...]
    value: Any
    says: str

    def record(self) -> dict[str, Any]:
        text = (DATA / self.file).read_text(encoding="utf-8")
        record = json.loads(text)[0] if text.startswith("[") else json.loads(text.split("\n")[0])
        *outer, last = self.place
        inner = record
        for step in outer:
            inner = inner[step]
        if self.value is REMOVED:
            del inner[last]
        else:
            inner[last] = self.value
        return record


ROME, FLAT, ZSRE = "counterfact_rome.json", "counterfact_flat.json", "zsre_mend.json"
WIKI, BIO, BIG = "knowedit_wiki_counterfact.json", "knowedit_wikibio.json", "wikibigedit.json"
MQUAKE, RIPPLE = "mquake_remastered.jsonl", "rippleedits.json"
REWRITE = "requested_rewrite"
CASES = [
    Broken(
        "no edit",
        "counterfact",
        ROME,
        (REWRITE,),
        "sails",
        r"field 'requested_rewrite' is no object: 'sails'",
    ),
    Broken(
        "no subject",
        "counterfact",
        ROME,
        (REWRITE, "subject"),
        REMOVED,
        r"field 'requested_rewrite.subject' is missing",
    ),
    Broken(
        "a blank target",
        "counterfact",
        ROME,
        (REWRITE, "target_new", "str"),
        "  ",
        r"field 'requested_rewrite.target_new.str' is empty",
    ),
    Broken(
        "a target that is a text",
        "counterfact",
        ROME,
        (REWRITE, "target_true"),
        "Eastquay",
        r"field 'requested_rewrite.target_true' is no object: 'Eastquay'",
    ),
    Broken(
        "neighbours that are objects",
        "counterfact",
        ROME,
        ("neighborhood_prompts",),
        [{"prompt": "x"}],
        r"field 'neighborhood_prompts' is no list of texts",
    ),
    Broken(
        "two marks",
        "counterfact",
        ROME,
        (REWRITE, "prompt"),
        "{} and {}",
        r"prompt '\{\} and \{\}' marks its subject with \{\} 2 times",
    ),
    Broken(
        "another's subject",
        "counterfact",
        FLAT,
        ("subject",),
        "Upper Beck",
        r"field 'subject' 'Upper Beck' is not in the prompt 'The bridge at Hollin",
    ),
    Broken(
        "a number for a target",
        "counterfact",
        FLAT,
        ("target_new",),
        7,
        r"field 'target_new' is no text: 7",
    ),
    Broken(
        "half a surrogate pair",
        "counterfact",
        FLAT,
        ("target_new",),
        "\ud800",
        r"'\\ud800' holds half a surrogate pair",
    ),
    Broken("no alternative", "zsre", ZSRE, ("alt",), "", r"field 'alt' is empty"),
    Broken(
        "no true answer", "zsre-memit", ZSRE, ("answers",), [], r"field 'answers' holds no answer"
    ),
    Broken(
        "an answer that is an object",
        "zsre",
        ZSRE,
        ("loc_ans",),
        {"a": 1},
        r"field 'loc_ans' holds no answer: \{'a': 1\}",
    ),
    Broken(
        "a group that is an object",
        "knowedit",
        WIKI,
        ("portability", "Reasoning"),
        {"prompt": "x"},
        r"field 'portability.Reasoning' is no list of objects",
    ),
    Broken(
        "a probe that is a text",
        "knowedit",
        WIKI,
        ("locality", "Forgetfulness", 0),
        "x",
        r"field 'locality.Forgetfulness\[0\]' is no object: 'x'",
    ),
    Broken(
        "a truth value as an answer",
        "knowedit",
        WIKI,
        ("locality", "Forgetfulness", 0, "ground_truth"),
        [[True]],
        r"field 'locality.Forgetfulness\[0\].ground_truth' holds no answer: True",
    ),
    Broken(
        "groups without names",
        "knowedit",
        WIKI,
        ("locality",),
        [],
        r"field 'locality' is no object: \[\]",
    ),
    Broken(
        "no concept",
        "knowedit",
        BIO,
        ("concept",),
        REMOVED,
        r"field 'subject' is missing \(or 'concept'\)",
    ),
    Broken(
        "no passage", "knowedit", BIO, ("text",), None, r"field 'prompt' is missing \(or 'text'\)"
    ),
    Broken(
        "no sentence to learn",
        "wise-hallucination",
        "wise_hallucination.json",
        ("target_new",),
        None,
        r"field 'target_new' is missing",
    ),
    Broken(
        "another's passage",
        "wise-temporal",
        "wise_temporal.json",
        ("prompt",),
        "Lake Vell,",
        r"field 'subject' 'Lake Emmel,' is not in the prompt 'Lake Vell,'",
    ),
    Broken(
        "no edits",
        "mquake",
        MQUAKE,
        (REWRITE,),
        [],
        r"field 'requested_rewrite' is missing or empty",
    ),
    Broken(
        "an edit without a target",
        "mquake",
        MQUAKE,
        (REWRITE, 1, "target_new_str"),
        REMOVED,
        r"field 'requested_rewrite\[1\].target_new_str' is missing \(or 'target_new'\)",
    ),
    Broken(
        "a hop without a question",
        "mquake",
        MQUAKE,
        ("new_single_hops", 0),
        {"answer": "x"},
        r"field 'new_single_hops\[0\].question' is missing \(or 'cloze'\)",
    ),
    Broken("no answer", "wikibigedit", BIG, ("ans",), REMOVED, r"field 'ans' is missing"),
    Broken(
        "a question that is a list",
        "wikibigedit",
        BIG,
        ("update",),
        ["Who?"],
        r"field 'update' is no text: \['Who\?'\]",
    ),
    Broken(
        "a sentence without an answer",
        "rippleedits",
        RIPPLE,
        ("edit", "prompt"),
        "Edda lives.",
        r"field 'edit.prompt' does not show where its answer begins: 'Edda lives.'",
    ),
    Broken(
        "a query without a prompt",
        "rippleedits",
        RIPPLE,
        ("Forgetfulness", 0, "test_queries", 0),
        {"answers": []},
        r"field 'Forgetfulness\[0\].test_queries\[0\].prompt' is missing \(or 'phrase'\)",
    ),
    Broken(
        "tests that are texts",
        "rippleedits",
        RIPPLE,
        ("Subject_Aliasing",),
        ["x"],
        r"field 'Subject_Aliasing\[0\]' is no object: 'x'",
    ),
]


def answer(case: Broken, folder: Path) -> tuple[RequestError | EditRequest, Path]:
    """Return what is read in the place of a broken record between two that are whole."""
    text = (DATA / case.file).read_text(encoding="utf-8")
    whole = json.loads(text)[1] if text.startswith("[") else json.loads(text.split("\n")[1])
    path = folder / "records.json"
    path.write_text(json.dumps([whole, case.record(), whole]), encoding="utf-8")
    source = f"{case.schema}:{path}"
    first, found, last = Plugins.installed().call_all("read_requests", source=source)
    assert first == last
    assert isinstance(first, EditRequest)
    return found, path


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.schema}: {case.name}")
def test_a_broken_record_is_an_error_in_its_place_that_names_file_record_and_field(case, tmp_path):
    found, path = answer(case, tmp_path)
    assert isinstance(found, RequestError), found
    assert found.where.startswith(f"{path}, record 2")
    assert re.match(case.says, found.problem), found.problem
    assert "\n" not in str(found)
    assert len(found.problem) < 200


def test_no_two_broken_records_get_the_same_message(tmp_path):
    said = [answer(case, tmp_path)[0].problem for case in CASES]
    assert len(set(said)) == len(said) >= 20


def test_where_a_field_is_missing_those_that_are_there_are_named(tmp_path):
    record = json.loads((DATA / FLAT).read_text())[0]
    record["subjcet"] = record.pop("subject")
    path = tmp_path / "records.json"
    path.write_text(json.dumps([record]))
    (found,) = Plugins.installed().call_all("read_requests", source=f"counterfact:{path}")
    there = "case_id, prompt, target_new, ground_truth, rephrase_prompt, locality_prompt, …"
    assert found.problem == f"field 'subject' is missing; found {there}"


def test_a_record_is_named_by_its_own_id_too(tmp_path):
    found, path = answer(CASES[0], tmp_path)
    assert str(found).startswith(f"{path}, record 2 (case_id 7): field ")


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ("[{GOOD}, {GOOD}", {3: "is cut off: the list ends without a closing bracket"}),
        ("[{GOOD} {GOOD}]", {2: "is cut off"}),
        ("[{GOOD}, nothing, {GOOD}]", {2: r"is not JSON: .* at line 1.*; nothing behind it"}),
        ("{GOOD}\nnothing\n{GOOD}\n", {2: "is not JSON: Expecting value at line 2, column 1"}),
        ('{GOOD}\n{"a": 1, "a": 2}\n{GOOD}', {2: "field 'a' is given twice"}),
        ("[{GOOD}, 7, {GOOD}]", {2: "expected an object, found int"}),
        ("[]", {1: "is an empty list"}),
        ("[" * 100_000, {1: "cannot be read as JSON"}),
    ],
)
def test_a_file_that_breaks_off_or_holds_something_else_says_where(tmp_path, content, places):
    good = json.dumps(json.loads((DATA / FLAT).read_text())[0])
    path = tmp_path / "records.json"
    path.write_text(content.replace("{GOOD}", good))
    found = list(Plugins.installed().call_all("read_requests", source=f"counterfact:{path}"))
    bad = {n: one for n, one in enumerate(found, 1) if isinstance(one, RequestError)}
    assert bad.keys() == places.keys()
    for number, says in places.items():
        assert bad[number].where == f"{path}, record {number}"
        assert re.match(says, bad[number].problem), bad[number].problem


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("zsre:", "name a file behind the colon"),
        ("zsre:absent.json", "there is no such file"),
        ("zsre:owner/name", "no such file; a data set of the hub is written hf://owner/name"),
        ("zsre:.", "Is a directory"),
        ("zsre:a\0b", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_at_once(source, says):
    with pytest.raises(RequestError, match=says):
        Plugins.installed().call_all("read_requests", source=source)


@pytest.mark.parametrize(
    ("content", "says"), [(b" \n", "holds no record"), ("[]".encode("utf-16"), "not UTF-8 text")]
)
def test_a_file_that_holds_nothing_readable_is_refused_at_once(tmp_path, content, says):
    path = tmp_path / "records.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=f"records.json: .*{says}"):
        Plugins.installed().call_all("read_requests", source=f"zsre:{path}")


def places_in(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every field of a record and to every item of its lists."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for step, one in inside:
        yield (*above, step)
        yield from places_in(one, (*above, step))


@pytest.mark.parametrize("schema", sorted({(case.schema, case.file) for case in CASES}))
def test_whatever_stands_in_a_field_gives_requests_or_an_error_and_nothing_else(schema, tmp_path):
    name, file = schema
    whole = Broken("", name, file, ("spare",), 0, "").record()
    strange = (None, 0, 0.5, True, "", " ", "x", [], ["x"], [[]], [{}], {}, {"str": []}, {"x": "y"})
    records = [
        Broken("", name, file, place, value, "").record()
        for place in places_in(whole)
        for value in strange
    ]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    found = list(Plugins.installed().call_all("read_requests", source=f"{name}:{path}"))
    assert len(found) >= len(records)
    assert {type(one) for one in found} == {EditRequest, RequestError}
    assert all("\n" not in str(one) for one in found if isinstance(one, RequestError))


def print_all() -> None:
    """Print every case with what is said to it, as a Markdown table."""
    sys.stdout.write("| schema | broken by | says |\n| --- | --- | --- |\n")
    with TemporaryDirectory() as name:
        for case in CASES:
            said = str(answer(case, Path(name))[0]).replace(f"{name}/", "").replace("|", "\\|")
            sys.stdout.write(f"| {case.schema} | {case.name} | {said} |\n")
    sys.stdout.write(f"\n{len(CASES)} broken records\n")


if __name__ == "__main__":
    print_all()
