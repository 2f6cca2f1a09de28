"""Steps of training: what the loss is, that it is the same in parts, and what its share for locality does."""

from random import Random

import pytest
import torch

from kedit_core.testing import byte_level_tokenizer, tiny_model, trained_model
from kedit_core.untouched import at_rest
from kedit_memory.decoders import padded, shape_for
from kedit_memory.scope_facts import Facts, facts_in
from kedit_serac.config import CounterfactualTraining
from kedit_serac.counterfactual import edit_text, head_of, new_counterfactual
from kedit_serac.lessons import Lessons, Shard, distance
from kedit_serac.rows import Draws, Row, asked_of, stop_of

STOP = (7,)


@pytest.fixture(params=["gpt2", "llama"])
def base(request):
    with at_rest(model := tiny_model(request.param)):
        yield model


@pytest.fixture
def counterfactual(base):
    return new_counterfactual(shape_for(base, 2, None), 0).double().eval()


@pytest.fixture
def rows():
    """Return rows of unlike lengths that ask for a neighbour of their edit."""
    edits = (edit_text((5, 6, 7), (8,)), edit_text((9,), (10, 11, 12)), edit_text((13, 5), (6, 9)))
    asked = (((20, 21), (22, 23, 24)), ((25,), (26,)), ((27, 28, 29, 30), (31, 32)))
    return [
        Row(edit=edit, query=query, answer=answer)
        for edit, (query, answer) in zip(edits, asked, strict=True)
    ]


@pytest.fixture
def lessons(learned):
    """Return the maker of trainings in float64 on the facts of the contract."""
    tokenizer = byte_level_tokenizer(bos=True)

    def make(base, steps=8, seed=0, tokenizer=tokenizer, **settings):
        model = new_counterfactual(shape_for(base, 2, None), 0).to(base.dtype)
        asked = asked_of(tokenizer, Facts(facts=facts_in(learned)), wordings=3, chat=False, seed=0)
        changes = {"steps": steps, "batch": 12, **settings}
        made = Lessons(base, model, CounterfactualTraining(**changes), stop_of(tokenizer), seed)
        return made, Shard(own=asked[4:], earlier=(), name="facts"), asked[:4]

    return make


def log_probabilities(base, row):
    """Return what the base says at each token of a row's answer, behind the query alone."""
    ids = torch.tensor([[*row.query, *row.answer]])
    behind = slice(len(row.query) - 1, ids.shape[1] - 1)
    return base(input_ids=ids).logits[0, behind].log_softmax(-1)


@torch.no_grad()
def test_the_distance_is_the_kl_divergence_from_the_base_over_the_answer(
    base, counterfactual, rows
):
    for row, found in zip(rows, distance(base, counterfactual, rows), strict=True):
        text = padded([row.edit.then(row.query).then(row.answer)], left=False)
        said = head_of(base, counterfactual(base, text))[0].log_softmax(-1)
        said = said[-len(row.answer) - 1 : -1]  # (answer tokens, vocabulary)
        wanted = log_probabilities(base, row)
        each = (wanted.exp() * (wanted - said)).sum(-1)
        assert found > 1e-3
        torch.testing.assert_close(found, each.mean(), rtol=1e-10, atol=1e-12)


class Echo:
    """Says what the base says of a query, whatever edit stands before it."""

    def __init__(self, edits):
        self.edits = edits

    def __call__(self, base, text):
        found = torch.zeros(*text.codes.shape, base.config.hidden_size, dtype=base.dtype)
        for place, edit in enumerate(self.edits):
            query = text.codes[place, len(edit.codes) :][None]
            hidden = base.base_model(input_ids=query).last_hidden_state
            found[place, len(edit.codes) :] = hidden[0]
        return found


@torch.no_grad()
def test_who_says_what_the_base_says_is_at_no_distance(base, rows):
    found = distance(base, Echo([row.edit for row in rows]), rows)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_gradients_of_the_distance_reach_the_counterfactual_model_alone(base, counterfactual, rows):
    counterfactual.requires_grad_(True)
    with torch.enable_grad():
        distance(base, counterfactual, rows).sum().backward()
    assert all(one.grad is None for one in base.parameters())
    assert all(one.grad is not None for one in counterfactual.parameters())
    # Nor where somebody wants gradients of the base: what it says is a constant.
    base.requires_grad_(True)
    with torch.enable_grad():
        distance(base, counterfactual, rows).sum().backward()
    words = base.get_input_embeddings().weight  # the head too, where both are one
    assert all(one.grad is None for one in base.base_model.parameters() if one is not words)


def test_a_step_costs_cross_entropy_and_so_many_times_the_distance(base, lessons):
    def cost(locality):
        made, shard, _ = lessons(base, locality=locality)
        return made.step(shard, 7)

    none, one, three = cost(0.0), cost(1.0), cost(3.0)
    assert one > none
    assert three - one == pytest.approx(2 * (one - none), rel=1e-9)


def test_neighbours_count_once_copying_had_its_time(base, lessons):
    made, _, _ = lessons(base, locality=2.0)
    weights = [made.locality(number) for number in range(8)]
    assert weights == [0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_parts_of_a_step_add_up_to_it(base, lessons):
    whole, shard, _ = lessons(base)
    parts, _, _ = lessons(base, accumulate=5)
    for number in range(2, 6):
        assert whole.step(shard, number) == pytest.approx(parts.step(shard, number), rel=1e-9)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_neighbours_move_less_where_the_distance_counts(models, lessons):
    base, tokenizer = trained_model("llama", cache_folder=models)

    def moved(locality):
        with at_rest(base):
            made, shard, held = lessons(
                base, steps=50, tokenizer=tokenizer, locality=locality, lr=4e-3
            )
            for number in range(50):
                made.step(shard, number)
            rows = [
                Row(
                    edit=edit_text(one.wordings[0], one.targets[0][0]),
                    query=n.prompt,
                    answer=n.answer,
                )
                for one in held
                for n in one.neighbours
            ]
            with torch.no_grad():
                return float(distance(base, made.model, rows).mean())

    assert moved(1.0) < 0.8 * moved(0.0)


def test_made_up_wordings_are_asked_as_often_as_is_said(learned):
    told = Facts(facts=facts_in(learned))
    about = {"wordings": 3, "garbles": 4, "chat": False, "seed": 0}
    asked = asked_of(byte_level_tokenizer(bos=True), told, **about)
    known = {prompt for one in asked for prompt in one.wordings}
    garbled = {prompt for one in asked for prompt in one.garbled} - known
    assert len(garbled) > 2 * len(asked)

    def share(wanted):
        draws = Draws(random_targets=0.0, garbled=wanted, tokens=(), chance=Random(0))
        rows = draws.rows(asked, 400)
        return sum(row.query in garbled for row in rows) / len(rows)

    assert share(0.0) == 0
    assert 0.2 < share(0.3) < 0.35
    assert share(1.0) > 0.7
    plain = asked_of(byte_level_tokenizer(bos=True), told, wordings=3, chat=False, seed=0)
    rows = Draws(random_targets=0.0, garbled=1.0, tokens=(), chance=Random(0)).rows(plain, 9)
    assert all(row.query not in garbled for row in rows)


def test_by_default_the_distance_counts():
    assert CounterfactualTraining().locality > 0
