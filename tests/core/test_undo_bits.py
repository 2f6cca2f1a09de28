"""A hundred edits come out in any order, and every bit of the model is the first one again."""

from random import Random

import pytest
import torch

from kedit_core.digests import digest, state_digest

EDITS = 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hundred_edits_undone_in_random_order_give_the_first_bits_again(
    edit_with, facts, family, dtype
):
    editor = edit_with("writer", family, dtype=dtype)
    before = state_digest(editor.model)
    seen = {before}
    deltas = []
    for request in facts(EDITS):
        deltas.append(editor.edit(request))
        seen.add(state_digest(editor.model))
    assert len(seen) == EDITS + 1
    order = Random(0).sample([delta.id for delta in deltas], EDITS)
    for count, chosen in enumerate(order, 1):
        editor.undo(chosen)
        assert len(editor.deltas) == EDITS - count
    assert state_digest(editor.model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edits_put_back_after_a_random_undo_give_the_same_bits_as_never_undone(
    edit_with, facts, family, dtype, tmp_path
):
    editor, straight = (edit_with("batcher", family, dtype=dtype) for _ in range(2))
    for start in range(0, 20, 4):
        editor.edit(facts(4, start=start), config={"dense": start == 8})
    editor.save(tmp_path / "all.kedit")
    straight.load(tmp_path / "all.kedit")
    for delta in Random(1).sample(editor.deltas, 5):
        editor.undo(delta.id)
    editor.load(tmp_path / "all.kedit")
    assert state_digest(editor.model) == state_digest(straight.model)


@pytest.mark.parametrize(
    ("one", "other"), [("writer", "batcher"), ("memory", "shrinking")], ids=str
)
def test_random_edits_and_undos_of_several_methods_never_lose_a_bit(
    edit_with, facts, logits, state_of, one, other
):
    editor = edit_with(None)
    before, first = logits(editor.model), state_of(editor.model)
    random, asked = Random(2), facts(40)
    wanted: dict[str, set[str]] = {}
    for place, request in enumerate(asked):
        chosen = "batcher" if place < 10 else random.choice([one, other])
        editor.edit(request, chosen)
        wanted.setdefault(chosen, set()).add(request.id)
        if random.random() < 0.4:
            gone = random.choice(sorted(set().union(*wanted.values())))
            editor.remove(gone)
            for names in wanted.values():
                names.discard(gone)
        held = {delta.method: set() for delta in editor.deltas}
        for delta in editor.deltas:
            held[delta.method] |= {one.id for one in delta.requests}
        assert held == {name: names for name, names in wanted.items() if names}
    while editor.deltas:
        editor.undo()
    assert state_of(editor.model) == first
    assert torch.equal(logits(editor.model), before)


def test_a_digest_tells_the_sign_of_zero_the_dtype_and_the_shape():
    plus = torch.zeros(2, 3)
    others = [-plus, plus.double(), plus.t(), plus.bfloat16(), plus[:, :2]]
    assert len({digest(one) for one in (plus, *others)}) == 6
    assert digest(torch.arange(6.0).reshape(2, 3).t()) == digest(
        torch.arange(6.0).reshape(2, 3).t().contiguous()
    )
