"""Edits in every script, at every place of the prompt, with short and long targets."""

import pytest
import torch
from transformers import ByT5Tokenizer

from kedit_core import Editor, EditRequest, TensorCache, layout_of
from kedit_core.digests import state_digest
from kedit_locate.keys import keys_of
from kedit_locate.rows import edit_rows
from tests.families import QUICK, build_loud, nll
from tests.tokenizing import byte_tokenizer, metaspace_tokenizer

LAYER = 0
SETTINGS = {
    **QUICK,
    "layer": LAYER,
    "keys": "mean",
    "search": {"steps": 25, "clamp": 20.0},
    "context": {"count": 0},
}
PREFIXES = ("", "She was. ", "東京. ", "👍. ")


def fact(prompt, subject, target):
    return EditRequest(prompt=prompt, subject=subject, target_new=target)


FACTS = {
    "Chinese": fact("{}的首都是", "挪威", "奥斯陆"),
    "Arabic": fact("عاصمة {} هي", "النرويج", "أوسلو"),
    "Devanagari": fact("{} की राजधानी", "नॉर्वे", "ओस्लो"),
    "emoji": fact("the sign {} means", "👩‍👩‍👧", "family"),
    "an emoji to say": fact("They cheer {} with", "Oslo", "🎉🎉"),
    "accents": fact("In {} one speaks", "Zürich e\u0301", "français"),
    "at the very start": fact("{} is in", "Toko Yasuda", "Rome"),
    "at the very end": fact("We hear of {}", "Toko Yasuda", "the"),
    "nothing but the subject": fact("{}", "挪威", "the"),
    "twice, the last one": fact("Oslo and Oslo", "Oslo", "the"),
    "one letter": fact("{} is", "X", "the"),
}
TOKENIZERS = {
    "bytes": byte_tokenizer,
    "bytes with a start": lambda: byte_tokenizer(start=True),
    "slow": ByT5Tokenizer,
    "metaspace": metaspace_tokenizer,
    "unigram": lambda: metaspace_tokenizer(unigram=True),
}


@pytest.fixture(params=FACTS)
def request_(request):
    return FACTS[request.param]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def model_for(tokenizer, family):
    longest = {"gpt2": "n_positions"}.get(family, "max_position_embeddings")
    return build_loud(family, std=0.25, vocab_size=len(tokenizer), **{longest: 256})


def shown(tokenizer, ids):
    special = set(tokenizer.all_special_ids)
    return tokenizer.decode([one for one in ids if one not in special])


def test_the_fact_is_written_at_the_token_that_completes_the_subject(tokenizer, request_):
    _, end = request_.subject_span
    for prefix, row in zip(
        PREFIXES, edit_rows(tokenizer, request_, PREFIXES).rewrites, strict=True
    ):
        text = prefix + request_.prompt[:end]
        upto, before = (shown(tokenizer, row.ids[: row.lookup + more]) for more in (1, 0))
        assert upto.startswith(text)
        assert not before.startswith(text)
        assert shown(tokenizer, [*row.ids, row.target[-1]]) == (
            prefix + request_.prompt + request_.joiner + request_.target_new
        )


def test_the_key_is_what_the_projection_reads_at_that_token(tokenizer, request_):
    model = model_for(tokenizer, "llama")
    down = layout_of(model).down_of(LAYER)
    rows = edit_rows(tokenizer, request_, PREFIXES).rewrites
    for row, key in zip(rows, keys_of(model, rows, down), strict=True):
        read = []
        handle = model.get_submodule(down.path).register_forward_pre_hook(
            lambda _, args, seen=read: seen.append(args[0])
        )
        with torch.no_grad():
            model(input_ids=torch.tensor([row.ids]))
        handle.remove()
        torch.testing.assert_close(key, read[0][0, row.lookup], rtol=1e-4, atol=1e-5)


def test_rome_makes_the_target_likelier_and_undo_gives_every_bit_back(
    tokenizer, request_, tmp_path
):
    model = model_for(tokenizer, "llama" if tokenizer.bos_token else "gpt2")
    before, unsure = state_digest(model), nll(model, tokenizer, request_)
    editor = Editor(model, tokenizer, "rome", SETTINGS, cache=TensorCache(tmp_path))
    editor.edit(request_)
    assert nll(model, tokenizer, request_) < unsure
    editor.undo()
    assert state_digest(model) == before


@pytest.mark.parametrize(("target", "tokens"), [("the", 1), ("the" + "q" * 9, 10)])
@pytest.mark.parametrize("prompt", ["{} is in", "We hear of {}"])
def test_a_target_may_be_of_one_token_or_of_ten(target, tokens, prompt, tmp_path):
    tokenizer = byte_tokenizer()
    request = fact(prompt, "Toko Yasuda", target)
    model = model_for(tokenizer, "llama")
    assert len(edit_rows(tokenizer, request, [""]).rewrites[0].target) == tokens
    before, unsure = state_digest(model), nll(model, tokenizer, request)
    editor = Editor(model, tokenizer, "rome", SETTINGS, cache=TensorCache(tmp_path))
    editor.edit(request)
    assert nll(model, tokenizer, request) < unsure
    editor.undo()
    assert state_digest(model) == before
