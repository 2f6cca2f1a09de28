"""Opening the models of a plan."""

import torch

from kedit_core.editor import Editor
from kedit_core.errors import ConfigError
from kedit_core.plans import Plan
from kedit_core.plugins import Plugins
from kedit_core.progress import Progress


def editor_of(
    plan: Plan, model: str, *, plugins: Plugins | None = None, progress: Progress | None = None
) -> Editor:
    """Return an editor of a model, opened as a plan says.

    Args:
        plan: says dtype, device and whether prompts are rendered through the chat template.
        model: one of the plan's, or the same model from somewhere else.
        plugins: by default all installed ones.
        progress: by default silent.

    Raises:
        ConfigError: the plan names an unknown dtype.
        ModelError: the model cannot be opened.
    """
    kind = getattr(torch, plan.dtype, None) if plan.dtype else None
    if plan.dtype and not isinstance(kind, torch.dtype):
        raise ConfigError("plan", [f"unknown dtype {plan.dtype!r}"])
    return Editor.from_pretrained(
        model,
        dtype=kind,
        device=plan.device or None,
        plugins=plugins,
        chat=plan.chat,
        progress=progress,
    )
