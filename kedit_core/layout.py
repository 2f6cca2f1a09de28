"""Where the pieces of a model are: found by tracing one forward, never by a table of names."""

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_core.errors import ModelError
from kedit_core.trace import Call, is_additive, is_parallel, trace
from kedit_core.untouched import untouched

_ATTENTION = ("Attention", "Mixer", "DeltaNet")


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
        experts: the module that holds stacked expert weights.
    """

    index: int
    path: str
    attention: str | None
    attention_out: Projection | None
    down: Projection | None
    mlp: str | None
    experts: str | None


@frozen(kw_only=True)
class ModelLayout:
    """Where the pieces of a model are, and what was measured of them.

    Attributes:
        layers: first to last.
        embedding: path of the token embedding.
        final_norm: path of the norm after the last layer.
        head: path of the output embedding.
        additive: block input + attention output + MLP output is the block output (no norm in
            between).
        parallel: attention and MLP read the same stream, so the MLP does not see this layer's
            attention.
        layer_returns_tuple: a block returns a tuple and not a tensor.
        conv1d: projections are stored transposed (GPT-2's Conv1D).
        tied: the head shares its weight with the token embedding.
    """

    layers: tuple[LayerLayout, ...] = field(repr=lambda layers: f"<{len(layers)} layers>")
    embedding: str
    final_norm: str | None
    head: str | None
    additive: bool
    parallel: bool
    layer_returns_tuple: bool
    conv1d: bool
    tied: bool

    def layer(self, index: int) -> LayerLayout:
        """Return one layer.

        Raises:
            ModelError: there is no such layer.
        """
        if not 0 <= index < len(self.layers):
            raise ModelError(f"layer {index}", f"the model has layers 0 to {len(self.layers) - 1}")
        return self.layers[index]

    def down_of(self, index: int) -> Projection:
        """Return the down-projection of one layer's MLP.

        Raises:
            ModelError: there is no such layer, or it has no plain MLP.
        """
        layer = self.layer(index)
        if layer.down is None:
            reason = "its MLP is a mixture of experts" if layer.experts else "it has no MLP"
            raise ModelError(layer.path, f"{reason}, so there is no down-projection to edit")
        return layer.down


def layout_of(model: nn.Module, overrides: Mapping[str, str] | None = None) -> ModelLayout:
    """Trace one forward of three tokens and return where the pieces of ``model`` are.

    Args:
        model: a decoder in Hugging Face format.
        overrides: module paths that replace what the trace finds; the key is ``down``,
            ``attention`` or ``attention_out``, the value a path with ``{}`` for the layer's index.

    Raises:
        ModelError: the model has no list of decoder layers, or an overriding path does not exist.
    """
    blocks = _blocks_of(model)
    with untouched(model):
        calls = trace(model)
        layers = tuple(_layer(model, calls, index, path) for index, path in enumerate(blocks))
        layers = tuple(_overridden(model, layer, overrides or {}) for layer in layers)
        parallel = _runs_parallel(model, layers)
    by_path = {call.path: call for call in calls}
    block_output = by_path[blocks[-1]].output
    head = _path_of(model, model.get_output_embeddings())  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    downs = [layer.down for layer in layers if layer.down]
    return ModelLayout(
        layers=layers,
        embedding=_path_of(model, embedding) or "",
        final_norm=_final_norm(calls, blocks[-1]),
        head=head,
        additive=all(_adds(by_path, layer) for layer in layers),
        parallel=parallel,
        layer_returns_tuple=not isinstance(block_output, Tensor),
        conv1d=any(down.conv1d for down in downs),
        tied=head is not None and model.get_submodule(head).weight is embedding.weight,
    )


def _blocks_of(model: nn.Module) -> list[str]:
    """Return the paths of the decoder layers: the shallowest list of as many modules as the config says."""
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(type(model).__name__, "is no transformers model: it has no config")
    count = config.get_text_config().num_hidden_layers
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ModelError(type(model).__name__, f"no list of its {count} decoder layers was found")
    shallowest = min(lists, key=lambda path: path.count("."))
    return [f"{shallowest}.{index}" for index in range(count)]


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[union-attr,operator]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _projection(call: Call) -> Projection:
    weight = call.module.weight
    conv1d = isinstance(call.module, Conv1D)
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    out_features, in_features = (columns, rows) if conv1d else (rows, columns)
    return Projection(
        path=call.path, in_features=int(in_features), out_features=int(out_features), conv1d=conv1d
    )


def _layer(model: nn.Module, calls: list[Call], index: int, path: str) -> LayerLayout:
    hidden = _text_config(model).hidden_size
    inside = [call for call in calls if call.path.startswith(f"{path}.")]
    attentions = [
        call.path
        for call in inside
        if any(word in type(call.module).__name__ for word in _ATTENTION)
        and any(True for _ in call.module.children())
    ]
    attention = min(attentions, key=lambda found: found.count("."), default=None)
    linear = [c for c in inside if _is_linear(c.module) and _projection(c).out_features == hidden]
    in_attention = [c for c in linear if attention and c.path.startswith(f"{attention}.")]
    outside = [c for c in linear if not (attention and c.path.startswith(f"{attention}."))]
    experts = [
        c.path for c in inside if any(p.ndim == 3 for p in c.module.parameters(recurse=False))
    ]
    down = _projection(outside[-1]) if outside and not experts else None
    return LayerLayout(
        index=index,
        path=path,
        attention=attention,
        attention_out=_projection(in_attention[-1]) if in_attention else None,
        down=down,
        mlp=down.path.rpartition(".")[0] if down else None,
        experts=experts[0] if experts else None,
    )


def _overridden(model: nn.Module, layer: LayerLayout, overrides: Mapping[str, str]) -> LayerLayout:
    changes: dict[str, Any] = {}
    for piece, template in overrides.items():
        if piece not in ("down", "attention", "attention_out"):
            raise ModelError(
                "layout", f"there is no piece {piece!r}; down, attention and attention_out are"
            )
        path = template.replace("{}", str(layer.index))
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ModelError("layout", f"the model has no module {path!r}") from None
        if piece != "attention" and not _is_linear(module):
            raise ModelError(path, f"is a {type(module).__name__}, no linear map")
        found = Call(path=path, module=module, input=None, output=None)
        changes[piece] = path if piece == "attention" else _projection(found)
        if piece == "down":
            changes["mlp"] = path.rpartition(".")[0]
    return evolve(layer, **changes)


def _adds(by_path: Mapping[str, Call], layer: LayerLayout) -> bool:
    attention = layer.attention_out.path if layer.attention_out else None
    return layer.down is None or is_additive(by_path, layer.path, layer.down.path, attention)


def _runs_parallel(model: nn.Module, layers: tuple[LayerLayout, ...]) -> bool:
    """Measure on the first layer that has both projections."""
    for layer in layers:
        if layer.attention_out and layer.down:
            return is_parallel(model, layer.attention_out.path, layer.down.path)
    return False


def _final_norm(calls: list[Call], last_block: str) -> str | None:
    after = [call.path for call in calls].index(last_block) + 1
    norms = [call.path for call in calls[after:] if "orm" in type(call.module).__name__]
    return norms[0] if norms else None


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((path for path, module in model.named_modules() if module is wanted), None)
