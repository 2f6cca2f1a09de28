"""One decision per sequence: whatever the batch, the padding, the beams and the cache."""

import copy
import gc
import weakref

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache

from kedit_core.errors import ModelError
from kedit_core.scoring import continue_greedily
from kedit_core.testing import tiny_model
from kedit_core.tokens import encode
from kedit_memory.kept import OUTSIDE, Kept, Owner, keep, kept_in
from kedit_memory.routing import Routing

MARK = "violin"
PROMPTS = [
    "The violin of Toko Yasuda is",
    "The capital of Norway is",
    "In Rome the violin",
    "Zoë plays the",
    "A violin in the city of Seattle, and the guitar in the city of",
    "Paris",
    "violin violin violin of the Space Needle",
    "The mother tongue of Danielle Darrieux is",
]
TOKENS = 6


class Spoken:
    """Remembers what was read of each row after its prompt, as a method's own cache would."""

    def __init__(self, said):
        self.said = said

    def select(self, places):
        self.said = self.said[places]

    def crop(self, tokens):
        self.said = self.said[:, : self.said.shape[1] - tokens]


class Toy:
    """Is in scope where a prompt says "violin", and then says what follows from all it said so far."""

    def __init__(self, model, tokenizer):
        self.routing = Routing(model)
        self.decisions = []
        self.tokenizer = tokenizer

    def attach(self):
        return self.routing.attach(answer=self.answer)

    def decide(self, passage):
        rows = zip(passage.ids, passage.prompts, strict=True)
        texts = [self.tokenizer.decode(row[real]) for row, real in rows]
        return torch.tensor([len(one) if MARK in one else OUTSIDE for one in texts])

    def answer(self, passage, output):
        if passage.reads_a_prompt:
            kept = passage.settle(self.decide(passage))
            self.decisions.append(kept.decision.tolist())
        kept = passage.kept
        if not kept.inside:
            return output
        new = passage.ids if not passage.whole else passage.ids[:, kept.prompt :]
        if passage.whole:
            kept.beside = Spoken(new)
        else:
            kept.beside.said = torch.cat([kept.beside.said, new], 1)
        said = kept.beside.said
        for row in (kept.decision != OUTSIDE).nonzero()[:, 0].tolist():
            for place, column in enumerate(passage.columns.tolist()):
                after = said.shape[1] - (passage.shape[1] - 1 - column)
                history = said[row, : max(after, 0)].tolist()
                step = sum((7 * n + 3) * one for n, one in enumerate(history)) + len(history)
                # Three liked words a step, so that beams have something to choose from.
                base = int(kept.decision[row]) + step
                for rank in range(3):
                    output.logits[row, place, (base * (rank + 2)) % 300] += 60 - 0.1 * rank
        return output


class Luck(LogitsProcessor):
    """Random numbers that are a function of a row's own text: sampling becomes the same in any batch."""

    def __init__(self, pad):
        self.pad = pad

    def __call__(self, ids, scores):
        for row, text in enumerate(ids.tolist()):
            own = [one for one in text if one != self.pad]
            seed = torch.Generator().manual_seed(sum((n + 1) * one for n, one in enumerate(own)))
            noise = -torch.empty(scores.shape[1]).exponential_(generator=seed).log()
            best = (scores[row] + 5 * noise).argmax()
            scores[row] = -torch.inf
            scores[row, best] = 0
        return scores


WAYS = {
    "greedy": {"do_sample": False},
    "beam 4": {"do_sample": False, "num_beams": 4},
    "sampling": {"do_sample": True, "logits_processor": LogitsProcessorList([Luck(0)])},
    "two of four beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
}


def batch(tokenizer, prompts, side):
    rows = [encode(tokenizer, [prompt])[0].ids for prompt in prompts]
    width = max(map(len, rows))

    def padded(row, pads):
        return [*pads, *row] if side == "left" else [*row, *pads]

    ids = [padded(row, [0] * (width - len(row))) for row in rows]
    mask = [padded([1] * len(row), [0] * (width - len(row))) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def generated(model, tokenizer, prompts, **how):
    ids, mask = batch(tokenizer, prompts, "left")
    said = model.generate(
        ids, attention_mask=mask, max_new_tokens=TOKENS, pad_token_id=0, eos_token_id=None, **how
    )
    each = len(said) // len(prompts)
    return [said[n * each : (n + 1) * each, ids.shape[1] :].tolist() for n in range(len(prompts))]


@pytest.fixture
def toy(model, tokenizer):
    toy = Toy(model, tokenizer)
    with toy.attach():
        yield toy


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_mixed_batch_is_answered_as_its_rows_are_one_by_one(
    model, tokenizer, toy, how, use_cache
):
    together = generated(model, tokenizer, PROMPTS, use_cache=use_cache, **how)
    alone = [generated(model, tokenizer, [one], use_cache=use_cache, **how)[0] for one in PROMPTS]
    assert together == alone
    if not use_cache:
        assert together == generated(model, tokenizer, PROMPTS, use_cache=True, **how)


def test_one_decision_is_taken_per_generation(model, tokenizer, toy):
    for use_cache in (True, False):
        toy.decisions.clear()
        generated(model, tokenizer, PROMPTS, use_cache=use_cache, do_sample=False)
        assert [[one != OUTSIDE for one in row] for row in toy.decisions] == [
            [MARK in prompt for prompt in PROMPTS]
        ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_count_for_nothing_on_either_side(model, tokenizer, toy, side):
    ids, mask = batch(tokenizer, PROMPTS, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=positions)
    together = toy.decisions.pop()
    for prompt, decided in zip(PROMPTS, together, strict=True):
        ids, mask = batch(tokenizer, [prompt], side)
        model(input_ids=ids, attention_mask=mask)
        assert toy.decisions.pop() == [decided]


def test_right_padded_prompts_that_are_read_on_keep_their_decisions(model, tokenizer, toy):
    rows = [encode(tokenizer, [prompt])[0].ids for prompt in PROMPTS]
    together = continue_greedily(model, rows, TOKENS)
    assert together == [continue_greedily(model, [row], TOKENS)[0] for row in rows]
    greedy = generated(model, tokenizer, PROMPTS, do_sample=False)
    assert [[list(one)] for one in together] == greedy


def test_out_of_scope_the_output_is_the_one_the_model_made(tokenizer):
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama", dtype=dtype)
        ids, mask = batch(tokenizer, [one for one in PROMPTS if MARK not in one], "left")
        before = model(input_ids=ids, attention_mask=mask).logits
        with Toy(model, tokenizer).attach():
            assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_rows_out_of_scope_in_a_mixed_batch_are_the_bits_of_that_batch(model, tokenizer):
    ids, mask = batch(tokenizer, PROMPTS, "left")
    before = model(input_ids=ids, attention_mask=mask).logits
    with Toy(model, tokenizer).attach():
        after = model(input_ids=ids, attention_mask=mask).logits
    untouched = [MARK not in prompt for prompt in PROMPTS]
    assert torch.equal(after[untouched], before[untouched])
    assert not torch.equal(after, before)


def test_undo_leaves_nothing_behind(model, tokenizer):
    hooks = [len(vars(model)[name]) for name in ("_forward_hooks", "_forward_pre_hooks")]
    keys = list(model.state_dict())
    applied = Toy(model, tokenizer).attach()
    assert "generate" in vars(model)
    assert list(model.state_dict()) == keys
    applied.undo()
    assert "generate" not in vars(model)
    assert hooks == [len(vars(model)[name]) for name in ("_forward_hooks", "_forward_pre_hooks")]
    assert not model._forward_hooks_always_called


def test_who_ends_first_leaves_the_others_generate_in_place(model, tokenizer):
    """Two memories, and whoever reads prompts for a moment, wrap ``generate`` one around the other."""
    first = Toy(model, tokenizer).attach()
    own = vars(model)["generate"]
    second, third = (Toy(model, tokenizer).attach() for _ in range(2))
    third.undo()
    first.undo()
    assert "generate" in vars(model)
    assert vars(model)["generate"] is not own
    second.undo()
    assert "generate" not in vars(model)
    again = Toy(model, tokenizer).attach()
    Toy(model, tokenizer).attach().undo()
    said = generated(model, tokenizer, PROMPTS, use_cache=False, do_sample=False)
    assert said == generated(model, tokenizer, PROMPTS, use_cache=True, do_sample=False)
    again.undo()


def prefilled(model, tokenizer, prompts=PROMPTS[:2]):
    ids, mask = batch(tokenizer, prompts, "left")
    return model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values


def owned(toy, cache):
    return kept_in(cache, toy.routing.owner)


def test_a_copy_of_a_cache_has_a_copy_of_what_was_kept(model, tokenizer, toy):
    cache = prefilled(model, tokenizer)
    copied = copy.deepcopy(cache)
    assert owned(toy, copied) is not owned(toy, cache)
    owned(toy, copied).beside.said = torch.ones(2, 9)
    assert owned(toy, cache).beside.said.shape[1] == 0
    assert torch.equal(owned(toy, copied).decision, owned(toy, cache).decision)
    assert type(cache).__name__ == "DynamicCache"
    assert isinstance(copied, DynamicCache)


def test_what_was_kept_follows_the_rows_of_a_cache(model, tokenizer, toy):
    cache = prefilled(model, tokenizer, PROMPTS[:3])
    first, second, third = owned(toy, cache).decision.tolist()
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    assert owned(toy, cache).decision.tolist() == [third, first, second]
    cache.batch_repeat_interleave(2)
    assert owned(toy, cache).decision.tolist() == [third, third, first, first, second, second]
    cache.batch_select_indices(torch.tensor([4, 5]))
    assert owned(toy, cache).decision.tolist() == [second, second]
    assert not owned(toy, cache).inside
    cache.crop(-cache.get_seq_length())
    assert owned(toy, cache) is None


def test_what_was_kept_is_freed_with_its_cache(model, tokenizer, toy):
    cache = prefilled(model, tokenizer)
    kept, gone = weakref.ref(owned(toy, cache)), weakref.ref(cache)
    gc.disable()  # not by the collector of cycles, which may come late: caches are large
    try:
        del cache
        assert gone() is None
        assert kept() is None
    finally:
        gc.enable()


def test_a_cache_from_before_the_memory_is_outside(model, tokenizer):
    cache = prefilled(model, tokenizer, PROMPTS[:1])
    plain = copy.deepcopy(cache)
    ids = torch.tensor([[5]])
    before = model(input_ids=ids, past_key_values=plain).logits
    with Toy(model, tokenizer).attach():
        assert torch.equal(model(input_ids=ids, past_key_values=cache).logits, before)


def test_two_memories_keep_their_decisions_apart(model, tokenizer, toy):
    other = Toy(model, tokenizer)
    with other.attach():
        cache = prefilled(model, tokenizer)
        assert owned(toy, cache) is not owned(other, cache)


def test_a_pass_that_fails_is_not_taken_for_the_next_one(model, tokenizer, toy):
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        model(input_ids=torch.tensor([[10**6]]))
    assert toy.routing.passage is None
    assert len(generated(model, tokenizer, PROMPTS[:1], do_sample=False)) == 1


def test_drafts_behind_a_prompt_are_no_part_of_it(model, tokenizer, toy):
    # Prompt-lookup decoding reads prompt and guesses in one pass, and crops what was guessed wrong.
    how = {"do_sample": False}
    plain = [generated(model, tokenizer, [one], **how) for one in PROMPTS]
    fast = [
        generated(model, tokenizer, [one], prompt_lookup_num_tokens=3, **how) for one in PROMPTS
    ]
    assert fast == plain


def test_outputs_may_be_tuples(model, tokenizer, toy):
    ids, mask = batch(tokenizer, PROMPTS, "left")
    plain = model(input_ids=ids, attention_mask=mask)
    found = model(input_ids=ids, attention_mask=mask, return_dict=False)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], plain.logits)


def test_what_is_no_cache_of_transformers_is_refused():
    with pytest.raises(ModelError, match="use_cache=False"):
        keep((), Owner(), Kept(torch.tensor([1]), 3))
