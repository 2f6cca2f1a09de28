"""``kedit serac``: the training that SERAC needs once for a model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import evolve

from kedit_core.cli.opening import Json, read
from kedit_core.plugins import Plugins

if TYPE_CHECKING:
    from kedit_serac.checkpoints import Checkpoint
    from kedit_serac.plans import TrainingPlan
    from kedit_serac.teams import Team

serac = typer.Typer(help="SERAC's scope classifier and counterfactual model.", no_args_is_help=True)

_SHOWN = ("edit/acc_val", "copy/acc_val", "acc/pre_val", "acc/post_val", "scope/accepted_val")


@serac.callback()
def _commands() -> None:
    """Keep ``train`` a command of its own, though it is the only one."""


@serac.command()
def train(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="A TOML or JSON file; docs/how-to/train-serac.md.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the plan's folder.")
    ] = False,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Train together with the other processes that torchrun or accelerate launch started.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a scope classifier and a counterfactual model for one model."""
    from kedit_core.cli.screen import print_json, screen
    from kedit_serac.plans import read_plan
    from kedit_serac.teams import team

    asked = read_plan(plan)
    with team(asked=distributed) as others:
        best = _trained(context.obj, asked, others, resume=resume)
    if not others.first:
        return
    scores = {name: one for name, one in best.about.items() if isinstance(one, int | float)}
    scores |= best.about["scope"]
    if as_json:
        print_json({"checkpoint": asked.out, "scores": scores})
        return
    for name, value in scores.items():
        screen().print(f"{name:28} {value:.4g}")
    screen().print(f"kedit edit {asked.model} --method serac --set checkpoint={asked.out} …")


def _trained(plugins: Plugins, plan: "TrainingPlan", team: "Team", *, resume: bool) -> "Checkpoint":
    from kedit_core.cli.screen import BarProgress
    from kedit_serac.training import Training

    if plan.device == "cuda" and team.size > 1:
        plan = evolve(plan, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    model, tokenizer = _opened(plugins, plan, plan.model)
    training = Training(
        model,
        tokenizer,
        plan,
        [_source(plugins, name) for name in plan.requests],
        earlier=[_source(plugins, name) for name in _earlier(plan)],
        judged=[one for source in plan.judged for one in read(plugins, source, None)],
        language=_language(plugins, plan),
        team=team,
        progress=BarProgress() if team.first else None,
        say=_say,
    )
    return training.run(resume=resume)


def _source(plugins: Plugins, name: str) -> Any:
    from kedit_serac.shards import Source

    return Source(name=name, requests=read(plugins, name, None))


def _earlier(plan: "TrainingPlan") -> list[str]:
    """Return the shards that an earlier training learned."""
    if plan.start is None:
        return []
    from kedit_serac.checkpoints import read as read_checkpoint

    return [str(one) for one in read_checkpoint(Path(plan.start)).about.get("shards", [])]


def _language(plugins: Plugins, plan: "TrainingPlan") -> Any:
    """Return the counterfactual model that the plan names, if it names one."""
    if plan.counterfactual.model is None:
        return None
    from kedit_serac.bridged import bridged

    return bridged(*_opened(plugins, plan, plan.counterfactual.model))


def _opened(plugins: Plugins, plan: "TrainingPlan", source: str) -> Any:
    import torch

    from kedit_core.cli.screen import quiet_transformers

    kind = None if plan.dtype is None else getattr(torch, plan.dtype)
    with quiet_transformers():
        return plugins.call_all("open_model", source=source, dtype=kind, device=plan.device)


def _say(line: Mapping[str, Any]) -> None:
    from rich.console import Console

    said = "  ".join(f"{name} {line[name]:.3f}" for name in _SHOWN if name in line)
    mark = "  best" if line["best"] else ""
    Console(stderr=True, highlight=False).print(f"step {line['step']}  {said}{mark}")
