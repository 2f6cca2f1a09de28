"""Where the pieces of a model are: found by tracing one forward, never by a table of names."""

from collections.abc import Mapping

from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_core.pieces import LayerLayout, Projection, layer_of, overridden
from kedit_core.trace import Call, is_additive, is_causal, is_parallel, trace
from kedit_core.untouched import untouched
from kedit_core.wrapped import adapted_paths, inner_model


@frozen(kw_only=True)
class ModelLayout:
    """Where the pieces of a model are, and what was measured of them.

    Attributes:
        layers: first to last.
        embedding: path of the token embedding.
        final_norm: path of the norm after the last layer.
        head: path of the output embedding.
        additive: block input + attention output + MLP output is the block output (no norm in
            between); None where no layer has a dense MLP to measure.
        parallel: attention and MLP read the same stream, so the MLP does not see this layer's
            attention; False where no layer has both.
        layer_returns_tuple: a block returns a tuple and not a tensor.
        conv1d: projections are stored transposed (GPT-2's Conv1D).
        tied: the head shares its weight with the token embedding.
    """

    layers: tuple[LayerLayout, ...] = field(repr=lambda layers: f"<{len(layers)} layers>")
    embedding: str
    final_norm: str | None
    head: str | None
    additive: bool | None
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
        if layer.down is not None:
            return layer.down
        if layer.skipped:
            raise ModelError(
                layer.skipped[-1],
                "did not run in a forward, so its keys cannot be read; a fused kernel may stand in "
                "its place: open the model with use_kernels=False",
            )
        reason = "its MLP is a mixture of experts" if layer.experts else "it has no MLP"
        raise ModelError(layer.path, f"{reason}, so there is no down-projection to edit")


def layout_of(model: nn.Module, overrides: Mapping[str, str] | None = None) -> ModelLayout:
    """Trace one forward of three tokens and return where the pieces of ``model`` are.

    Args:
        model: a decoder in Hugging Face format; under ``torch.compile`` or PEFT, paths are those of
            the model inside.
        overrides: module paths that replace what the trace finds; the key is ``down``,
            ``attention`` or ``attention_out``, the value a path with ``{}`` for the layer's index.

    Raises:
        ModelError: the model is no decoder, has no list of decoder layers, or an overriding path does
            not exist.
    """
    model = inner_model(model)
    blocks = _blocks_of(model)
    with untouched(model):
        adapters = adapted_paths(model)
        calls = [call for call in trace(model) if not call.path.startswith(adapters)]
        if not is_causal(model, blocks[-1]):
            raise ModelError(
                type(model).__name__, "is no causal decoder: its tokens see those after them"
            )
        layers = tuple(layer_of(model, calls, index, path) for index, path in enumerate(blocks))
        layers = tuple(overridden(model, layer, overrides or {}) for layer in layers)
        parallel = _runs_parallel(model, layers)
    by_path = {call.path: call for call in calls}
    block_output = by_path[blocks[-1]].output
    head = _path_of(model, model.get_output_embeddings())  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    downs = [layer.down for layer in layers if layer.down]
    adds = [_adds(by_path, layer, layer.down) for layer in layers if layer.down]
    return ModelLayout(
        layers=layers,
        embedding=_path_of(model, embedding) or "",
        final_norm=_final_norm(calls, blocks[-1]),
        head=head,
        additive=all(adds) if adds else None,
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
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            type(model).__name__, "is an encoder-decoder and no causal decoder, so it is not edited"
        )
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


def _adds(by_path: Mapping[str, Call], layer: LayerLayout, down: Projection) -> bool:
    attention = layer.attention_out.path if layer.attention_out else None
    return is_additive(by_path, layer.path, down.path, attention)


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
