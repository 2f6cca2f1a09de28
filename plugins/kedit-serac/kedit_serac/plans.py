"""What ``kedit serac train`` is asked for; no torch here."""

from pathlib import Path

from attrs import field, frozen, validators

from kedit_core.config import load_config, read_mapping
from kedit_core.errors import ConfigError
from kedit_serac.config import CounterfactualTraining, ScopeTraining


@frozen(kw_only=True)
class TrainingPlan:
    """A training of SERAC for one model.

    Attributes:
        model: a hub id, a local folder, or what a plugin opens, such as ``atlas:llama``.
        requests: shards of the facts to train on, learned one after the other: files of JSON lines, or
            what a plugin reads, such as ``atlas:training``.
        judged: requests that will be edited and judged later; training on one of these is refused.
        out: folder for checkpoints and the log.
        start: folder of an earlier training to go on from; its shards are replayed.
        validation: share of the subjects that is kept for validation.
        chat: render prompts through the chat template.
        dtype: to open the model in; None takes the checkpoint's.
        device: to open it on.
        seed: of all draws.
        scope: how the classifier is trained.
        counterfactual: how the counterfactual model is trained.
    """

    model: str = ""
    requests: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    out: str = ""
    start: str | None = None
    validation: float = field(default=0.15, validator=[validators.gt(0), validators.lt(1)])
    chat: bool = False
    dtype: str | None = None
    device: str | None = None
    seed: int = 0
    scope: ScopeTraining = field(factory=ScopeTraining)
    counterfactual: CounterfactualTraining = field(factory=CounterfactualTraining)


def read_plan(path: Path) -> TrainingPlan:
    """Return the plan of a TOML or JSON file; its own paths count from where the command runs.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong or missing.
    """
    plan = load_config(TrainingPlan, read_mapping(path), where=str(path))
    missing = [name for name in ("model", "requests", "out") if not getattr(plan, name)]
    if missing:
        raise ConfigError(str(path), [f"{name} is missing" for name in missing])
    return plan
