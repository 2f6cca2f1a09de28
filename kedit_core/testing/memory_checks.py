"""What a model with a memory beside it must say to prompts in a batch, in scope of an edit and out of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from kedit_core.digests import digest
from kedit_core.editor import Editor
from kedit_core.testing.bench import Bench, logits_of, same_bits
from kedit_core.testing.facts import facts
from kedit_core.tokens import encode

_TOKENS = 6
_OF_EACH = 4
_CLOSE = 1e-3
"""How far logits may move with the pads of a batch, which change the order of sums."""

_DECODERS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "beam 4": {"num_beams": 4},
    "sampling": {"chance": True},
}
_WAYS: Mapping[str, Mapping[str, Any]] = {
    f"{name}, {'a' if use_cache else 'no'} cache": {**how, "use_cache": use_cache}
    for name, how in _DECODERS.items()
    for use_cache in (True, False)
}


class MemoryChecks:
    """Checks of how sequences are routed; skipped where an edit changes weights or has no scope."""

    def test_a_mixed_batch_is_answered_as_its_rows_are(self, bench: Bench) -> None:
        """A batch of prompts in scope and out of it is answered as each is alone, whatever decodes it."""
        editor, inside, outside = _mixed(bench)
        prompts = [one for pair in zip(inside, outside, strict=True) for one in pair]
        for name, how in _WAYS.items():
            together = _generated(editor, prompts, **how)
            with editor.original():
                before = _generated(editor, prompts, **how)
            assert together != before, "the memory answers none of the prompts in its scope"
            for place in range(1, len(prompts), 2):
                assert together[place] == before[place], (
                    f"{prompts[place]!r} is out of scope and is answered otherwise in a batch ({name})"
                )
            for place, prompt in enumerate(prompts):
                (alone,) = _generated(editor, [prompt], **how)
                assert together[place] == alone, (
                    f"{prompt!r} is answered otherwise in a batch ({name})"
                )

    def test_pads_on_either_side_change_no_answer(self, bench: Bench) -> None:
        """Padded on the left or on the right, a row's logits are what they are without pads."""
        editor, inside, outside = _mixed(bench)
        prompts = [*inside, *outside]
        each = _alone(editor, prompts)
        for side in ("left", "right"):
            ids, mask = _padded(editor, prompts, side)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.no_grad():
                found = editor.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions
                ).logits
            for prompt, said, real, alone in zip(prompts, found, mask.bool(), each, strict=True):
                off = float((said[real] - alone).abs().max())
                assert off <= _CLOSE, f"padded on the {side}, {prompt!r} is answered {off:.4f} off"

    def test_generation_is_forward_step_by_step(self, bench: Bench) -> None:
        """``generate`` says what forward passes say one token after the other."""
        editor, inside, outside = _mixed(bench)
        for prompt in (inside[0], outside[0]):
            (said,) = _generated(editor, [prompt])
            ids, _ = _padded(editor, [prompt], "left")
            cache, stepped = None, []
            for _ in range(_TOKENS):
                with torch.no_grad():
                    out = editor.model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
                stepped.append(int(ids))
            assert said == stepped, f"generate continues {prompt!r} otherwise than forward passes"

    def test_out_of_scope_the_answer_is_the_models_own(self, bench: Bench) -> None:
        """Out of scope the logits are bit for bit those of the model without the memory."""
        editor, _, outside = _mixed(bench)
        found = logits_of(editor, outside)
        with editor.original():
            own = logits_of(editor, outside)
        for prompt, same in zip(outside, same_bits(found, own), strict=True):
            assert same, f"{prompt!r} is out of scope and is not answered bit for bit as before"

    def test_seeded_sampling_draws_the_same_again(self, bench: Bench) -> None:
        """With a seed, a batch is sampled the same twice, and out of scope as without the memory."""
        editor, inside, outside = _mixed(bench)
        prompts = [*inside, *outside]
        first, again = (_sampled(editor, prompts) for _ in range(2))
        assert first == again, "the same seed draws other tokens"
        with editor.original():
            own = _sampled(editor, prompts)
        count = len(inside)
        assert first[count:] == own[count:], "out of scope the same seed draws other tokens"


def _mixed(bench: Bench) -> tuple[Editor, list[str], list[str]]:
    """Return an editor with some edits in force, their prompts, and as many that none is met by."""
    if not bench.candidate.remembers:
        pytest.skip("the method changes weights and routes nothing")
    if not bench.candidate.implements("scope_classify"):
        pytest.skip("the method has no scope_classify")
    editor, delta = bench.several
    prompts = [request.prompt for request in delta.requests]
    edited = set(prompts)
    strange = [one.prompts[0] for one in facts() if one.prompts[0] not in edited]
    found = bench.scope(editor, delta, [*prompts, *strange]).requests
    inside = [one for one, met in zip(prompts, found, strict=False) if met is not None]
    outside = [one for one, met in zip(strange, found[len(prompts) :], strict=True) if met is None]
    assert min(len(inside), len(outside)) >= _OF_EACH, (
        f"{len(inside)} of {len(prompts)} edits are met by their own prompts, and {len(outside)} of "
        f"{len(strange)} other prompts are out of scope; {_OF_EACH} of each are needed"
    )
    return editor, inside[:_OF_EACH], outside[-_OF_EACH:]


def _padded(editor: Editor, prompts: Sequence[str], side: str) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, (prompts, tokens) each."""
    rows = [list(one.ids) for one in encode(editor.tokenizer, prompts)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        own = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[place, own], mask[place, own] = torch.tensor(row), 1
    return ids, mask


@torch.no_grad()
def _alone(editor: Editor, prompts: Sequence[str]) -> list[Tensor]:
    """Return the logits of each prompt, read by itself without a mask, (tokens, vocabulary)."""
    rows = [torch.tensor([one.ids]) for one in encode(editor.tokenizer, prompts)]
    return [editor.model(input_ids=row).logits[0] for row in rows]


class _Dice(LogitsProcessor):
    """Noise by which the likeliest token is a sample (Gumbel, 1954), drawn by the last tokens of each row.

    So a row is sampled alike alone and in any batch, which draws from one stream of numbers are not.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores)
        for row, ids in enumerate(input_ids[:, -3:]):
            seed = int(digest(ids.cpu())[:12], 16)
            noise[row].exponential_(generator=torch.Generator().manual_seed(seed))
        return scores.log_softmax(-1) - noise.log()


def _generated(
    editor: Editor, prompts: Sequence[str], *, chance: bool = False, **how: Any
) -> list[list[int]]:
    """Return the tokens that follow each prompt, greedily or drawn by its own tokens."""
    dice = LogitsProcessorList([_Dice()]) if chance else None
    return _continued(editor, prompts, do_sample=False, logits_processor=dice, **how)


def _sampled(editor: Editor, prompts: Sequence[str]) -> list[list[int]]:
    torch.manual_seed(0)
    return _continued(editor, prompts, do_sample=True, top_k=0)


def _continued(editor: Editor, prompts: Sequence[str], **how: Any) -> list[list[int]]:
    model: Any = editor.model
    ids, mask = _padded(editor, prompts, "left")
    fixed = {"max_new_tokens": _TOKENS, "pad_token_id": 0, "eos_token_id": None}
    said = model.generate(ids, attention_mask=mask, **fixed, **how)
    found: list[list[int]] = said[:, ids.shape[1] :].tolist()
    return found
