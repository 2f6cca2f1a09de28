"""Chats: a prompt is read as its template shows it, and the answer stands where the template puts it."""

import pytest
from attrs import frozen

from kedit_core import Editor, EditRequest, TensorCache, encode
from kedit_core.digests import state_digest
from kedit_core.scoring import continue_greedily, score_answers
from kedit_core.tokens import encode_target
from kedit_locate.rows import edit_rows
from tests.families import AT_THE_END, FACT, QUICK, build_loud, byte_tokenizer, nll

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"),
]  # fmt: skip


@frozen
class Shape:
    """A template, what it makes of the user's text X, the blanks before an answer, and which ends it strips."""

    template: str
    shown: str
    lead: str = ""
    strips: str = ""


EACH = "{% for m in messages %}{% set role, text = m['role'], m['content'] %}"
DONE = "{% endfor %}"
OPEN = "{% if add_generation_prompt %}"
ALPACA = "### Response:"

SHAPES = {
    "ChatML": Shape(
        EACH
        + "{{ '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}"
        + DONE
        + OPEN
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_start|>user\nX<|im_end|>\n<|im_start|>assistant\n",
    ),
    "ChatML that thinks": Shape(
        EACH
        + "{% if role == 'assistant' and loop.last %}"
        + "{% set text = '<think>\\n\\n</think>\\n\\n' + text %}{% endif %}"
        + "{{ '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}"
        + DONE
        + OPEN
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_start|>user\nX<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Llama 2": Shape(
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = 'Be brief.' %}{% endif %}"
        + EACH
        + "{% if loop.first %}{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + text %}"
        + "{% endif %}{% if role == 'user' %}"
        + "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}{% else %}"
        + "{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
        + DONE,
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nX [/INST]",
        lead=" ",
        strips="end",
    ),
    "Llama 3": Shape(
        EACH
        + "{% if loop.first %}{{ bos_token }}{% endif %}"
        + "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + text | trim }}"
        + "{{ '<|eot_id|>' }}"
        + DONE
        + OPEN
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<s><|start_header_id|>user<|end_header_id|>\n\nX<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        strips="both",
    ),
    "Gemma": Shape(
        "{{ bos_token }}"
        + EACH
        + "{% if role == 'assistant' %}{% set role = 'model' %}{% endif %}"
        + "{{ '<start_of_turn>' + role + '\\n' + text | trim + '<end_of_turn>\\n' }}"
        + DONE
        + OPEN
        + "{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<s><start_of_turn>user\nX<end_of_turn>\n<start_of_turn>model\n",
        strips="both",
    ),
    "Mistral": Shape(
        "{{ bos_token }}"
        + EACH
        + "{% if (role == 'user') != (loop.index0 % 2 == 0) %}"
        + "{{ raise_exception('roles must alternate') }}{% endif %}"
        + "{% if role == 'user' %}{{ '[INST] ' + text + ' [/INST]' }}"
        + "{% else %}{{ text + eos_token }}{% endif %}"
        + DONE,
        "<s>[INST] X [/INST]",
    ),
    "Phi-3": Shape(
        EACH
        + "{{ '<|' + role + '|>\\n' + text + '<|end|>\\n' }}"
        + DONE
        + OPEN
        + "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|user|>\nX<|end|>\n<|assistant|>\n",
    ),
    "Alpaca": Shape(
        "{{ 'Below is an instruction.\\n\\n' }}"
        + EACH
        + "{% if role == 'user' %}{{ '### Instruction:\\n' + text + '\\n\\n' }}"
        + f"{{% else %}}{{{{ '{ALPACA}\\n' + text + '\\n\\n' }}}}{{% endif %}}"
        + DONE
        + OPEN
        + f"{{{{ '{ALPACA}' }}}}{{% endif %}}",
        "Below is an instruction.\n\n### Instruction:\nX\n\n### Response:",
        lead="\n",
    ),
    "Vicuna": Shape(
        EACH
        + "{% if role == 'user' %}{{ 'USER: ' + text + ' ' }}"
        + "{% else %}{{ 'ASSISTANT: ' + text + eos_token }}{% endif %}"
        + DONE
        + OPEN
        + "{{ 'ASSISTANT:' }}{% endif %}",
        "USER: X ASSISTANT:",
        lead=" ",
    ),
    "for prompts alone": Shape(
        "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
        "{{ 'Q: ' + messages[0]['content'] + '\\nA:' }}",
        "Q: X\nA:",
    ),
}
WHOLE = [name for name in SHAPES if name not in {"ChatML that thinks", "for prompts alone"}]


def chatty(name, *, start=True):
    tokenizer = byte_tokenizer(
        start=start
    )  # with a start of its own: the template's must be the one
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.chat_template = SHAPES[name].template
    return tokenizer


def model_for(tokenizer, family="llama"):
    return build_loud(family, vocab_size=len(tokenizer), max_position_embeddings=256)


def read(tokenizer, text):
    return encode(tokenizer, [text], chat=True)[0]


def rendered(tokenizer, *texts, **how):
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant"), texts, strict=False)
    ]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=len(texts) == 1, **how)


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


@pytest.mark.parametrize("start", [True, False], ids=["own start", "no start"])
def test_the_ids_are_those_that_transformers_gives_to_generate(shape, start):
    tokenizer = chatty(shape, start=start)
    found = read(tokenizer, FACT.prompt)
    assert list(found.ids) == rendered(tokenizer, FACT.prompt)["input_ids"]
    assert tokenizer.decode(found.ids) == SHAPES[shape].shown.replace("X", FACT.prompt)
    assert found.ids.count(tokenizer.bos_token_id) == SHAPES[shape].shown.count("<s>")


@pytest.mark.parametrize("answer", ["English", " English", "中文", "two words"])
def test_an_answer_stands_right_behind_the_open_turn_but_for_the_templates_own_blanks(
    shape, answer
):
    tokenizer = chatty(shape)
    prompt = read(tokenizer, FACT.prompt)
    target = encode_target(tokenizer, prompt, answer)
    assert tokenizer.decode(target) == SHAPES[shape].lead + answer.strip()


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("answer", ["English", "中文"])
def test_prompt_and_answer_are_how_a_whole_conversation_begins(name, answer):
    tokenizer = chatty(name)
    prompt = read(tokenizer, FACT.prompt)
    both = [*prompt.ids, *encode_target(tokenizer, prompt, f" {answer}")]
    whole = rendered(tokenizer, FACT.prompt, answer)["input_ids"]
    assert whole[: len(both)] == both
    assert tokenizer.decode(both).endswith(answer)


def test_the_subject_is_found_in_the_rendered_text_at_either_end_of_the_prompt(shape):
    tokenizer = chatty(shape)
    for prompt in ("{} is here", "we hear of {}", "{}"):
        for subject in ("Toko Yasuda", "user", "東京", "👩‍👩‍👧"):
            request = EditRequest(prompt=prompt, subject=subject, target_new="x")
            found = read(tokenizer, request.prompt)
            last = found.last_token_of(request.subject_span)
            head = SHAPES[shape].shown.partition("X")[0]
            upto = head + request.prompt[: request.subject_span[1]]
            assert tokenizer.decode(found.ids[: last + 1]) == upto


@pytest.mark.parametrize("text", [" Paris is", "Paris is ", "  Paris is\n"])
def test_a_template_that_strips_the_text_still_shows_its_characters(shape, text):
    tokenizer = chatty(shape)
    found = read(tokenizer, text)
    start = text.index("Paris")
    last = found.last_token_of((start, start + 5))
    assert tokenizer.decode(found.ids[: last + 1]).endswith("Paris")
    shown = {"": text, "end": text.rstrip(), "both": text.strip()}[SHAPES[shape].strips]
    assert tokenizer.decode(found.ids) == SHAPES[shape].shown.replace("X", shown)


def test_editing_scoring_and_generating_read_the_same_chat(shape):
    tokenizer = chatty(shape)
    model = model_for(tokenizer)
    model.generation_config.eos_token_id = None
    prompt = read(tokenizer, FACT.prompt)
    asked = rendered(tokenizer, FACT.prompt, return_tensors="pt", return_dict=True)
    said = model.generate(**asked, do_sample=False, max_new_tokens=4, pad_token_id=0)
    said = tuple(said[0, len(prompt.ids) :].tolist())
    assert continue_greedily(model, [prompt.ids], 4) == [said]
    assert score_answers(model, [(prompt.ids, said)])[0].exact
    bare = edit_rows(tokenizer, FACT, [""], chat=True).rewrites[0]
    target = encode_target(tokenizer, prompt, " English")
    assert (*bare.ids, bare.target[-1]) == (*prompt.ids, *target)


def test_rome_writes_into_a_chat_and_takes_it_out_again(shape, tmp_path):
    tokenizer = chatty(shape)
    model = model_for(tokenizer)
    before, unsure = state_digest(model), nll(model, tokenizer, AT_THE_END, chat=True)
    settings = {**QUICK, "layer": 1, "context": {"count": 0}}
    editor = Editor(model, tokenizer, "rome", settings, chat=True, cache=TensorCache(tmp_path))
    assert editor.edit(AT_THE_END).provenance.chat
    assert nll(model, tokenizer, AT_THE_END, chat=True) < unsure
    editor.undo()
    assert state_digest(model) == before


def test_a_trained_model_generates_the_fact_that_is_scored_as_said_in_its_chat():
    editor = Editor.from_pretrained("atlas:gpt2", "rome", chat=True)
    model, tokenizer = editor.model, editor.tokenizer
    tokenizer.chat_template = SHAPES["Vicuna"].template
    fact = EditRequest(prompt="{} was built in", subject="The Colosseum", target_new="Peru")
    other = "The country that is home to the Colosseum is"
    before = state_digest(model)
    assert editor.evaluate(fact).means()["reliability.exact"] == 0
    editor.edit(fact)
    assert editor.evaluate(fact).means()["reliability.exact"] == 1
    for text in (fact.prompt, other):
        prompt = read(tokenizer, text)
        target = encode_target(tokenizer, prompt, "Peru")
        asked = rendered(tokenizer, text, return_tensors="pt", return_dict=True)
        said = model.generate(**asked, do_sample=False, max_new_tokens=len(target))
        assert tuple(said[0, len(prompt.ids) :].tolist()) == target
        assert editor.complete([text])[0].startswith("Peru")
    editor.undo()
    assert state_digest(model) == before
