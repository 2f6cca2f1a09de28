"""The pieces of one layer, as one traced forward shows them."""

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen
from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit_core.errors import ModelError
from kedit_core.trace import Call
from kedit_core.wrapped import BASE_LAYER, adapted_paths

_ATTENTION = ("Attention", "Mixer", "DeltaNet")
_PIECES = ("down", "attention", "attention_out")


@frozen(kw_only=True)
class Projection:
    """A linear map inside a layer.

    Attributes:
        path: of its module.
        in_features: width of what it reads.
        out_features: width of what it writes.
        conv1d: its weight is stored as (in_features, out_features).
    """

    path: str
    in_features: int
    out_features: int
    conv1d: bool

    @property
    def weight(self) -> str:
        """Return the path of its weight parameter."""
        return f"{self.path}.weight"


@frozen(kw_only=True)
class LayerLayout:
    """The pieces of one layer, as module paths; None where a family has no such piece.

    Attributes:
        index: from 0.
        path: the block.
        attention: the attention block.
        attention_out: its out-projection.
        down: the down-projection of the MLP.
        mlp: the MLP block, the parent of ``down``; the block itself where the MLP has no module.
        experts: the module that holds the weights of a mixture of experts.
        skipped: linear maps of the MLP that the traced forward did not run, for example because a
            fused kernel stands in their place.
        gated: what the down-projection reads is a product of two linear maps (SwiGLU and its kin).
    """

    index: int
    path: str
    attention: str | None
    attention_out: Projection | None
    down: Projection | None
    mlp: str | None
    experts: str | None
    skipped: tuple[str, ...] = ()
    gated: bool = False


def layer_of(model: nn.Module, calls: list[Call], index: int, path: str) -> LayerLayout:
    """Return the pieces of one layer.

    Args:
        model: that was traced.
        calls: of the trace, those of adapters left out.
        index: of the layer.
        path: of its block.
    """
    hidden = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    inside = [call for call in calls if call.path.startswith(f"{path}.")]
    attentions = [call.path for call in inside if _attends(call.module)]
    attention = min(attentions, key=lambda found: found.count("."), default=None)
    linear = [c for c in inside if _is_linear(c.module) and _projection(c).out_features == hidden]
    in_attention = [c for c in linear if attention and c.path.startswith(f"{attention}.")]
    outside = [c for c in linear if not (attention and c.path.startswith(f"{attention}."))]
    experts, skipped = _experts(model, inside, path), _skipped(model, calls, path)
    down = _projection(outside[-1]) if outside and not experts and not skipped else None
    return LayerLayout(
        index=index,
        path=path,
        attention=attention,
        attention_out=_projection(in_attention[-1]) if in_attention else None,
        down=down,
        mlp=_parent(down.path) if down else None,
        experts=experts,
        skipped=skipped if not experts else (),
        gated=down is not None and _gated(down, inside, attention),
    )


def _gated(down: Projection, inside: list[Call], attention: str | None) -> bool:
    """Return whether two maps, or one that is twice as wide, make what the down-projection reads."""
    widths = [
        _projection(call).out_features
        for call in inside
        if _is_linear(call.module)
        and call.path != down.path
        and not (attention and call.path.startswith(f"{attention}."))
    ]
    return widths.count(down.in_features) > 1 or 2 * down.in_features in widths


def _attends(module: nn.Module) -> bool:
    named = any(word in type(module).__name__ for word in _ATTENTION)
    return named and any(True for _ in module.children())


def _experts(model: nn.Module, inside: list[Call], block: str) -> str | None:
    """Return the module of a layer that holds its experts: stacked weights, or a list of MLPs."""
    for call in inside:
        stacked = any(weight.ndim == 3 for weight in call.module.parameters(recurse=False))
        if stacked and not isinstance(call.module, nn.Conv1d):
            return call.path
    for name, module in model.get_submodule(block).named_modules():
        if isinstance(module, nn.ModuleList) and any(map(_is_linear, module.modules())):
            return f"{block}.{name}"
    return None


def _skipped(model: nn.Module, calls: list[Call], block: str) -> tuple[str, ...]:
    """Return the linear maps of a layer's MLP that did not run."""
    ran = {call.path for call in calls}
    aside = (*adapted_paths(model), *_attention_paths(model, block))
    return tuple(
        f"{block}.{name}"
        for name, module in model.get_submodule(block).named_modules()
        if _is_linear(module)
        and f"{block}.{name}" not in ran
        and not f"{block}.{name}".startswith(aside)
    )


def _attention_paths(model: nn.Module, block: str) -> tuple[str, ...]:
    found = model.get_submodule(block).named_modules()
    return tuple(f"{block}.{name}." for name, module in found if name and _attends(module))


def _parent(path: str) -> str:
    return path.removesuffix(f".{BASE_LAYER}").rpartition(".")[0]


def overridden(model: nn.Module, layer: LayerLayout, overrides: Mapping[str, str]) -> LayerLayout:
    """Return a layer with some of its pieces named by hand.

    Args:
        model: whose layer it is.
        layer: as it was found.
        overrides: paths by piece, ``{}`` for the layer's index.

    Raises:
        ModelError: there is no such piece, or no such module, or it is no linear map.
    """
    changes: dict[str, Any] = {}
    for piece, template in overrides.items():
        if piece not in _PIECES:
            raise ModelError(
                "layout", f"there is no piece {piece!r}; down, attention and attention_out are"
            )
        path = template.replace("{}", str(layer.index))
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ModelError("layout", f"the model has no module {path!r}") from None
        if BASE_LAYER in module._modules:  # an adapter is around it
            path, module = f"{path}.{BASE_LAYER}", module.get_submodule(BASE_LAYER)
        if piece != "attention" and not _is_linear(module):
            raise ModelError(path, f"is a {type(module).__name__}, no linear map")
        found = Call(path=path, module=module, input=None, output=None)
        changes[piece] = path if piece == "attention" else _projection(found)
        if piece == "down":
            changes["mlp"], changes["skipped"] = _parent(path), ()
    return evolve(layer, **changes)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _projection(call: Call) -> Projection:
    module = call.module
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
    else:
        # Not the weight's shape: a quantised map keeps its weight packed.
        in_features, out_features = module.in_features, module.out_features  # type: ignore[assignment]
    return Projection(
        path=call.path,
        in_features=int(in_features),
        out_features=int(out_features),
        conv1d=isinstance(module, Conv1D),
    )
