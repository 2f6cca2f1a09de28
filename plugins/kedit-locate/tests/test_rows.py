"""Rows: token ids of an edit's texts, and the places of subject and target in them."""

import pytest

from kedit_core import EditRequest, encode
from kedit_core.errors import RequestError
from kedit_locate.rows import edit_rows, padded

PREFIXES = ("", "She was. ", "東京 Danielle Darrieux. ")


@pytest.fixture(params=["plain", "bos"])
def reader(request, tokenizer, bos_tokenizer):
    return bos_tokenizer if request.param == "bos" else tokenizer


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The mother tongue of {} is", "Danielle Darrieux"),
        ("{} plays", "Zoë"),
        ("We hear that", "We"),
        ("It is said that Rome is not Rome", "Rome"),  # the last one
        ("{} is in Rome", "Rome"),  # the marked one
        ("the city of 東京 is", "東京"),
        ("(“{}”) is", "Space Needle"),
        ("q", "q"),
    ],
)
def test_the_lookup_is_the_token_of_the_subjects_last_character(reader, prompt, subject):
    request = EditRequest(prompt=prompt, subject=subject, target_new="English")
    rows = edit_rows(reader, request, PREFIXES)
    assert len(rows.rewrites) == len(PREFIXES)
    for prefix, row in zip(PREFIXES, rows.rewrites, strict=True):
        text = prefix + request.prompt
        end = len(prefix) + request.subject_span[1]
        read = encode(reader, [text])[0]
        start, stop = read.offsets[row.lookup]
        assert start <= end - 1 < stop
        shown = reader.decode(row.prompt, skip_special_tokens=True)
        assert text[:end].startswith(shown) or shown.startswith(text[:end])
        assert subject[-1] in shown[-len(subject) - 1 :]
    alone = reader.decode(rows.anchor.ids, skip_special_tokens=True)
    assert alone == subject
    assert rows.anchor.lookup == len(rows.anchor.ids) - 1
    assert rows.anchor.target == ()


def test_a_row_holds_the_prompt_and_the_target_but_its_last_token(reader, fact):
    for prefix, row in zip(PREFIXES, edit_rows(reader, fact, PREFIXES).rewrites, strict=True):
        prompt = encode(reader, [prefix + fact.prompt])[0].ids
        assert row.ids == prompt + row.target[:-1]
        assert len(row.ids) - len(row.target) == len(prompt) - 1  # where the first is predicted
        assert reader.decode(row.target) == " English"


def test_nothing_stands_between_prompt_and_target_without_a_joiner(tokenizer):
    request = EditRequest(prompt="{} is in 東", subject="It", target_new="京")
    row = edit_rows(tokenizer, request, [""]).rewrites[0]
    assert tokenizer.decode([*row.ids, row.target[-1]]) == "It is in 東京"


def test_chat_rows_place_the_subject_in_the_rendered_text(tokenizer, fact, monkeypatch):
    template = "{% for m in messages %}<u> {{ m['content'] }} </u>{% endfor %}<a>"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rows = edit_rows(tokenizer, fact, PREFIXES, chat=True)
    for row in (*rows.rewrites, rows.anchor):
        shown = tokenizer.decode(row.prompt)
        assert shown.startswith("<u> ")
        assert shown.endswith("Danielle Darrieux")
    whole = tokenizer.decode([*rows.rewrites[1].ids, rows.rewrites[1].target[-1]])
    assert whole == f"<u> She was. {fact.prompt} </u><a>English"


def test_an_edit_without_a_subject_is_refused(tokenizer):
    with pytest.raises(RequestError, match="subject"):
        edit_rows(tokenizer, EditRequest(prompt="Two and two make", target_new="five"), [""])


def test_padding_is_on_the_right_and_masked():
    ids, mask = padded([[5, 6, 7], [8], []], "cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_nothing_pads_to_nothing():
    ids, mask = padded([], "cpu")
    assert ids.shape == mask.shape == (0, 0)
