"""The linear step: what its solution must satisfy, whatever the numbers."""

import pytest
import torch

from kedit_core import KeditError
from kedit_locate.solver import Metric, factorise, rank_one, ridge_update, shared_shift

OUT, IN = 5, 12


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def second_moment(width=IN, seed=9):
    """Return C of features with unequal scales: cond(C) near 1e4."""
    features = drawn(400, width, seed=seed) * torch.logspace(-1, 1, width, dtype=torch.float64)
    return features.T @ features / len(features)


def product(factors):
    return factors.left @ factors.right


def disturbance(update, moment):
    return float(torch.trace(update @ moment @ update.T))


def objective(update, keys, residuals, moment, penalty):
    """Return ‖ΔK - R‖² + λ tr(ΔCΔᵀ); requests are rows."""
    return float(((keys @ update.T - residuals) ** 2).sum()) + penalty * disturbance(update, moment)


def test_the_rank_one_update_meets_its_residual():
    key, residual = drawn(IN), drawn(OUT, seed=1)
    update = product(rank_one(key, residual, factorise(second_moment())))
    torch.testing.assert_close(update @ key, residual, rtol=1e-12, atol=1e-12)


def test_no_other_update_that_meets_the_residual_disturbs_less():
    moment, key, residual = second_moment(), drawn(IN), drawn(OUT, seed=1)
    update = product(rank_one(key, residual, factorise(moment)))
    least = disturbance(update, moment)
    for seed in range(20):
        other = drawn(OUT, IN, seed=seed)
        other -= torch.outer(other @ key, key) / (key @ key)  # so that other @ key is zero
        for size in (1e-3, 1.0):
            assert disturbance(update + size * other, moment) > least


def test_the_rank_one_update_times_the_moment_is_proportional_to_the_key():
    moment, key, residual = second_moment(), drawn(IN), drawn(OUT, seed=1)
    rows = product(rank_one(key, residual, factorise(moment))) @ moment
    expected = torch.outer(residual, key) / (key @ torch.linalg.solve(moment, key))
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)


def test_along_another_key_gives_the_original_formula_and_still_meets_the_residual():
    moment, key, mean, residual = second_moment(), drawn(IN), drawn(IN, seed=2), drawn(OUT, seed=1)
    update = product(rank_one(key, residual, factorise(moment), along=mean))
    direction = torch.linalg.solve(moment, mean)
    direction = direction / direction.norm()
    expected = torch.outer(residual / (key @ direction), direction)
    torch.testing.assert_close(update, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(update @ key, residual, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("requests", [1, 4, IN, IN + 7])
@pytest.mark.parametrize("penalty", [0.3, 40.0])
def test_the_gradient_vanishes_at_the_ridge_solution(requests, penalty):
    moment, keys, residuals = second_moment(), drawn(requests, IN), drawn(requests, OUT, seed=1)
    update = product(ridge_update(keys, residuals, factorise(moment), penalty))
    pull = (keys @ update.T - residuals).T @ keys  # (out_features, in_features)
    gradient = penalty * update @ moment + pull
    assert gradient.norm() < 1e-11 * (residuals.T @ keys).norm()


def test_every_step_away_from_the_ridge_solution_costs_more():
    moment, keys, residuals = second_moment(), drawn(4, IN), drawn(4, OUT, seed=1)
    update = product(ridge_update(keys, residuals, factorise(moment), 2.0))
    best = objective(update, keys, residuals, moment, 2.0)
    for seed in range(20):
        step = 1e-2 * drawn(OUT, IN, seed=seed)
        assert objective(update + step, keys, residuals, moment, 2.0) > best


def test_a_vanishing_penalty_meets_every_residual():
    keys, residuals = drawn(4, IN), drawn(4, OUT, seed=1)
    metric = factorise(second_moment())
    exact = product(ridge_update(keys, residuals, metric, 0.0))
    torch.testing.assert_close(keys @ exact.T, residuals, rtol=1e-10, atol=1e-10)
    nearly = product(ridge_update(keys, residuals, metric, 1e-9))
    torch.testing.assert_close(nearly, exact, rtol=1e-6, atol=1e-8)


def test_one_ridge_edit_is_a_shrunken_rank_one_edit():
    moment, key, residual, penalty = second_moment(), drawn(IN), drawn(OUT, seed=1), 3.0
    metric = factorise(moment)
    reach = float(key @ torch.linalg.solve(moment, key))
    ridge = product(ridge_update(key[None], residual[None], metric, penalty))
    rome = product(rank_one(key, residual, metric))
    torch.testing.assert_close(ridge, rome * reach / (penalty + reach), rtol=1e-10, atol=1e-12)


def test_a_huge_penalty_leaves_only_the_first_order():
    moment, keys, residuals = second_moment(), drawn(4, IN), drawn(4, OUT, seed=1)
    update = product(ridge_update(keys, residuals, factorise(moment), 1e9))
    first = residuals.T @ keys @ torch.linalg.inv(moment) / 1e9
    torch.testing.assert_close(update, first, rtol=1e-5, atol=0)


def test_the_ridge_update_is_linear_in_residuals_and_does_not_mind_the_order():
    keys, residuals = drawn(4, IN), drawn(4, OUT, seed=1)
    metric = factorise(second_moment())
    update = product(ridge_update(keys, residuals, metric, 2.0))
    assert not product(ridge_update(keys, 0 * residuals, metric, 2.0)).any()
    torch.testing.assert_close(product(ridge_update(keys, 3 * residuals, metric, 2.0)), 3 * update)
    order = [2, 0, 3, 1]
    permuted = product(ridge_update(keys[order], residuals[order], metric, 2.0))
    torch.testing.assert_close(permuted, update, rtol=1e-10, atol=1e-12)


def test_the_same_key_twice_meets_in_the_middle():
    key, residuals = drawn(IN), drawn(2, OUT, seed=1)
    metric = factorise(second_moment())
    twice = product(ridge_update(torch.stack([key, key]), residuals, metric, 2.0))
    middle = product(ridge_update(key[None], residuals.mean(0)[None], metric, 1.0))
    torch.testing.assert_close(twice, middle, rtol=1e-10, atol=1e-12)


def test_without_a_moment_the_metric_is_the_identity():
    key, residual = drawn(IN), drawn(OUT, seed=1)
    update = product(rank_one(key, residual, Metric(cholesky=None)))
    torch.testing.assert_close(update, torch.outer(residual, key) / (key @ key))


def test_square_problems_are_not_transposed():
    moment, key, residual = second_moment(OUT), drawn(OUT), drawn(OUT, seed=1)
    update = product(rank_one(key, residual, factorise(moment)))
    torch.testing.assert_close(update @ key, residual, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(update.T @ key, residual)


def test_float32_keys_are_solved_in_float64_and_come_back_as_float32():
    moment, key, residual = second_moment(), drawn(IN), drawn(OUT, seed=1)
    metric = factorise(moment)
    single = rank_one(key.float(), residual.float(), metric)
    assert single.left.dtype == single.right.dtype == torch.float32
    exact = product(rank_one(key.float().double(), residual.float().double(), metric))
    torch.testing.assert_close(product(single).double(), exact, rtol=1e-5, atol=1e-6)


def test_a_definite_moment_gets_no_ridge():
    moment = second_moment()
    metric = factorise(moment)
    assert metric.ridge == 0
    torch.testing.assert_close(metric.cholesky @ metric.cholesky.T, moment)


@pytest.mark.parametrize("seed", range(5))
def test_with_fewer_tokens_than_features_a_small_ridge_is_added_and_recorded(seed):
    features = drawn(IN // 2, IN, seed=seed)
    moment = (features.T @ features / len(features)).float()  # as it is kept
    metric = factorise(moment)
    assert 0 < metric.ridge <= 1e-5
    lifted = moment.double() + metric.ridge * moment.double().diagonal().mean() * torch.eye(IN)
    torch.testing.assert_close(metric.cholesky @ metric.cholesky.T, lifted)
    key, residual = drawn(IN, seed=7), drawn(OUT, seed=8)
    update = product(rank_one(key, residual, metric))
    torch.testing.assert_close(update @ key, residual, rtol=1e-6, atol=1e-6)


def test_dead_features_get_a_ridge_too():
    moment = second_moment()
    moment[3], moment[:, 3] = 0, 0
    metric = factorise(moment)
    assert metric.ridge > 0
    assert bool(torch.isfinite(metric.whiten(drawn(2, IN))).all())


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_a_moment_that_is_none_is_refused_in_words(value):
    with pytest.raises(KeditError, match="second moment"):
        factorise(value * torch.eye(3))


@pytest.mark.parametrize("earlier", [0, 3, IN, IN + 5])
@pytest.mark.parametrize("requests", [1, 4, IN, IN + 7])
def test_every_path_of_the_solver_gives_the_closed_form(requests, earlier):
    moment, keys, past = second_moment(), drawn(requests, IN), drawn(earlier, IN, seed=3)
    residuals, penalty = drawn(requests, OUT, seed=1), 0.7
    system = penalty * moment + past.T @ past + keys.T @ keys
    expected = residuals.T @ keys @ torch.linalg.inv(system)
    # Few keys are solved by a system of their own size, many by one as large as there are features.
    update = product(ridge_update(keys, residuals, factorise(moment), penalty, past))
    torch.testing.assert_close(update, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 2), (IN, 1, 4)])
def test_a_stream_with_history_is_the_one_batch_of_all_its_edits(sizes):
    moment, penalty = second_moment(), 2.5
    keys, values = drawn(sum(sizes), IN), drawn(sum(sizes), OUT, seed=1)
    start, metric = drawn(OUT, IN, seed=5), factorise(moment)
    at_once = start + product(ridge_update(keys, values - keys @ start.T, metric, penalty))
    weight, done, forgetful = start, 0, start
    for size in sizes:
        own, wanted = keys[done : done + size], values[done : done + size]
        step = ridge_update(own, wanted - own @ weight.T, metric, penalty, keys[:done])
        weight = weight + product(step)
        step = ridge_update(own, wanted - own @ forgetful.T, metric, penalty)
        forgetful = forgetful + product(step)
        done += size
    torch.testing.assert_close(weight, at_once, rtol=1e-8, atol=1e-9)
    assert (forgetful - at_once).norm() > 1e-2 * (at_once - start).norm()


def test_a_linear_step_that_keeps_history_has_no_gradient_left():
    moment, past = second_moment(), drawn(6, IN, seed=3)
    keys, residuals, penalty = drawn(4, IN), drawn(4, OUT, seed=1), 0.4
    update = product(ridge_update(keys, residuals, factorise(moment), penalty, past))
    gradient = update @ (penalty * moment + past.T @ past)
    gradient = gradient + (keys @ update.T - residuals).T @ keys
    assert gradient.norm() < 1e-11 * (residuals.T @ keys).norm()


def test_where_there_are_more_edits_than_outputs_the_update_itself_is_solved_for():
    moment, keys, residuals = second_moment(), drawn(40, IN), drawn(40, OUT, seed=1)
    factors = ridge_update(keys, residuals, factorise(moment), 0.7)
    assert factors.left.shape == (OUT, OUT)
    expected = residuals.T @ keys @ torch.linalg.inv(0.7 * moment + keys.T @ keys)
    torch.testing.assert_close(product(factors), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("past", [None, drawn(2, IN, seed=3)])
@pytest.mark.parametrize("requests", [3, 40])
@pytest.mark.parametrize("penalty", [1e-4, 0.7, 90.0])
def test_the_condition_number_of_the_system_is_told(requests, penalty, past):
    moment, keys = second_moment(), drawn(requests, IN)
    told = ridge_update(keys, drawn(requests, OUT), factorise(moment), penalty, past).condition
    held = drawn(0, IN) if past is None else past
    metric = torch.linalg.inv(moment)
    if requests + len(held) > IN:
        system = penalty * moment + held.T @ held + keys.T @ keys
        expected = float(torch.linalg.cond(system))
    else:
        identity = torch.eye(IN, dtype=torch.float64)
        systems = [penalty * identity[: len(held), : len(held)] + held @ metric @ held.T]
        metric = torch.linalg.inv(moment + held.T @ held / penalty)
        systems.append(penalty * identity[:requests, :requests] + keys @ metric @ keys.T)
        expected = max(float(torch.linalg.cond(one)) for one in systems if len(one))
    assert 0.8 * expected < told < 1.001 * expected


@pytest.mark.parametrize("width", [1, 3, IN, 60])
def test_the_condition_number_of_the_moment_is_told(width):
    moment = second_moment(width)
    told, expected = factorise(moment).condition, float(torch.linalg.cond(moment))
    assert 0.8 * expected < told < 1.001 * expected
    assert Metric(cholesky=None).condition == 1


@pytest.mark.parametrize("times", [2, 20])
def test_without_a_penalty_keys_that_depend_on_each_other_are_refused_in_words(times):
    keys = torch.zeros(times, IN, dtype=torch.float64)
    keys[:, 0] = 1.0
    with pytest.raises(KeditError, match="depend on each other"):
        ridge_update(keys, drawn(times, OUT), Metric(cholesky=None), 0.0)


def test_units_of_keys_have_cosines_as_products():
    moment, keys = second_moment(), drawn(7, IN)
    units = factorise(moment).units(keys)
    inverse = torch.linalg.inv(moment)
    lengths = (keys @ inverse * keys).sum(1).sqrt()
    expected = keys @ inverse @ keys.T / lengths[:, None] / lengths
    torch.testing.assert_close(units @ units.T, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_shared_shift_is_met_at_every_key_by_a_matrix_of_rank_one(count):
    keys, shift = drawn(count, IN), drawn(OUT, seed=1)
    factors = shared_shift(keys, shift, factorise(second_moment()))
    assert factors.left.shape == (OUT, 1)
    torch.testing.assert_close(product(factors) @ keys.T, shift[:, None].expand(OUT, count))


def test_no_other_update_that_writes_the_shift_at_every_key_disturbs_less():
    moment, keys, shift = second_moment(), drawn(2, IN), drawn(OUT, seed=1)
    update = product(shared_shift(keys, shift, factorise(moment)))
    least = disturbance(update, moment)
    basis = torch.linalg.qr(keys.T).Q  # (in_features, keys)
    for seed in range(20):
        other = drawn(OUT, IN, seed=seed)
        other -= other @ basis @ basis.T  # so that it is zero at every key
        for size in (1e-3, 1.0):
            assert disturbance(update + size * other, moment) > least


def test_a_shared_shift_at_one_key_given_twice_is_the_rank_one_update():
    moment, key, shift = factorise(second_moment()), drawn(IN), drawn(OUT, seed=1)
    twice = product(shared_shift(torch.stack([key, key]), shift, moment))
    torch.testing.assert_close(twice, product(rank_one(key, shift, moment)))
