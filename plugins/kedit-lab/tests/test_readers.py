"""Every data set of the field becomes just these requests."""

import json
from pathlib import Path

import pytest

from kedit_core import EditRequest, Plugins, Probe
from kedit_core.errors import RequestError

DATA = Path(__file__).parent / "data"
FILES = {
    "counterfact_rome.json": "counterfact",
    "counterfact_multi.json": "counterfact",
    "counterfact_flat.json": "counterfact",
    "zsre_mend.json": "zsre",
    "zsre_portability.json": "zsre",
    "knowedit_wiki_counterfact.json": "knowedit",
    "knowedit_wiki_recent.json": "knowedit",
    "knowedit_zsre.json": "knowedit",
    "knowedit_wikibio.json": "knowedit",
    "wise_hallucination.json": "wise-hallucination",
    "wise_temporal.json": "wise-temporal",
    "mquake_remastered.jsonl": "mquake",
    "wikibigedit.json": "wikibigedit",
    "rippleedits.json": "rippleedits",
}


CITIZENSHIP = "the country of citizenship of"


def read(source):
    return list(Plugins.installed().call_all("read_requests", source=str(source)))


def probe(prompt, *answers, group):
    return Probe(prompt=prompt, answers=answers, group=group)


@pytest.fixture
def file(tmp_path):
    def write(*records, name="records.json"):
        path = tmp_path / name
        path.write_text(json.dumps(list(records)), encoding="utf-8")
        return path

    return write


FIRST = {
    "counterfact_rome.json": EditRequest(
        prompt="The ferry from {} sails to",
        subject="Port Amsel",
        target_new="Norhaven",
        target_true="Eastquay",
        paraphrases=(
            "It rained all week. Port Amsel sends its boats to",
            "Boats leaving Port Amsel arrive in",
        ),
        locality=(
            probe("The ferry from Lower Tarn sails to", "Eastquay", group="near"),
            probe("The ferry from Brill Point sails to", "Eastquay", group="near"),
        ),
        extra={
            "case_id": 7,
            "pararel_idx": 4007,
            "relation_id": "P9100",
            "target_new_id": "Q9001",
            "target_true_id": "Q9002",
            "attribute_prompts": ["The ferry from Isle Oder sails to"],
            "generation_prompts": ["Port Amsel is known for", "People travel from Port Amsel by"],
        },
    ),
    "counterfact_multi.json": EditRequest(
        prompt="{} was painted in",
        subject="The Quiet Orchard",
        target_new="Delmare",
        target_true="Sorrel",
        paraphrases=("The Quiet Orchard came into being in",),
        locality=(
            probe("Two Herons was painted in", "Sorrel", group="near"),
            probe("Low Tide was painted in", "Sorrel", group="near"),
        ),
        extra={
            "case_id": 21,
            "pararel_idx": 4021,
            "relation_id": "P9103",
            "target_new_id": "Q9010",
            "target_true_id": "Q9011",
            "attribute_prompts": ["Red Barns was painted in"],
            "generation_prompts": ["The Quiet Orchard shows"],
        },
    ),
    "counterfact_flat.json": EditRequest(
        prompt="The bridge at {} was built by",
        subject="Hollin Ford",
        target_new="masons",
        target_true="sailors",
        paraphrases=("Those who put up the bridge at Hollin Ford were",),
        locality=(probe("The bridge at Upper Beck was built by", "sailors", group="near"),),
        extra={"case_id": 31},
    ),
    "zsre_mend.json": EditRequest(
        prompt="Which river drives {}?",
        subject="Tollan Mill",
        target_new="Lune",
        target_true="Wenning",
        paraphrases=("The river driving Tollan Mill is which?",),
        locality=(
            probe("nq question: how many strings does a hurdy gurdy have", "six", group="nq"),
        ),
        extra={
            "pred": "wenning",
            "alt": "Lune",
            "answers": ["Wenning", "River Wenning"],
            "cond": "Wenning >> Lune || Which river drives Tollan Mill?",
        },
    ),
    "zsre_portability.json": EditRequest(
        prompt="Which river drives {}?",
        subject="Tollan Mill",
        target_new="Lune",
        target_true="Wenning",
        paraphrases=("The river driving Tollan Mill is which?",),
        locality=(
            probe("nq question: how many strings does a hurdy gurdy have", "six", group="nq"),
        ),
        portability=(
            probe(
                "Into which sea does the river driving Tollan Mill flow?",
                "Irish Sea",
                group="one_hop",
            ),
        ),
        extra={
            "pred": "wenning",
            "alt": "Lune",
            "answers": ["Wenning"],
            "cond": "Wenning >> Lune || Which river drives Tollan Mill?",
        },
    ),
    "knowedit_wiki_counterfact.json": EditRequest(
        prompt="The name of the spouse of {} is",
        subject="Mira Tessel",
        target_new="Bo Arden",
        target_true="Kit Lorne",
        portability=(
            probe(
                "The name of the spouse of Countess Tessel is",
                "Bo Arden",
                group="Subject_Aliasing",
            ),
            probe(
                "The occupation of the spouse of Mira Tessel is",
                "potter",
                "ceramist",
                group="Reasoning",
            ),
            probe(
                "The siblings of the spouse of Mira Tessel are",
                "Ana Arden",
                "A. Arden",
                "Leo Arden",
                group="Reasoning",
            ),
        ),
        locality=(
            probe("The gender of Mira Tessel is", "female", group="Relation_Specificity"),
            probe(
                "The name of the spouse of Mira Tessel, which is not Bo Arden, is",
                "Kit Lorne",
                group="Forgetfulness",
            ),
        ),
    ),
    "knowedit_wiki_recent.json": EditRequest(
        prompt="The place of death of {} is",
        subject="Tomas Eilert",
        target_new="Gotha",
        portability=(
            probe(
                "Is Tomas Eilert still alive?",
                "no",
                "incorrect",
                "is dead",
                group="Logical_Generalization",
            ),
            probe(
                "The name of the country of the place of death of Tomas Eilert is",
                "Thuria",
                group="Reasoning",
            ),
        ),
        locality=(
            probe(
                "The name of the father of Tomas Eilert is",
                "Emil Eilert",
                group="Relation_Specificity",
            ),
        ),
    ),
    "knowedit_zsre.json": EditRequest(
        prompt="Which family does {} belong to?",
        subject="Lasiodora fennica",
        target_new="wolf spiders",
        target_true="tarantulas",
        paraphrases=("What family is Lasiodora fennica?",),
        portability=(
            probe(
                "How many eyes do members of the family of Lasiodora fennica have?",
                "eight",
                group="Reasoning",
            ),
        ),
        locality=(probe("Lasiodora fennica taxon rank", "species", group="Relation_Specificity"),),
        extra={
            "cond": "tarantulas >> wolf spiders || Which family does Lasiodora fennica belong to?"
        },
    ),
    "knowedit_wikibio.json": EditRequest(
        prompt="This is a Wikipedia passage about {}. Hanna Oste (born 3 May 1911) was a maker of "
        "maps.",
        subject="hanna oste",
        target_new="She drew the coast of Emmel by hand in four winters.",
        locality=(
            probe(
                "The field of work of hanna oste is", "cartography", group="Relation_Specificity"
            ),
            probe("hanna oste field of work", "cartography", group="Relation_Specificity"),
        ),
    ),
    "wise_hallucination.json": EditRequest(
        prompt="This is a Wikipedia passage about {}. Edda Korn (born 1902) was a glassblower.",
        subject="edda korn",
        target_new="She ran a workshop in Lauscha for thirty years.",
        locality=(
            probe(
                "Opening hours of the market hall are from eight to",
                "noon, on Saturdays until two. Dogs are welc",
                group="unrelated",
            ),
        ),
    ),
    "wise_temporal.json": EditRequest(
        prompt="{}",
        subject="Lake Emmel,",
        target_new="a reservoir in the Onny hills, was drained in 2031 for repairs.",
        locality=(probe("Fold the sheet in half and", "cut along the line.", group="unrelated"),),
        extra={
            "ood_rephrase": "Lake Emmel, long a haven for swans, lay dry for most of the year. "
            "Anglers moved on."
        },
    ),
    "mquake_remastered.jsonl": EditRequest(
        prompt="{} was founded in the city of",
        subject="Aldo Pumps",
        target_new="Merle",
        target_true="Orne",
        paraphrases=("Where was Aldo Pumps founded?",),
        extra={
            "case_id": 1,
            "edit": 1,
            "edits": 2,
            "relation_id": "P740",
            "target_new_id": "Q11",
            "target_true_id": "Q12",
        },
    ),
    "wikibigedit.json": EditRequest(
        prompt="Who is the director of {}?",
        subject="Harl Observatory",
        target_new="Nell Bray",
        paraphrases=("Harl Observatory is led by whom?",),
        locality=(probe("Who is the director of Vell Observatory?", "Kit Lorne", group="loc"),),
        portability=(
            probe(
                "Arr, who be steering Harl Observatory these days?", "Nell Bray", group="personas"
            ),
            probe("Where was the director of Harl Observatory born?", "Stokes", group="multi_hop"),
        ),
        extra={"tag": "update", "relation": "director", "object": "Nell Bray"},
    ),
    "rippleedits.json": EditRequest(
        prompt="The name of the country of citizenship of {} is",
        subject="Edda of Emmel",
        target_new="United Fens",
        target_true="United Moors",
        locality=(
            probe(
                "The name of the mother of Edda of Emmel is",
                "Ursa Korn",
                "U. Korn",
                group="Relation_Specificity",
            ),
            probe(
                "The name of the country of citizenship of Edda of Emmel, which is not United "
                "Fens, is",
                "United Moors",
                "the Moors",
                group="Forgetfulness",
            ),
        ),
        portability=(
            probe(
                "The name of the continent which the country of citizenship of Edda of Emmel is "
                "part of is",
                "Terra",
                group="Logical_Generalization",
            ),
            probe(
                "The name of the country of citizenship of Lady Korn is",
                "United Fens",
                "the Fens",
                group="Subject_Aliasing",
            ),
        ),
        extra={
            "example_type": "popular",
            "subject_id": "Q50",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q52",
            "tests": [
                {
                    "group": "Relation_Specificity",
                    "prompts": ["The name of the mother of Edda of Emmel is"],
                    "test_condition": "OR",
                    "condition_queries": [
                        {
                            "prompt": "The name of the mother of Edda of Emmel is",
                            "answers": ["Ursa Korn", "U. Korn"],
                        }
                    ],
                },
                {
                    "group": "Forgetfulness",
                    "prompts": [
                        "The name of the country of citizenship of Edda of Emmel, which is not United Fens, is"
                    ],
                    "test_condition": "OR",
                    "condition_queries": [],
                },
                {
                    "group": "Logical_Generalization",
                    "prompts": [
                        f"The name of the continent which {CITIZENSHIP} Edda of Emmel is part of is"
                    ],
                    "test_condition": "OR",
                    "condition_queries": [],
                },
                {
                    "group": "Subject_Aliasing",
                    "prompts": ["The name of the country of citizenship of Lady Korn is"],
                    "test_condition": "AND",
                    "condition_queries": [],
                },
            ],
        },
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_first_record_becomes_exactly_this_request(name):
    assert read(f"{FILES[name]}:{DATA / name}")[0] == FIRST[name]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_known_schema_reads_alike_with_and_without_its_name(name):
    found = read(DATA / name)
    assert found == read(f"{FILES[name]}:{DATA / name}")
    assert len(found) >= 3
    assert all(isinstance(request, EditRequest) for request in found)


@pytest.mark.parametrize("name", FILES)
def test_a_list_and_json_lines_of_the_same_records_give_the_same_requests(name, tmp_path):
    text = (DATA / name).read_text(encoding="utf-8")
    listed = json.loads(text) if name.endswith(".json") else map(json.loads, text.splitlines())
    other = tmp_path / "other"
    lines = name.endswith(".json")
    records = [json.dumps(record) for record in listed]
    other.write_text("\n".join(records) if lines else f"[{', '.join(records)}]")
    assert read(f"{FILES[name]}:{other}") == read(DATA / name)


# --- what is particular to one of them -----------------------------------------------------------


def test_zsre_as_memit_scores_it_writes_the_true_answer_and_asks_with_a_question_mark():
    first, *_, last = read(f"zsre-memit:{DATA / 'zsre_mend.json'}")
    assert (first.target_new, first.target_true) == ("Wenning", None)
    question = "nq question: how many strings does a hurdy gurdy have?"
    assert first.locality == (probe(question, "six", group="nq"),)
    assert last.target_new == "Whitby"


def test_blanks_around_an_answer_and_behind_a_prompt_are_no_part_of_it():
    assert read(DATA / "zsre_mend.json")[2].target_new == "Kelso"
    assert read(DATA / "wise_hallucination.json")[1].prompt.endswith("max tiller.")


def test_a_probe_whose_answer_is_blank_is_left_out_and_named():
    last = read(DATA / "wise_hallucination.json")[2]
    assert (last.locality, last.extra["left_out"]) == ((), ["locality_ground_truth"])
    second = read(DATA / "knowedit_wiki_counterfact.json")[1]
    assert [one.answers for one in second.locality] == [("Stokes",)]
    assert second.extra["left_out"] == ["locality.Relation_Specificity[0].ground_truth"]


def test_a_subject_in_other_letters_is_taken_as_the_prompt_writes_it():
    subjects = [request.subject for request in read(DATA / "wikibigedit.json")]
    assert subjects == ["Harl Observatory", "onny line", "Third Fen League"]
    assert read(DATA / "knowedit_wikibio.json")[1].subject == "Per Lund"


def test_a_missing_text_may_be_null_or_nan():
    groups = [{p.group for p in r.portability} for r in read(DATA / "wikibigedit.json")]
    assert groups == [{"personas", "multi_hop"}, {"personas"}, set()]


def test_a_number_as_an_answer_is_read_as_its_text():
    assert read(DATA / "knowedit_wiki_recent.json")[2].locality[0].answers == ("4200",)


def test_the_questions_of_a_record_with_several_edits_stand_with_its_last_one():
    first, second, *_ = read(DATA / "mquake_remastered.jsonl")
    assert (first.extra["edit"], second.extra["edit"], second.extra["edits"]) == (1, 2, 2)
    assert first.portability == ()
    assert [one.group for one in second.portability] == ["multi_hop"] * 2 + ["single_hop"] * 2
    assert second.portability[0].answers == ("Skerry", "Skerry Town")
    assert second.extra["answer"] == "Vell"


def test_the_first_mquake_nests_its_targets(file):
    edit = {"prompt": "{} is in", "subject": "Merle", "question": "Where is Merle?"}
    edit |= {"target_new": {"str": "Fens", "id": "Q1"}, "target_true": {"str": "Moors", "id": "Q2"}}
    record = {"case_id": 4, "requested_rewrite": [edit], "questions": ["Who rules where Merle is?"]}
    (request,) = read(file({**record, "new_answer": "Ada", "new_answer_alias": []}))
    assert (request.target_new, request.target_true) == ("Fens", "Moors")


def test_sentences_of_rippleedits_are_taken_apart():
    found = read(DATA / "rippleedits.json")
    assert [(one.prompt, one.subject, one.target_new, one.target_true) for one in found[1:]] == [
        (
            "The name of the league which FC Harl plays in is",
            "FC Harl",
            "Moor League",
            "Third Fen League",
        ),
        ("The place of death of Tomas Eilert is", "Tomas Eilert", "Gotha", None),
        (
            "The name of the author of What is Fog is Low is",
            "What is Fog is Low",
            "Ida Marsh",
            None,
        ),
    ]


@pytest.mark.parametrize(
    ("sentence", "relation", "prompt", "subject"),
    [
        ("The gender of Ada of Vell is male.", "SEX_OR_GENDER", "… is", "Ada of Vell"),
        ("The date of birth of Ada is 1 May 2001.", "DATE_OF_BIRTH", "… is", "Ada"),
        ("The names of the siblings of Ada are Bo and Cy.", "SIBLING", "… are", "Ada"),
        ("The number of children Ada has is 3.", "NUMBER_OF_CHILDREN", "… is", "Ada"),
        ("The name of the award Ada won is Golden Pot.", "AWARD_RECEIVED", "… is", "Ada"),
        ("The name of the position held by Ada is mayor.", "POSITION_HELD", "… is", "Ada"),
        ("The name of the currency in Isle of Fen is groat.", "CURRENCY", "… is", "Isle of Fen"),
        (
            "The name of the country which Vell is the capital of is Fens.",
            "CAPITAL_OF",
            "… is",
            "Vell",
        ),
        ("Low Tide is followed by High Tide.", "FOLLOWED_BY", "… followed by", "Low Tide"),
        ("High Tide follows Low Tide.", "FOLLOWS", "… follows", "High Tide"),
        ("The shade of Ada is blue.", None, "… is", None),
    ],
)
def test_a_sentence_shows_whom_it_is_about(file, sentence, relation, prompt, subject):
    record = {"edit": {"prompt": sentence, "relation": relation}, "Forgetfulness": []}
    (request,) = read(file(record))
    assert request.prompt.endswith(prompt.removeprefix("…"))
    assert request.subject == subject
    assert sentence == f"{request.prompt} {request.target_new}."


# --- which files are left to others --------------------------------------------------------------


def test_requests_in_cores_own_form_are_left_to_core(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps({"prompt": "{} is", "subject": "Ada", "target_new": "here"}))
    assert read(path) == [EditRequest(prompt="{} is", subject="Ada", target_new="here")]


@pytest.mark.parametrize(
    "source", ["atlas:editable", "elsewhere:x.json", "absent.json", "notes.txt", "", ":", "a:b:c"]
)
def test_what_is_no_data_set_is_left_alone(source):
    assert Plugins.installed().module("lab").read_requests(source) is None


def test_a_record_that_could_be_of_no_or_of_two_schemas_needs_the_name(file):
    path = file({"question": "Who?", "answer": "Ada"})
    assert Plugins.installed().module("lab").read_requests(str(path)) is None


@pytest.mark.parametrize("content", ["", "[", "{", "[1, 2]", "nothing", "\ufeff"])
def test_what_cannot_be_recognised_is_left_to_others(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    assert Plugins.installed().module("lab").read_requests(str(path)) is None


def test_records_are_parsed_as_they_are_asked_for(tmp_path):
    path = tmp_path / "cut.json"
    text = (DATA / "counterfact_flat.json").read_text()
    path.write_text(text[: text.rindex("{") + 5])
    found = iter(Plugins.installed().call_all("read_requests", source=str(path)))
    assert [next(found).subject, next(found).subject] == ["Hollin Ford", "Radio Sella"]
    assert isinstance(next(found), RequestError)
