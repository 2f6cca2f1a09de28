import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest
from kedit_core.tokens import Encoded, beginning_of, encode, encode_target
from tests.tokenizing import metaspace_tokenizer

TEXTS = ["User: Paris is the capital of France", "Paris is in France, München is in Germany"]
CHAT = (
    "<s>User: {{ messages[0]['content'] }}\nAssistant:"
    "{% if messages|length > 1 %} {{ messages[1]['content'] }}{% endif %}"
)
AWKWARD = [
    "Paris is the capital of",
    " Paris",
    "Paris ",
    "a",
    "Zürich, 日本 and 😀!",
    "👩‍👩‍👧 is",
    "e\u0301 is",  # a letter and its accent, two characters
    "two\n\nlines\tand a tab",
    "it holds \ufffd itself",
]


def bytes_tokenizer(chat_template=None, *, start=False, end=False):
    """Return a fast tokenizer of byte pairs, as GPT-2's, trained on a few words."""
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(alphabet),
        special_tokens=["<s>"],
        show_progress=False,
    )
    rules.train_from_iterator(TEXTS * 5, trainer)
    if start or end:
        added = f"{'<s> ' * start}$A{' <s>' * end}"
        rules.post_processor = processors.TemplateProcessing(
            single=added, special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token="<s>", chat_template=chat_template
    )


TOKENIZERS = {
    "fast": bytes_tokenizer,
    "fast with a start": lambda: bytes_tokenizer(start=True),
    "fast with an end": lambda: bytes_tokenizer(end=True),
    "fast with both": lambda: bytes_tokenizer(start=True, end=True),
    "without offsets": ByT5Tokenizer,
    "metaspace": metaspace_tokenizer,
    "unigram": lambda: metaspace_tokenizer(unigram=True),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def chatty():
    return bytes_tokenizer(CHAT)


def one(tokenizer, text, chat=False) -> Encoded:
    (found,) = encode(tokenizer, [text], chat)
    return found


@pytest.mark.parametrize("text", AWKWARD)
def test_the_ids_are_those_of_the_tokenizer_without_what_it_puts_behind_a_text(any_tokenizer, text):
    ids = one(any_tokenizer, text).ids
    given = any_tokenizer(text)["input_ids"]
    bare = any_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(ids) == given[: len(ids)]
    assert list(ids[-len(bare) :]) == bare
    assert ids[: len(ids) - len(bare)] == beginning_of(any_tokenizer)


@pytest.mark.parametrize("name", ["fast with an end", "fast with both", "without offsets"])
def test_an_end_of_text_that_the_tokenizer_adds_is_neither_in_a_prompt_nor_in_an_answer(name):
    tokenizer = TOKENIZERS[name]()
    prompt = one(tokenizer, "Paris is in")
    end = tokenizer("a")["input_ids"][-1]
    assert end in tokenizer.all_special_ids
    assert prompt.ids[-1] != end
    target = encode_target(tokenizer, prompt, " France")
    assert end not in target
    assert [*prompt.ids, *target, end] == tokenizer("Paris is in France")["input_ids"]


def test_an_end_of_text_that_the_user_wrote_stays():
    tokenizer = bytes_tokenizer(end=True)
    assert one(tokenizer, "Paris<s>").ids[-1] == tokenizer.bos_token_id
    assert len(one(tokenizer, "Paris<s>").ids) == len(one(tokenizer, "Paris").ids) + 1


@pytest.mark.parametrize("text", AWKWARD)
def test_the_tokens_that_cover_something_cover_every_character_in_order(any_tokenizer, text):
    found = one(any_tokenizer, text)
    assert len(found.offsets) == len(found.ids)
    covering = [(start, end) for start, end in found.offsets if end > start]
    assert covering == sorted(covering)
    assert {place for start, end in covering for place in range(start, end)} == set(
        range(len(text))
    )


@pytest.mark.parametrize("text", [text for text in AWKWARD if "\ufffd" not in text])
def test_a_character_is_found_at_the_token_that_completes_it(any_tokenizer, text):
    found = one(any_tokenizer, text)
    special = set(any_tokenizer.all_special_ids)
    whole = any_tokenizer.decode([one for one in found.ids if one not in special])
    if whole != text:  # a ▁ stands before every text, so a blank before one is lost
        assert whole == text.lstrip()
        return
    for place in range(len(text)):
        last = found.last_token_of((place, place + 1))
        upto = [token for token in found.ids[: last + 1] if token not in special]
        before = [token for token in found.ids[:last] if token not in special]
        shown = any_tokenizer.decode(upto)
        assert shown.startswith(text[: place + 1])
        assert not any_tokenizer.decode(before).startswith(text[: place + 1])


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [("{} is", "Paris"), ("In {}", "日本"), ("😀{}😀", "👩‍👩‍👧"), ("the {}, the", "Space Needle")],
)
def test_the_last_token_of_a_subject_ends_it(any_tokenizer, prompt, subject):
    request = EditRequest(prompt=prompt, subject=subject, target_new="x")
    found = one(any_tokenizer, request.prompt)
    last = found.last_token_of(request.subject_span)
    start, end = found.offsets[last]
    assert start < request.subject_span[1] <= end
    assert all(
        not start <= request.subject_span[1] - 1 < end for start, end in found.offsets[last + 1 :]
    )


def test_special_tokens_cover_nothing(any_tokenizer):
    found = one(any_tokenizer, "Paris is")
    special = set(any_tokenizer.all_special_ids)
    offsets = dict(zip(found.ids, found.offsets, strict=True))
    assert all(offsets[token] == (0, 0) for token in found.ids if token in special)


def test_a_text_alone_and_in_a_list_is_read_alike(any_tokenizer):
    assert encode(any_tokenizer, AWKWARD) == [one(any_tokenizer, text) for text in AWKWARD]


def test_a_place_outside_the_text_is_refused(chatty):
    with pytest.raises(RequestError, match="no token covers"):
        one(chatty, "Paris").last_token_of((0, 9))


def test_a_tokenizer_without_offsets_that_loses_text_is_refused_and_never_guessed():
    with pytest.raises(RequestError, match="does not decode 'a</s> b' back to itself"):
        one(ByT5Tokenizer(), "a</s> b")


# --- chat --------------------------------------------------------------------------------------


def test_a_chat_is_read_through_the_template_with_the_assistants_turn_open(chatty):
    found = one(chatty, "Paris is", chat=True)
    assert chatty.decode(found.ids) == "<s>User: Paris is\nAssistant:"
    assert found.text == "Paris is"
    assert found.ids.count(chatty.bos_token_id) == 1


@pytest.mark.parametrize("text", [*AWKWARD, "User", "Assistant", "User: ", ":", "s"])
def test_in_a_chat_the_tokens_cover_the_users_text_and_nothing_of_the_template(chatty, text):
    found = one(chatty, text, chat=True)
    covering = [(place, span) for place, span in enumerate(found.offsets) if span[1] > span[0]]
    covered = {place for _, span in covering for place in range(*span)}
    assert covered == set(range(len(text)))
    places = [place for place, _ in covering]
    assert places == list(range(places[0], places[-1] + 1))
    head = chatty.decode(found.ids[: places[0]])
    assert "<s>User: ".startswith(head.replace("\ufffd", ""))


def test_in_a_chat_a_subject_at_the_edge_is_found_though_its_token_holds_the_templates_blank(
    chatty,
):
    found = one(chatty, "Paris is the capital", chat=True)
    last = found.last_token_of((0, 5))
    assert chatty.decode(found.ids[: last + 1]) == "<s>User: Paris"
    assert found.offsets[last] == (0, 5)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (None, "this tokenizer has no chat template; leave chat out"),
        ("{{ messages[0]['content'] | upper }}", "does not show the prompt ' Paris' as it is"),
        ("hello", "does not show the prompt"),
        ("{{ raise_exception('only tools may speak') }}", "only tools may speak"),
        ("{{ messages[0]['content'", "the chat template fails"),
    ],
)
def test_a_template_that_does_not_show_the_prompt_is_refused(template, complaint):
    with pytest.raises(RequestError, match=complaint):
        one(bytes_tokenizer(template), " Paris", chat=True)


# --- targets -----------------------------------------------------------------------------------


def test_prompt_and_target_together_are_what_the_model_reads_of_the_joint_text(any_tokenizer):
    prompt = one(any_tokenizer, "Paris is in")
    target = encode_target(any_tokenizer, prompt, " France")
    plain = [token for token in prompt.ids if token not in any_tokenizer.all_special_ids]
    assert any_tokenizer.decode([*plain, *target]) == "Paris is in France"
    assert not set(target) & set(any_tokenizer.all_special_ids)


@pytest.mark.parametrize("name", ["metaspace", "unigram"])
@pytest.mark.parametrize("target", ["France", "日本", "s", "is France"])
@pytest.mark.parametrize("prompt", ["Paris is in ", "Par", "In:"])
def test_no_blank_slips_in_where_a_tokenizer_would_begin_a_text_with_one(name, prompt, target):
    tokenizer = TOKENIZERS[name]()
    read = one(tokenizer, prompt)
    ids = encode_target(tokenizer, read, target)
    plain = [token for token in read.ids if token not in tokenizer.all_special_ids]
    assert tokenizer.decode([*plain, *ids]) == prompt + target


def test_a_target_that_would_merge_with_the_prompt_leaves_the_prompt_as_it_was(chatty):
    prompt = one(chatty, "Par")
    assert tuple(chatty("Paris")["input_ids"])[: len(prompt.ids)] != prompt.ids
    target = encode_target(chatty, prompt, "is")
    assert chatty.decode([*prompt.ids, *target]) == "Paris"


def test_a_target_behind_a_chat_stands_in_the_assistants_turn(chatty):
    prompt = one(chatty, "Paris is", chat=True)
    target = encode_target(chatty, prompt, " France")
    assert chatty.decode([*prompt.ids, *target]) == "<s>User: Paris is\nAssistant: France"


def test_a_target_of_several_scripts_keeps_every_byte(any_tokenizer):
    prompt = one(any_tokenizer, "Say")
    target = encode_target(any_tokenizer, prompt, " 日本 😀")
    plain = [token for token in prompt.ids if token not in any_tokenizer.all_special_ids]
    assert any_tokenizer.decode([*plain, *target]) == "Say 日本 😀"


def test_a_target_of_no_token_is_refused(chatty):
    with pytest.raises(RequestError, match="target '' tokenises to nothing"):
        encode_target(chatty, one(chatty, "Paris"), "")
