"""One short forward, looked at module by module."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_core.outputs import first_tensor, replace_first

_PROBE = (1, 2, 3)
_OTHER_END = (1, 2, 4)
_ADDITIVE_TOLERANCE = 2e-2  # of what the block adds, beside the rounding of the stream
_CAUSAL_TOLERANCE = 1e-4  # of the stream: products of other widths round differently


@frozen(kw_only=True)
class Call:
    """One module call of the traced forward.

    Attributes:
        path: of the module.
        module: the module.
        input: hidden states that it read, or None.
        output: what it returned.
    """

    path: str
    module: nn.Module
    input: Tensor | None
    output: Any


def trace(model: nn.Module) -> list[Call]:
    """Return every module call of one forward, in order of completion."""
    calls: list[Call] = []

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            hidden = kwargs.get("hidden_states", args[0] if args else None)
            calls.append(
                Call(
                    path=path,
                    module=module,
                    # Some families go on to add to what a module returned, in place.
                    input=hidden.clone() if isinstance(hidden, Tensor) else None,
                    output=output.clone() if isinstance(output, Tensor) else output,
                )
            )

        return hook

    with _hooked(model, record):
        _short_forward(model)
    return calls


@contextmanager
def _hooked(model: nn.Module, make: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(make(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _short_forward(model: nn.Module, tokens: tuple[int, ...] = _PROBE) -> None:
    device = next(model.parameters()).device
    ids = torch.tensor([tokens], device=device)  # (1, tokens)
    try:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (TypeError, ValueError) as error:
        raise ModelError(type(model).__name__, f"is no causal decoder ({error})") from error
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape:
        raise ModelError(
            type(model).__name__,
            "says nothing about next tokens: it has no language-model head; open it with "
            "AutoModelForCausalLM",
        )


def is_causal(model: nn.Module, block_path: str) -> bool:
    """Measure whether what a block says of the first token stays the same when the last one changes.

    Args:
        model: in ``eval`` mode.
        block_path: the last block.
    """
    seen: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(first_tensor(output).reshape(len(_PROBE), -1)[0].double())

    watching = model.get_submodule(block_path).register_forward_hook(record)
    try:
        _short_forward(model)
        _short_forward(model, _OTHER_END)
    finally:
        watching.remove()
    before, after = seen  # (hidden,) each
    rounding = max(_CAUSAL_TOLERANCE, 2 * torch.finfo(next(model.parameters()).dtype).eps)
    # Where numbers overflow nothing is known; whoever computes with them says so.
    return not bool((after - before).norm() > rounding * before.norm())


def is_additive(
    by_path: Mapping[str, Call], block_path: str, down_path: str, attention_path: str | None
) -> bool:
    """Measure whether a block adds what its two projections write, with nothing in between.

    Args:
        by_path: the calls of one forward.
        block_path: the block.
        down_path: its MLP's down-projection.
        attention_path: its attention's out-projection.
    """
    block = by_path[block_path]
    if block.input is None or down_path not in by_path:
        return False
    before, after = block.input, first_tensor(block.output)  # (1, tokens, hidden)
    written = first_tensor(by_path[down_path].output)
    if attention_path is not None and attention_path in by_path:
        attended = first_tensor(by_path[attention_path].output)
        if written.numel() != attended.numel():
            return False
        written = written.reshape(attended.shape) + attended
    if written.numel() != after.numel():
        return False
    added = (after - before).float()
    gap = (added - written.reshape(after.shape).float()).norm()
    # The stream can be a hundred times what a block adds, and each of its two sums is rounded.
    rounding = torch.finfo(after.dtype).eps / 2 * (before.float().norm() + after.float().norm())
    return bool(gap <= _ADDITIVE_TOLERANCE * added.norm() + rounding)


def is_parallel(model: nn.Module, attention_path: str, down_path: str) -> bool:
    """Measure whether the MLP's input stays the same when attention writes something else.

    Args:
        model: in ``eval`` mode.
        attention_path: the attention's out-projection.
        down_path: the down-projection of the same layer.
    """
    attention_out, down = model.get_submodule(attention_path), model.get_submodule(down_path)
    seen: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].clone())

    def disturb(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = first_tensor(output)
        # A ramp, not a constant: a norm that subtracts the mean would hide a constant.
        ramp = torch.linspace(0, 1, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        return replace_first(output, hidden + ramp)

    watching = down.register_forward_pre_hook(record)
    try:
        _short_forward(model)
        disturbing = attention_out.register_forward_hook(disturb)
        try:
            _short_forward(model)
        finally:
            disturbing.remove()
    finally:
        watching.remove()
    return torch.equal(seen[0], seen[1])
