"""Checkpoints: one safetensors file each, with JSON in its header. Nothing is ever unpickled.

``best.safetensors`` is what editing takes; ``last.safetensors`` also holds what training needs to go on as if
it had never stopped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit_core.errors import KeditError
from kedit_core.files import write_atomically
from kedit_memory.decoders import Shape
from kedit_memory.rerankers import Reranker, reranker_from
from kedit_memory.scope import ScopeClassifier, classifier_from
from kedit_memory.scope_files import BEST, fitting
from kedit_serac.bridged import Bridged, Language, new_bridged, spelling_in
from kedit_serac.counterfactual import Counterfactual, new_counterfactual

LAST = "last.safetensors"

_KEY, _FORMAT = "kedit-serac", "3"
_MODEL, _STATE = "counterfactual.", "training."
_HINT = "; train one for this model with kedit serac train PLAN.toml"


@frozen(kw_only=True)
class Checkpoint:
    """A trained classifier and counterfactual model.

    Attributes:
        classifier: of the scope.
        shape: of the counterfactual model, or what a bridged one is made from.
        weights: its state dict.
        made_for: digests of a sample of the base, by dtype, and the fingerprint of its tokenizer.
        chat: prompts were rendered through the chat template.
        reranker: of the scope, or None.
        about: what training says of itself, JSON values.
        state: tensors that training goes on from; empty in ``best``.
    """

    classifier: ScopeClassifier
    shape: Shape | Language
    weights: Mapping[str, Tensor] = field(eq=False, repr=False)
    made_for: Mapping[str, str]
    chat: bool = False
    reranker: Reranker | None = None
    about: Mapping[str, Any] = field(factory=dict, repr=False)
    state: Mapping[str, Tensor] = field(factory=dict, eq=False, repr=False)

    def counterfactual(self) -> Counterfactual | Bridged:
        """Return the model, in ``eval`` mode and without gradients."""
        return loaded(self.shape, self.weights)


def loaded(shape: Shape | Language, weights: Mapping[str, Tensor]) -> Counterfactual | Bridged:
    """Return a counterfactual model with copies of these weights, in ``eval`` mode, without gradients.

    Raises:
        KeditError: these are not the weights of such a model, for example because an earlier version had
            fewer of them.
    """
    model: Counterfactual | Bridged
    if isinstance(shape, Language):
        model = new_bridged(shape, spelling_in(weights))
    else:
        model = new_counterfactual(shape, 0)  # its rotary frequencies are no part of a state dict
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise KeditError(
            "the weights of this counterfactual model are not those that this version reads; train it anew "
            "with kedit serac train PLAN.toml"
        ) from error
    return model.requires_grad_(False).eval()


def shape_from(settings: Mapping[str, Any]) -> Shape | Language:
    """Return the shape of a counterfactual model from its JSON values."""
    return Language(**settings) if "config" in settings else Shape(**settings)


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; an older file stays whole until the new one is.

    Raises:
        KeditError: the file cannot be written.
    """
    tensors = {
        **checkpoint.classifier.tensors(),
        **({} if checkpoint.reranker is None else checkpoint.reranker.tensors()),
        **{_MODEL + name: one for name, one in checkpoint.weights.items()},
        **{_STATE + name: one for name, one in checkpoint.state.items()},
    }
    plain = {name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()}
    said = {
        "scope": checkpoint.classifier.settings(),
        "shape": checkpoint.shape.as_json(),
        "reranker": None if checkpoint.reranker is None else checkpoint.reranker.settings(),
        "made_for": dict(checkpoint.made_for),
        "chat": checkpoint.chat,
        "about": dict(checkpoint.about),
    }
    header = {_KEY: _FORMAT, "said": json.dumps(said)}
    try:
        write_atomically(path, lambda target: save_file(plain, target, metadata=header))
    except (OSError, SafetensorError) as error:
        raise KeditError(f"checkpoint {path} cannot be written ({error})") from error


def read(path: Path) -> Checkpoint:
    """Return what a checkpoint holds.

    Args:
        path: the file, or the folder, of which the best one is taken.

    Raises:
        KeditError: it is missing, damaged, or something else.
    """
    path = path / BEST if path.is_dir() else path
    if not path.is_file():
        raise KeditError(
            f"there is no checkpoint {path}; kedit serac train PLAN.toml writes one into the plan's folder"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get(_KEY) != _FORMAT:
            raise KeditError(f"{path} is no checkpoint of SERAC that this version reads{_HINT}")
        said = json.loads(header["said"])
        return Checkpoint(
            classifier=classifier_from(tensors, said["scope"], str(path)),
            shape=shape_from(said["shape"]),
            weights=_below(tensors, _MODEL),
            made_for=said["made_for"],
            chat=bool(said["chat"]),
            reranker=reranker_from(tensors, said.get("reranker"), str(path)),
            about=said["about"],
            state=_below(tensors, _STATE),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeditError):
            raise
        raise KeditError(f"checkpoint {path} is damaged ({error})") from None


def read_for(path: Path, base: Mapping[str, str]) -> Checkpoint:
    """Return the checkpoint for a model.

    Args:
        path: a file, a folder that training filled, or a folder of such folders.
        base: what the model is known by, as :func:`made_for` gives it.

    Raises:
        KeditError: there is none, or it was trained for another model.
    """
    return fitting(path, base, read, called="checkpoint", hint=_HINT)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
