"""Values spread over layers: what is written is what was missing, and what sticks is left alone."""

from math import exp

import pytest
import torch
from attrs import evolve

from kedit_core import Delta, EditRequest, Weights
from kedit_core.digests import state_digest
from kedit_core.progress import Progress
from kedit_core.scoring import score_answers
from kedit_locate.asking import probabilities
from kedit_locate.config import Search
from kedit_locate.keys import columns_of, keys_of, written_by
from kedit_locate.plans import Plan, Wanted, notes_of
from kedit_locate.rows import edit_rows
from kedit_locate.sizes import noted_before
from kedit_locate.solver import Metric, factorise
from kedit_locate.spreading import write_until_it_sticks
from kedit_locate.sticking import far_enough, sticks_at
from kedit_locate.values import Values, search_values

PREFIXES = ("", "The capital. ", "Zoë plays. ")
FACTS = (
    EditRequest(prompt="{} plays the", subject="Toko Yasuda", target_new="guitar"),
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima"),
    EditRequest(prompt="We hear of {}", subject="the Space Needle", target_new="the city"),
)
SEARCH = Search(steps=8, lr=0.2, clamp=2.0, decay=0.0, kl=0.0, stop=0.0)


@pytest.fixture
def rows(tokenizer):
    return [edit_rows(tokenizer, fact, PREFIXES) for fact in FACTS]


def identity(count):
    return [Metric(cholesky=None)] * count


def plan_for(model, weights, layers=(0, 1), **changes):
    layout = weights.layout
    settings = {
        "downs": [layout.down_of(layer) for layer in layers],
        "metrics": identity(len(layers)),
        "site": layout.layer(layers[-1]).path,
        "penalty": 0.0,
        "columns": "half",
        "shares": "linear",
        "exact": True,
        "until": 1.0,
        "passes": 1,
    }
    settings |= changes
    return Plan(**{"crowded": settings["until"], **settings})


def searching(model, site, search=SEARCH):
    return lambda wanted: search_values(
        model, wanted.edits, site, wanted.bounded(search), Progress(), norm=wanted.norms
    )


def write(model, rows, previous=(), search=SEARCH, **changes):
    weights = Weights(model)
    plan = plan_for(model, weights, **changes)
    find = searching(model, plan.site, search)
    return write_until_it_sticks(model, rows, plan, find, previous, weights), plan, weights


def test_in_one_layer_with_the_bare_prompt_alone_the_site_puts_out_the_value(model, tokenizer):
    rows = [edit_rows(tokenizer, fact, ("",)) for fact in FACTS]
    found = []

    def find(wanted):
        found.append(
            search_values(model, wanted.edits, plan.site, SEARCH, Progress(), norm=wanted.norms)
        )
        return found[-1]

    weights = Weights(model)
    plan = plan_for(model, weights, layers=(1,))
    written = write_until_it_sticks(model, rows, plan, find, (), weights)
    with weights.temporarily(written.parts):
        now = written_by(model, [edit.rewrites[0] for edit in rows], plan.site)
    torch.testing.assert_close(now, found[0].value, rtol=1e-8, atol=1e-8)


def test_the_model_is_as_it_was_and_says_the_targets_with_the_updates_in(model, rows):
    before = state_digest(model)
    written, _, weights = write(model, rows, passes=3, until=0.9)
    assert state_digest(model) == before
    pairs = [(row.ids[: len(row.ids) - len(row.target) + 1], row.target) for row in firsts(rows)]
    plain = [one.nll for one in score_answers(model, pairs)]
    with weights.temporarily(written.parts):
        edited = [one.nll for one in score_answers(model, pairs)]
    assert sum(edited) < sum(plain) - 0.1  # random models take little from a lower layer


def firsts(rows):
    return [edit.rewrites[0] for edit in rows]


def test_what_sticks_is_not_written_again_and_the_rest_is(model, rows):
    once = sorted(write(model, rows)[0].probability)
    until = (once[-1] + once[-2]) / 2  # one of three sticks at once
    asked = []
    weights = Weights(model)
    plan = plan_for(model, weights, passes=2, until=until)

    def find(wanted):
        asked.append([rows.index(one) for one in wanted.edits])
        return searching(model, plan.site)(wanted)

    written = write_until_it_sticks(model, rows, plan, find, (), weights)
    assert [len(some) for some in asked] == [3, 2]
    assert [one["edits"] for one in written.passes] == [3, 2]
    easy = [n for n in range(3) if n not in asked[1]]
    assert written.probability[easy[0]] == pytest.approx(once[-1], rel=0.2)


def test_the_probability_is_the_mean_over_contexts_in_the_edited_model(model, rows):
    written, _, weights = write(model, rows)
    with weights.temporarily(written.parts):
        for edit, told in zip(rows, written.probability, strict=True):
            pairs = [(r.ids[: len(r.ids) - len(r.target) + 1], r.target) for r in edit.rewrites]
            nll = [one.nll for one in score_answers(model, pairs)]
            assert told == pytest.approx(exp(-sum(nll) / len(nll)))


def test_shares_are_even_or_front_loaded(model, rows):
    written = {
        shares: write(model, rows[:1], layers=(0, 1, 2), shares=shares)[0].parts
        for shares in ("linear", "root")
    }
    sizes = {name: matrix(parts[0]).norm() for name, parts in written.items()}
    # With three layers to go the first takes a third, or one over the root of three.
    assert float(sizes["root"] / sizes["linear"]) == pytest.approx(3**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("shares", "written"),
    [
        ("linear", [1 / 6] * 6),
        ("root", [0.408, 0.265, 0.164, 0.094, 0.049, 0.020]),
    ],
)
def test_where_layers_add_up_a_site_gets_what_was_missing_in_these_shares(
    tiny, tokenizer, shares, written
):
    model = tiny("gpt2", layers=6)
    for block in model.transformer.h:  # none hears what those below it write
        block.mlp.c_fc.weight.zero_()
        block.attn.c_proj.weight.zero_()
    rows = [edit_rows(tokenizer, FACTS[2], ("",))]
    found, plan, _ = write(model, rows, layers=range(6), shares=shares)
    keys = [keys_of(model, firsts(rows), down)[0] for down in plan.downs]
    told = [matrix(part) @ key for part, key in zip(found.parts, keys, strict=True)]
    whole = sum(told) if shares == "linear" else told[0] * 6**0.5  # the first takes its root of it
    got = [float(one @ whole / (whole @ whole)) for one in told]
    assert got == pytest.approx(written, abs=5e-4)


def matrix(part):
    return part.left @ part.right if hasattr(part, "left") else part.update


def delta_of(written, rows, method="mine"):
    return Delta(
        method=method, requests=FACTS[: len(rows)], parts=written.parts, carry=written.carry
    )


def test_the_carry_is_the_batchs_own_keys_in_the_model_as_it_ends_up(model, rows):
    written, plan, weights = write(model, rows, columns="both")
    with weights.temporarily(written.parts):
        for down in plan.downs:
            keys = columns_of(model, rows, down, "both")
            assert torch.equal(written.carry[down.path], keys.flatten(0, 1))
            assert len(keys.flatten(0, 1)) == 2 * len(rows)


@pytest.mark.parametrize("exact", [True, False])
def test_with_history_an_earlier_edit_keeps_what_was_written_for_it(model, rows, exact):
    weights = Weights(model)
    plan = plan_for(model, weights, layers=(1,), penalty=1e-3, exact=exact)
    find = searching(model, plan.site)
    first = write_until_it_sticks(model, rows[:1], plan, find, (), weights)
    held = delta_of(first, rows[:1])
    with weights.temporarily(first.parts):
        key = first.carry[plan.downs[0].path]  # (1, in_features)
        second = write_until_it_sticks(model, rows[1:], plan, find, (held,), weights)
    moved = (matrix(second.parts[0]) @ key.T).norm() / (matrix(first.parts[0]) @ key.T).norm()
    assert (float(moved) < 1e-2) is exact


def test_the_clamp_is_relative_to_the_unedited_model(model, rows):
    weights = Weights(model)
    plan = plan_for(model, weights)
    norms = []

    def find(wanted):
        norms.append(wanted.norms)
        return searching(model, plan.site)(wanted)

    first = write_until_it_sticks(model, rows, plan, find, (), weights)
    with weights.unchanged():
        weights.add(delta_of(first, rows))
        write_until_it_sticks(model, rows, plan, find, (), weights)
    assert torch.equal(norms[0], norms[1])
    states = written_by(model, firsts(rows), plan.site)
    torch.testing.assert_close(norms[0], states.norm(dim=1))


def test_half_is_half_the_bare_key_and_half_the_mean_behind_prefixes(model, rows):
    down = Weights(model).layout.down_of(1)
    (edit,) = rows[:1]
    bare, *prefixed = keys_of(model, edit.rewrites, down)
    own = columns_of(model, rows, down, "half")
    assert own.shape[:2] == (len(rows), 1)
    torch.testing.assert_close(own[0, 0], bare / 2 + sum(prefixed) / len(prefixed) / 2)


def test_both_are_the_subject_at_a_texts_start_and_the_mean_behind_prefixes(model, rows):
    down = Weights(model).layout.down_of(1)
    (edit,) = rows[1:2]
    (anchor,) = keys_of(model, [edit.anchor], down)
    prefixed = keys_of(model, edit.rewrites[1:], down)
    own = columns_of(model, rows, down, "both")[1]
    torch.testing.assert_close(own, torch.stack([anchor, prefixed.mean(0)]))


def test_a_key_depends_on_the_layers_below_and_not_on_its_own(model, rows):
    written, plan, weights = write(model, rows)
    first, second = plan.downs
    plain = {down: columns_of(model, rows, down, "half") for down in plan.downs}
    with weights.temporarily(written.parts[:1]):
        assert torch.equal(columns_of(model, rows, first, "half"), plain[first])
        assert not torch.equal(columns_of(model, rows, second, "half"), plain[second])


def test_conv1d_and_linear_hold_the_same_updates(rows, tiny):
    """A Linear that holds the transpose of a Conv1D reads and writes alike, so it is edited alike."""
    conv1d, linear = tiny("gpt2"), tiny("gpt2")
    for block in linear.transformer.h:
        weight, bias = block.mlp.c_proj.weight, block.mlp.c_proj.bias
        block.mlp.c_proj = torch.nn.Linear(*weight.shape).double()
        block.mlp.c_proj.weight.data, block.mlp.c_proj.bias.data = weight.data.T.clone(), bias.data
    linear.requires_grad_(False)
    ours, theirs = write(conv1d, rows)[0], write(linear, rows)[0]
    for part, other in zip(ours.parts, theirs.parts, strict=True):
        torch.testing.assert_close(matrix(part), matrix(other), rtol=1e-9, atol=1e-9)


def test_a_definite_metric_disturbs_other_keys_less_than_none(model, rows):
    generator = torch.Generator().manual_seed(0)
    width = Weights(model).layout.down_of(1).in_features
    others = torch.randn(400, width, generator=generator, dtype=torch.float64)
    others *= torch.logspace(-1, 1, width, dtype=torch.float64)
    metric = factorise(others.T @ others / len(others))
    disturbed = {
        name: matrix(write(model, rows, layers=(1,), metrics=[one])[0].parts[0]) @ others.T
        for name, one in (("moments", metric), ("identity", identity(1)[0]))
    }
    assert disturbed["moments"].norm() < disturbed["identity"].norm()


def test_values_say_of_each_edit_what_its_search_ended_with(model, rows):
    def find(wanted):
        found = searching(model, plan.site)(wanted)
        seen.append(found)
        return found

    seen: list[Values] = []
    weights = Weights(model)
    plan = plan_for(model, weights)
    written = write_until_it_sticks(model, rows, plan, find, (), weights)
    assert written.searched == seen[0].nll


def test_edits_that_ask_for_different_things_at_one_key_are_found(model, tokenizer):
    rival = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="the city")
    rows = [edit_rows(tokenizer, fact, PREFIXES) for fact in (*FACTS, rival)]
    written, _, _ = write(model, rows, penalty=1.0)
    assert written.conflicts.count == 1
    (pair,) = written.conflicts.closest
    assert "'The capital of Norway is' → 'Lima'" in pair.first
    assert "'The capital of Norway is' → 'the city'" in pair.second
    assert write(model, rows[:3], penalty=1.0)[0].conflicts.count == 0


def test_an_earlier_edit_of_the_same_key_is_found_whether_its_keys_count_or_not(model, tokenizer):
    rows = [edit_rows(tokenizer, fact, PREFIXES) for fact in FACTS]
    first, _, _ = write(model, rows, penalty=1.0)
    rival = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="the city")
    again = [edit_rows(tokenizer, rival, PREFIXES)]
    weights = Weights(model)
    with weights.temporarily(first.parts):
        for exact in (True, False):
            plan = plan_for(model, weights, penalty=1.0, exact=exact)
            held = (delta_of(first, rows),)
            find = searching(model, plan.site)
            second = write_until_it_sticks(model, again, plan, find, held, weights)
            (pair,) = second.conflicts.closest
            assert ("Lima" in pair.first, "the city" in pair.second) == (True, True)


def test_notes_tell_how_well_posed_the_systems_were(model, rows):
    metric = factorise(
        torch.eye(Weights(model).layout.down_of(0).in_features).diag().cumsum(0).diag()
    )
    written, plan, _ = write(model, rows, penalty=1.0, passes=2, metrics=[metric, metric])
    told = notes_of(plan, written)["condition"]
    assert told["moments"] == [metric.condition, metric.condition]
    assert metric.condition == pytest.approx(len(metric.cholesky), rel=0.2)
    assert len(told["systems"]) == 2
    assert all(one > 1 for one in told["systems"])


def test_notes_tell_how_each_search_was_cut(model, rows):
    written, plan, _ = write(model, rows, passes=2)
    told = notes_of(plan, written)["sizes"]
    assert [sum(count * edits for count, edits, _ in lots) for lots in told] == [3, 3]
    assert list(noted_before({"sizes": told}, 1)) == list(written.sizes[1])


def test_progress_is_told_of_every_layer_and_every_pass(model, rows, diary):
    weights = Weights(model)
    plan = plan_for(model, weights, passes=2)
    find = searching(model, plan.site)
    write_until_it_sticks(model, rows, plan, find, (), weights, diary)
    each = [*["reading keys", "solving"] * 2, "asking for the targets"]
    assert diary.tasks == each * 2


def test_among_many_keys_less_is_wanted_and_searches_end_earlier(model, rows):
    """A layer has room for 24 keys: 3 of this batch fill an eighth, with 21 earlier ones it is full."""
    weights = Weights(model)
    plan = plan_for(model, weights, until=0.95, crowded=0.5, passes=2, penalty=1.0)
    wanted: list[Wanted] = []

    def find(one):
        wanted.append(one)
        return searching(model, plan.site)(one)

    alone = write_until_it_sticks(model, rows, plan, find, (), weights)
    assert alone.until == sticks_at(0.95, 0.5, 3 / 24)
    assert wanted[0].stop == far_enough(alone.until)
    held = delta_of(alone, rows)
    earlier = [evolve(held, carry={path: keys.repeat(7, 1) for path, keys in held.carry.items()})]
    crowded = write_until_it_sticks(model, rows, plan, find, earlier, weights)
    assert crowded.until == pytest.approx(0.5, abs=1e-12)
    assert notes_of(plan, crowded)["until"] == crowded.until
    assert [one.number for one in wanted if one.number == 0] == [0, 0]
    assert wanted[-1].bounded(SEARCH) == evolve(SEARCH, stop=far_enough(crowded.until))


def test_one_write_is_searched_for_to_the_end_that_it_is_told(model, rows):
    ends = []
    weights = Weights(model)
    plan = plan_for(model, weights, until=0.9, crowded=0.5, passes=1)

    def find(wanted):
        ends.append(wanted.stop)
        return searching(model, plan.site)(wanted)

    write_until_it_sticks(model, rows, plan, find, (), weights)
    assert ends == [None]


def test_beside_earlier_edits_an_update_is_shorter_and_is_asked_for_as_written(model, rows):
    alone, _, weights = write(model, rows[:1], shrink=0.5, penalty=1.0)
    whole, *_ = write(model, rows[:1], penalty=1.0)
    assert same_parts(alone.parts, whole.parts)  # nothing is in force yet
    earlier = [delta_of(alone, rows[:1])]
    whole, *_ = write(model, rows[1:], previous=earlier, penalty=1.0)
    short, *_ = write(model, rows[1:], previous=earlier, penalty=1.0, shrink=0.5)
    for less, full in zip(short.parts, whole.parts, strict=True):
        assert torch.equal(less.left, 0.5 * full.left)
        assert torch.equal(less.right, full.right)
    assert short.probability != whole.probability
    with weights.temporarily(short.parts):
        assert short.probability == probabilities(model, rows[1:], Progress())


def same_parts(some, others):
    return all(
        torch.equal(one.left, other.left) and torch.equal(one.right, other.right)
        for one, other in zip(some, others, strict=True)
    )
