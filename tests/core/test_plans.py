"""Plans: what a TOML file says becomes streams, and what it says wrong becomes a sentence."""

import pytest

from kedit_core import KeditError
from kedit_core.plans import as_json, plan_from, read_plan
from kedit_core.schedule import Schedule

LEAST = {"model": "atlas:gpt2", "requests": "atlas:editable", "method": "memit"}


def test_the_least_plan_is_one_stream_of_single_edits():
    (cell,) = plan_from(LEAST).cells()
    assert (cell.name, cell.model, cell.method) == ("memit", "atlas:gpt2", "memit")
    assert cell.schedule == Schedule()
    assert cell.seed is None


def test_a_file_says_all_that_a_plan_can(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        """
        model = ["atlas:gpt2", "atlas:llama"]
        requests = "atlas:editable"
        limit = 100
        seeds = [0, 1, 2]
        conflicts = "newest"
        metrics = ["reliability.exact"]

        [[method]]
        name = "memit"
        config = { passes = 3, search = { lr = 0.1 } }
        grid = { "search.clamp" = [0.5, 1.0] }

        [[method]]
        name = "rome"
        label = "ROME"

        [[schedule]]
        interval = [1, 10]
        evaluate_on = "window"

        [[schedule]]
        interval = 10
        keep = false

        [limits]
        retention = 0.9
        """
    )
    plan = read_plan(path)
    cells = plan.cells()
    assert len(cells) == 2 * 3 * 2 * 3
    assert cells[0].name == "atlas:gpt2+memit+search.clamp=0.5+T=1-10+on=window+seed=0"
    assert cells[0].config == {"passes": 3, "search": {"lr": 0.1, "clamp": 0.5}}
    assert {cell.label for cell in cells} == {
        "memit+search.clamp=0.5",
        "memit+search.clamp=1.0",
        "ROME",
    }
    assert plan.metrics == {"reliability.exact": {}}
    assert plan.limits.retention == 0.9
    assert plan_from(as_json(plan)) == plan


def test_metrics_may_have_options():
    plan = plan_from({**LEAST, "metrics": {"locality.exact": {"known": True}}})
    assert plan.metrics == {"locality.exact": {"known": True}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": []}, "says no model"),
        ({"requests": ""}, "says no requests"),
        ({"method": []}, "says no method"),
        ({"method": [{"label": "x"}]}, "a [[method]] has no name"),
        ({"method": ["memit", "memit"]}, "'memit' is planned twice; give it a label"),
        ({"schedul": {}}, "unknown setting 'schedul'; did you mean 'schedule'?"),
        ({"schedule": {"intervall": 1}}, "did you mean 'interval'?"),
        (
            {"schedule": {"batch_size": 2, "interval": 3}},
            "interval 3 is no multiple of batch_size 2",
        ),
        ({"schedule": {"evaluate_on": "al"}}, "did you mean 'all'?"),
        ({"conflicts": "nevest"}, "did you mean 'newest'?"),
        ({"seeds": ["one"]}, "seeds: expected int, found 'one'"),
        ({"limit": "ten"}, "limit: expected int, found 'ten'"),
        ({"limits": {"retention": 2}}, "retention must be a share from 0 to 1"),
    ],
)
def test_a_plan_that_fits_nothing_is_refused_with_the_reason(changes, complaint):
    with pytest.raises(KeditError) as error:
        plan_from({**LEAST, **changes})
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
