"""Training of a shard: under its mask alone, and as a training of the whole model would do it."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from kedit_core import Editor, EditRequest, encode
from kedit_core.testing import tiny_model
from kedit_core.tokens import encode_target
from kedit_wise.config import Descent
from kedit_wise.masks import drawn
from kedit_wise.shards import side_matrix_of
from kedit_wise.updates import Masked

IRRELEVANT = "We sail at dawn."
SMALL = {"lr": 0.05, "steps": 5, "quiet": 0.01, "loud": 0.5, "margin": 0.3, "clamp": None}


def settings(texts, **descent):
    return {
        "writer": "descent",
        "descent": {**SMALL, **descent},
        "routes": {"measure": "mean", "threshold": "activation", "texts": texts, "tokens": 32},
        "context": {"count": 2, "lengths": [4]},
    }


@pytest.fixture(params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture
def new_editor(family, tokenizer, tmp_path):
    """Return the maker of editors that train shards of a float64 model: ``new_editor(mask=…)``."""
    texts = tmp_path / "irrelevant.txt"
    texts.write_text(f"{IRRELEVANT}\n")

    def make(shards=None, **descent):
        config = {**settings(str(texts), **descent), **({"shards": shards} if shards else {})}
        return Editor(tiny_model(family), tokenizer, "wise", config)

    return make


def update_of(delta, shard=0):
    return side_matrix_of(delta).shards[shard].update.matrix


def weight_of(model, path):
    module = model.get_submodule(path)
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def test_entries_outside_the_mask_are_the_bases_after_any_number_of_steps(new_editor, facts):
    editor = new_editor(steps=12, decay=0.1, clamp=0.5)
    for fact in facts:
        delta = editor.edit(fact)
    update = side_matrix_of(delta).shards[0].update
    assert isinstance(update, Masked)
    mask = drawn(update.shape, 0.2, 0, seed=0, disjoint=True)
    assert len(update.values) == int(mask.sum())
    assert not update.matrix[~mask].any()
    assert bool(update.matrix[mask].any())
    base = weight_of(editor.model, side_matrix_of(delta).at)
    side = base + update.matrix
    assert torch.equal(side[~mask], base[~mask])


def test_two_shards_never_touch_one_entry(new_editor, facts):
    editor = new_editor(shards={"size": 1})
    delta = editor.edit(facts[:2])
    first, second = (update_of(delta, shard) != 0 for shard in (0, 1))
    assert bool(first.any())
    assert bool(second.any())
    assert not bool((first & second).any())


def test_shards_that_share_no_entry_keep_all_they_wrote_when_ties_merges_them(new_editor, facts):
    apart = new_editor(shards={"size": 1}).edit(facts[:2])
    merging = {"size": 1, "every": 2, "merge": "ties"}
    together = side_matrix_of(new_editor(shards=merging).edit(facts[:2]))
    assert len(together.shards) == 1
    found = together.shards[0].update.matrix
    torch.testing.assert_close(found, update_of(apart, 0) + update_of(apart, 1))


def test_earlier_edits_of_a_shard_train_along_when_asked_to(new_editor, facts):
    deltas = []
    for replay in (0, 1):
        editor = new_editor(replay=replay)
        editor.edit(facts[0])
        deltas.append(editor.edit(facts[1]))
    assert not torch.equal(update_of(deltas[0]), update_of(deltas[1]))


def test_edits_without_a_subject_can_be_trained(new_editor):
    request = EditRequest(prompt="The sun rises in the", target_new="west")
    assert bool(update_of(new_editor().edit(request)).any())


def test_entries_stay_within_their_bound(new_editor, facts):
    update = update_of(new_editor(lr=1.0, clamp=0.01).edit(facts[0]))
    assert float(update.abs().max()) == 0.01


@pytest.mark.parametrize("mask", [0.2, 1.0])
def test_training_from_the_edited_block_on_is_training_the_whole_model(new_editor, facts, mask):
    editor = new_editor(mask=mask, decay=1e-3, clamp=0.2, irrelevant=2)  # the same one twice
    delta = editor.edit(facts[:2])
    wanted, losses = trained_whole(editor, facts[:2], side_matrix_of(delta), mask)
    torch.testing.assert_close(update_of(delta), wanted, rtol=1e-9, atol=1e-12)
    noted = delta.provenance.notes["writes"][0]["loss"]
    assert list(noted) == pytest.approx(losses, rel=1e-9)


def mean_above(values):
    """Return the mean of the values above zero, zero where there is none."""
    above = [value for value in values if value > 0]
    return torch.stack(above).mean() if above else torch.zeros_like(values[0])


def trained_whole(editor, requests, memory, share):
    """Return update and losses of the same training by whole forwards, every row by itself."""
    own = Descent(**{**SMALL, "decay": 1e-3, "clamp": 0.2})
    model, tokenizer = editor.model, editor.tokenizer
    editor.undo()
    module = model.get_submodule(memory.at)
    base = weight_of(model, memory.at)
    mask = drawn(tuple(base.shape), share, 0, seed=0, disjoint=True)
    mask = torch.ones_like(base, dtype=torch.bool) if mask is None else mask
    update = torch.zeros_like(base, requires_grad=True)
    irrelevant = encode(tokenizer, [IRRELEVANT])[0].ids
    losses = []

    def forward(ids, prompt):
        """Return logits (tokens, vocabulary) and the mean distance over the prompt."""
        seen = []

        def beside(_, args, output):
            shift = args[0] @ update.T
            seen.append(shift[0, :prompt].norm(dim=-1).mean())
            return output + shift

        handle = module.register_forward_hook(beside)
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        handle.remove()
        return logits, seen[0]

    for _ in range(own.steps):
        total = torch.zeros((), dtype=update.dtype)
        for request in requests:
            nll, inside = [], []
            for prefix in memory.settings["prefixes"]:
                (read,) = encode(tokenizer, [prefix + request.prompt])
                target = encode_target(tokenizer, read, request.joiner + request.target_new)
                logits, distance = forward(read.ids + target[:-1], len(read.ids))
                said = logits[len(read.ids) - 1 :]
                nll.append(cross_entropy(said, torch.tensor(target)))
                inside.append(distance)
            outside = [forward(irrelevant, len(irrelevant))[1]]
            between = [far - near + own.margin for far in outside for near in inside]
            total = total + torch.stack(nll).mean() + mean_above(between)
            total = total + mean_above([far - own.quiet for far in outside])
            total = total + mean_above([own.loud - near for near in inside])
        losses.append(float(total.detach()) / len(requests))
        (gradient,) = torch.autograd.grad(total, update)
        with torch.no_grad():
            update -= own.lr * (mask * (gradient + own.decay * (base + update)))
            update.clamp_(-own.clamp, own.clamp)
    return update.detach(), losses
