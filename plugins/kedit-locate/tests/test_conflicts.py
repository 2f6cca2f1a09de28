"""Edits that ask for different things at nearly the same key are found and named, and no others."""

import pytest
import torch

from kedit_core import Delta, Dense, EditRequest
from kedit_core.pieces import Projection
from kedit_locate.conflicts import NEAR, Conflicts, conflicts_of, conflicts_with, held_by
from kedit_locate.solver import Metric, factorise, ridge_update

OUT, IN = 5, 12


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(width=IN):
    features = drawn(400, width, seed=9) * torch.logspace(-1, 1, width, dtype=torch.float64)
    return features.T @ features / len(features)


def named(count, who="edit"):
    return [f"{who} {n}" for n in range(count)]


def pairs_of(found):
    return {(one.first, one.second) for one in found.closest}


def test_two_different_values_at_one_key_are_named_and_equal_ones_are_not():
    keys, residuals = drawn(6, 1, IN), drawn(6, OUT, seed=1)
    keys[4], keys[5] = keys[1], 2.5 * keys[2]
    residuals[4] = residuals[1]
    found = conflicts_of(named(6), keys, residuals, factorise(moment()))
    assert found.count == 1
    assert pairs_of(found) == {("edit 2", "edit 5")}
    assert found.closest[0].cosine == pytest.approx(1.0)


def test_nearness_is_measured_in_the_metric_and_not_by_eye():
    second = moment()
    values, vectors = torch.linalg.eigh(second)
    loud, other, quiet = vectors[:, -1], vectors[:, -2], vectors[:, 0]
    assert float(values[-1] / values[0]) > 1e3
    base, residuals = values[-1].sqrt() * loud, drawn(2, OUT, seed=1)
    small = 3 * values[0].sqrt()  # three times what is usual where keys vary least
    aside = torch.stack([base, base + small * quiet])[:, None]
    along = torch.stack([base, base + small * other])[:, None]
    metric = factorise(second)
    assert conflicts_of(named(2), along, residuals, metric).count == 1
    assert conflicts_of(named(2), aside, residuals, metric).count == 0
    assert conflicts_of(named(2), aside, residuals, Metric(cholesky=None)).count == 1


def test_writing_two_values_at_near_keys_disturbs_as_much_more_as_the_threshold_says():
    metric, wanted = Metric(cholesky=None), drawn(1, OUT, seed=1)
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    near = torch.tensor([[1.0, 0.0], [NEAR, (1 - NEAR**2) ** 0.5]], dtype=torch.float64)
    sizes = []
    for keys in (apart, near):
        made = ridge_update(keys, torch.cat([wanted, -wanted]), metric, 0.0)
        sizes.append(float((made.left @ made.right).norm() ** 2))
    assert sizes[1] / sizes[0] == pytest.approx(1 / (1 - NEAR))


def cosines_of(keys, others):
    """Return the highest cosine over columns, (edits, others), by plain formulas."""
    inverse = torch.linalg.inv(moment(keys.shape[2]))
    products = torch.einsum("icf,fg,jcg->cij", keys, inverse, others)
    own, theirs = (
        torch.einsum("icf,fg,icg->ci", some, inverse, some).sqrt() for some in (keys, others)
    )
    return (products / own[:, :, None] / theirs[:, None]).amax(0)


def assert_found(found, conflict, cosines, words, others):
    assert found.count == int(conflict.sum()) > 100
    best = torch.where(conflict, cosines, 0.0).flatten().topk(3)
    places = [divmod(n, conflict.shape[1]) for n in best.indices.tolist()]
    assert pairs_of(found) == {(others[other], words[own]) for own, other in places}
    assert [one.cosine for one in found.closest] == pytest.approx(best.values.tolist())


def test_many_edits_are_compared_as_every_pair_alone():
    keys, residuals = (
        drawn(1500, 2, 4),
        drawn(1500, OUT, seed=4),
    )  # in four dimensions some are near
    residuals[::7] = residuals[0]
    found = conflicts_of(named(1500), keys, residuals, factorise(moment(4)))
    norms, cosines = residuals.norm(dim=1), cosines_of(keys, keys)
    differ = torch.cdist(residuals, residuals) > 0.5 * torch.maximum(norms[:, None], norms)
    conflict = ((cosines > NEAR) & differ).tril(-1)
    assert_found(found, conflict, cosines, named(1500), named(1500))


def test_many_edits_are_compared_with_all_earlier_ones():
    keys, residuals, held = drawn(1500, 2, 4), drawn(1500, OUT, seed=4), drawn(300, 2, 4, seed=5)
    residuals[::7] = 0
    others, metric = named(300, "old"), factorise(moment(4))
    found = conflicts_with(others, held, named(1500), keys, residuals, metric)
    cosines = cosines_of(keys, held)
    conflict = (cosines > NEAR) & (residuals.norm(dim=1) > 0)[:, None]
    assert_found(found, conflict, cosines, named(1500), others)


def test_at_the_key_of_an_earlier_edit_any_change_is_a_conflict():
    keys, residuals = drawn(2, 1, IN), drawn(2, OUT, seed=1)
    held = drawn(3, 1, IN, seed=2)
    held[1] = keys[0]
    metric = factorise(moment())
    found = conflicts_with(named(3, "old"), held, named(2), keys, residuals, metric)
    assert pairs_of(found) == {("old 1", "edit 0")}
    residuals[0] = 0  # it holds already
    assert not conflicts_with(named(3, "old"), held, named(2), keys, residuals, metric).count


def test_conflicts_of_both_kinds_are_told_together():
    keys, residuals, metric = drawn(1, 1, IN).repeat(4, 1, 1), drawn(4, OUT), factorise(moment())
    among = conflicts_of(named(4), keys, residuals, metric)
    held = keys[:1] + 1e-3 * drawn(1, 1, IN, seed=8)
    earlier = conflicts_with(["old"], held, named(4), keys, residuals, metric)
    both = earlier.and_others(among)
    assert both.count == 6 + 4
    assert both.closest == among.closest  # equal keys are nearer
    assert earlier.and_others(Conflicts()) == earlier


def test_the_closest_are_named_and_the_others_counted():
    keys, residuals = drawn(1, 1, IN).repeat(4, 1, 1), drawn(4, OUT, seed=1)
    found = conflicts_of(named(4), keys, residuals, factorise(moment()))
    assert (found.count, len(found.closest)) == (6, 3)
    *sentences, last = found.warnings
    assert all("edit" in one and "nearly the same key" in one for one in sentences)
    assert last.startswith("3 further pairs")
    assert Conflicts().warnings == ()


def test_one_edit_alone_conflicts_with_nobody():
    assert conflicts_of(["only"], drawn(1, 2, IN), drawn(1, OUT), factorise(moment())).count == 0


@pytest.mark.parametrize("columns", [1, 2])
def test_the_keys_of_earlier_deltas_come_with_their_names(columns):
    down = Projection(path="mlp.down", in_features=IN, out_features=OUT, conv1d=False)
    requests = [
        EditRequest(prompt=f"The capital of {land} is", subject=land, target_new="Lima")
        for land in ("Norway", "Peru")
    ]
    parts = [Dense(weight=down.weight, update=torch.ones(OUT, IN))]
    kept = drawn(4, IN)
    delta = Delta(method="mine", requests=requests, parts=parts, carry={down.path: kept})
    other = Delta(method="mine", requests=requests[:1], parts=parts)
    words, held = held_by([delta, other], down, drawn(3, columns, IN, seed=1))
    assert ["Norway" in one and "Lima" in one for one in words] == [True, False]
    assert torch.equal(held, kept.reshape(2, 2, IN)[:, :columns])


def test_earlier_edits_with_fewer_keys_are_compared_by_their_last():
    down = Projection(path="mlp.down", in_features=IN, out_features=OUT, conv1d=False)
    request = EditRequest(prompt="Oslo is in", subject="Oslo", target_new="Peru")
    parts = [Dense(weight=down.weight, update=torch.ones(OUT, IN))]
    delta = Delta(method="mine", requests=[request], parts=parts, carry={down.path: drawn(1, IN)})
    _, held = held_by([delta], down, drawn(3, 2, IN, seed=1))
    assert torch.equal(held, drawn(1, 1, IN).expand(1, 2, IN))
