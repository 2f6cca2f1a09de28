import json

import pytest

from kedit_core.errors import RequestError
from kedit_core.plugins import Plugins
from kedit_core.request_files import read_json_lines, record_of, request_from
from kedit_core.requests import EditRequest, Probe

RECORD = {"prompt": "{} is the capital of", "subject": "Paris", "target_new": "Italy"}


@pytest.fixture
def file(tmp_path):
    def write(*lines, encoding="utf-8"):
        path = tmp_path / "requests.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_bytes("\n".join(texts).encode(encoding))
        return path

    return write


def test_every_field_survives_a_trip_through_json():
    request = EditRequest(
        prompt="Say: {} is",
        subject="Zürich 日本 😀",
        target_new="a city",
        target_true="a town",
        joiner=", ",
        paraphrases=("one", "two"),
        locality=(Probe(prompt="x", answers=("a", "b"), group="near"),),
        portability=(Probe(prompt="y", answers=("c",)),),
        extra={"case": 3, "nested": {"list": [1, None, True]}},
    )
    back = request_from(json.loads(json.dumps(record_of(request))))
    assert back == request
    assert back.id == request.id


def test_a_request_reads_back_although_its_filled_prompt_holds_braces():
    request = EditRequest(prompt="{} is", subject="a{}b{}", target_new="x")
    assert request_from(record_of(request)) == request


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_gives_its_requests_in_order_with_or_without_a_byte_order_mark(file, encoding):
    path = file(RECORD, "", {**RECORD, "target_new": "España"}, "  ", encoding=encoding)
    assert [request.target_new for request in read_json_lines(path)] == ["Italy", "España"]


def test_lines_may_end_as_on_windows(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"\r\n".join([json.dumps(RECORD).encode()] * 2) + b"\r\n")
    assert [request.subject for request in read_json_lines(path)] == ["Paris", "Paris"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\u3000"])
def test_a_line_ends_at_a_newline_and_not_at_what_unicode_calls_a_line_separator(file, separator):
    text = f"before{separator}after"
    path = file(json.dumps({**RECORD, "target_new": text}, ensure_ascii=False))
    (request,) = read_json_lines(path)
    assert request.target_new == text


def test_a_bad_line_is_an_error_in_its_place_that_names_file_and_line(file):
    path = file(RECORD, "{", "", {**RECORD, "prompt": "It is", "subject": "Rome"}, RECORD)
    first, broken, absent, last = read_json_lines(path)
    assert first == last == request_from(RECORD)
    assert isinstance(broken, RequestError)
    assert str(broken).startswith(f"{path}, line 2: is not JSON: ")
    assert str(absent).startswith(f"{path}, line 4: subject 'Rome' is not in the prompt")


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"extra": {"a": ' + "1" * 5000 + "}}", "NaN", '"text"', "[]", "nul"]
)
def test_no_line_however_strange_raises_anything_but_a_request_error(file, line):
    first, second = read_json_lines(file(line, RECORD))
    assert isinstance(first, RequestError)
    assert "line 1: " in str(first)
    assert second == request_from(RECORD)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target_nwe": "x"}, "unknown field 'target_nwe'; did you mean 'target_new'"),
        ({"id": "0"}, "unknown field 'id'"),
        ({"prompt": None}, "field 'prompt' is missing"),
        ({"target_new": None}, "field 'target_new' is missing"),
        ({"target_new": ["a"]}, "field 'target_new' is no text"),
        ({"subject": 5}, "field 'subject' is no text: 5"),
        ({"joiner": 0}, "field 'joiner' is no text"),
        ({"subject_span": 5}, "field 'subject_span' is no pair of positions"),
        ({"subject_span": [0, 1.0]}, "field 'subject_span' is no pair of positions"),
        ({"subject_span": [False, True]}, "field 'subject_span' is no pair of positions"),
        ({"paraphrases": "one text"}, "field 'paraphrases' is no list of texts"),
        ({"paraphrases": [1]}, "field 'paraphrases' is no list of texts"),
        ({"extra": 5}, "field 'extra' is no object"),
        ({"extra": ["ab"]}, "field 'extra' is no object"),
        ({"locality": {"prompt": "x", "answers": ["y"]}}, "field 'locality' is no list of probes"),
        ({"locality": ["x"]}, "field 'locality' is no list of probes"),
        ({"portability": [{"prompt": "x"}]}, r"portability\[0\]: .*answers"),
        ({"locality": [{"prompt": "x", "answers": []}]}, r"locality\[0\]: probe 'x' has no answer"),
        ({"locality": [{"prompt": None, "answers": "y"}]}, r"locality\[0\]: .*prompt.*found None"),
        ({"locality": [{"prompt": "x", "answers": [None]}]}, r"answers.*found None"),
        ({"locality": [{"prompt": "x", "answers": "y", "grop": ""}]}, "did you mean 'group'"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_in_one_sentence(changes, complaint):
    with pytest.raises(RequestError, match=complaint) as refused:
        request_from({**RECORD, **changes})
    assert "\n" not in str(refused.value)


def test_one_answer_may_be_written_as_a_text_and_is_no_list_of_letters():
    request = request_from({**RECORD, "locality": [{"prompt": "x", "answers": "Rome"}]})
    assert request.locality == (Probe(prompt="x", answers=("Rome",)),)


def test_null_says_the_same_as_leaving_a_field_out():
    optional = ("subject_span", "target_true", "joiner", "paraphrases", "locality", "portability")
    assert request_from({**RECORD, **dict.fromkeys([*optional, "extra"])}) == request_from(RECORD)


@pytest.mark.parametrize("content", [b"", b" \n\n", "{}".encode("utf-16")])
def test_a_file_that_holds_no_request_is_refused_at_once(tmp_path, content):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"requests.jsonl: (holds no request|.*not UTF-8)"):
        read_json_lines(path)


def test_a_missing_file_and_a_folder_say_why_they_cannot_be_read(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        read_json_lines(tmp_path / "absent.jsonl")
    with pytest.raises(RequestError, match="Is a directory"):
        read_json_lines(tmp_path)


def test_core_reads_files_when_no_plugin_knows_the_source(file):
    read = Plugins().call_all("read_requests", source=str(file(RECORD)))
    assert list(read) == [request_from(RECORD)]
