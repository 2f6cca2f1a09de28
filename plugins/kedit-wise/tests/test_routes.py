"""Routes: what prompts reach, and where they go."""

import pytest
import torch
from attrs import evolve

from kedit_core import EditRequest
from kedit_memory.kept import OUTSIDE
from kedit_wise.routes import Prompts, Router, named
from kedit_wise.shards import Shard, SideMatrix
from kedit_wise.updates import masked

WIDTH, OUT, EACH = 6, 5, 2


def memory(measure="match", choose="ratio", thresholds=(0.8, 0.8)):
    """Return two shards of two edits each, beside a projection of 6 inputs and 5 outputs."""
    chance = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    shards = [Shard(update=masked(draw(OUT, WIDTH), None), threshold=one) for one in thresholds]
    requests = [EditRequest(prompt=f"Edit {n} says", target_new="yes") for n in range(2 * EACH)]
    return SideMatrix(
        at="down",
        shards=shards,
        requests=requests,
        keys=draw(2 * EACH, 1, WIDTH),
        shard=torch.tensor([0, 0, 1, 1]),
        reached=torch.ones(2 * EACH),
        loud=torch.zeros(2 * EACH, dtype=torch.bool),
        settings={"measure": measure, "choose": choose},
    )


def router(held):
    return Router(held, torch.device("cpu"), torch.float64)


def prompts(*rows):
    """Return prompts of one length from rows (tokens, inputs)."""
    inputs = torch.stack(rows)
    return Prompts(inputs=inputs, real=torch.ones(inputs.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("edit", range(2 * EACH))
def test_a_key_matches_its_own_edit_wholly(edit):
    held = memory()
    noise = 0.01 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    read = prompts(torch.cat([noise, held.keys[edit]]))
    found = router(held).find(read)
    assert float(router(held).reached(read)[edit // EACH]) == pytest.approx(1.0)
    assert named(held, found)[0] == held.requests[edit].id
    assert float(found.probability[0]) > 0.5


def test_a_longer_move_matches_less_however_well_it_points():
    held = memory()
    once, thrice = prompts(held.keys[0]), prompts(3 * held.keys[0])
    assert float(router(held).reached(once)[0]) == pytest.approx(1.0)
    assert float(router(held).reached(thrice)[0]) < 1.0


@pytest.mark.parametrize("measure", ["max", "mean"])
def test_distances_are_those_between_side_and_main_output(measure):
    held = memory(measure)
    chance = torch.Generator().manual_seed(2)
    inputs = torch.randn(3, 4, WIDTH, generator=chance, dtype=torch.float64)
    real = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    base = torch.randn(OUT, WIDTH, generator=chance, dtype=torch.float64)
    found = router(held).reached(Prompts(inputs=inputs, real=real))
    for number, shard in enumerate(held.shards):
        side = base + shard.update.matrix
        for row in range(3):
            own = inputs[row][real[row]]
            apart = (own @ side.T - own @ base.T).norm(dim=1)
            wanted = apart.max() if measure == "max" else apart.mean()
            torch.testing.assert_close(found[number, row], wanted)


def test_a_batch_routes_as_its_rows_do_alone_whatever_stands_at_the_pads():
    held = memory()
    rows = [held.keys[n].repeat(3, 1) * torch.tensor([[0.1], [0.2], [1.0]]) for n in (0, 2)]
    together = prompts(*rows, 0.1 * rows[0])
    padded = Prompts(inputs=together.inputs.clone(), real=together.real.clone())
    padded.inputs[2, 0] = held.keys[1, 0]  # a pad that looks like an edit
    padded.real[2, 0] = False
    found = router(held).find(padded)
    assert found.shard.tolist() == [0, 1, OUTSIDE]
    for row in range(2):
        alone = router(held).find(together.some(torch.tensor([row])))
        assert alone.shard.tolist() == [found.shard[row]]


def test_from_the_threshold_on_a_prompt_is_in_scope_and_as_likely_as_not():
    read = prompts(memory("max").keys[0])
    exact = float(router(memory("max")).reached(read)[0])
    for threshold, shard in ((exact, 0), (exact * 1.001, OUTSIDE)):
        found = router(memory("max", thresholds=(threshold, 1e9))).find(read)
        assert found.shard.tolist() == [shard]
        assert (float(found.probability[0]) >= 0.5) == (shard == 0)


def test_no_prompt_is_routed_by_a_loud_key():
    held = memory()
    loud = evolve(held, loud=torch.tensor([True, False, False, False]))
    read = prompts(held.keys[0], held.keys[1], held.keys[2])
    assert named(held, router(held).find(read)) == [one.id for one in held.requests[:3]]
    assert named(loud, router(loud).find(read)) == [None, *(one.id for one in held.requests[1:3])]


def test_what_edits_match_is_told_apart_and_the_best_of_a_shard_is_what_it_reaches():
    held = memory()
    inputs = torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(3)).double()
    read = Prompts(inputs=inputs, real=torch.ones(5, 3, dtype=torch.bool))
    found = router(held).matched(read)
    assert found.shape == (2 * EACH, 5)
    torch.testing.assert_close(found.reshape(2, EACH, 5).amax(1), router(held).reached(read))
    own = router(held).matched(prompts(*held.keys))
    torch.testing.assert_close(own.diag(), torch.ones(2 * EACH).double())


def test_of_two_shards_in_scope_the_setting_chooses():
    held = memory("max")
    read = prompts(held.keys[0])
    far, near = router(held).reached(read)[:, 0].tolist()
    most = 0 if far > near else 1
    # The one that reaches less reaches its own threshold more times over.
    thresholds = (1.0, 0.01) if most == 0 else (0.01, 1.0)
    for choose, wanted in (("ratio", 1 - most), ("most", most)):
        found = router(memory("max", choose, thresholds)).find(read)
        assert found.shard.tolist() == [wanted]
