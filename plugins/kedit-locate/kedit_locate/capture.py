"""Looking at what a module reads and writes during one forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_core.outputs import first_tensor, replace_first
from kedit_core.reading import reach_past_pads


class _Enough(Exception):  # noqa: N818
    """Everything that was wanted has been seen; the rest of the forward is not needed."""


@contextmanager
def replaced_output(
    model: nn.Module, path: str, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the hidden states that a module returns by ``change`` of them inside the block.

    Raises:
        ModelError: the block ended and the module had not run.
    """
    ran = False

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal ran
        ran = True
        return replace_first(output, change(first_tensor(output)))

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not ran:
        raise _did_not_run(path)


def inputs_of(
    model: nn.Module, paths: Sequence[str], ids: Tensor, mask: Tensor
) -> Mapping[str, Tensor]:
    """Run one forward up to the last of the modules and return what each of them reads.

    Args:
        model: in ``eval`` mode.
        paths: modules that take hidden states first, in the order in which they run.
        ids: (rows, tokens).
        mask: (rows, tokens).

    Returns:
        Per path the input (rows, tokens, in_features), in the model's dtype.

    Raises:
        ModelError: one of them did not run.
    """
    seen: dict[str, Tensor] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            # Some families flatten rows and tokens before the MLP.
            seen[path] = args[0].detach().reshape(*ids.shape, -1)
            if len(seen) == len(paths):
                raise _Enough

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(record(path)) for path in paths]
    try:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        seen_by = behind_rows(model, mask)
        model(input_ids=ids, attention_mask=seen_by, position_ids=positions, use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if path not in seen:
            raise _did_not_run(path)
    return seen


def behind_rows(model: nn.Module, mask: Tensor) -> Tensor:
    """Return a mask for rows that have pads behind them only: by causality those change nothing.

    Where a sliding window holds nothing but pads it must not mask them: attention over nothing is no
    number, and spreads.

    Args:
        model: that reads the rows.
        mask: (rows, tokens).
    """
    return mask if mask.shape[1] <= reach_past_pads(model) else torch.ones_like(mask)


def _did_not_run(path: str) -> ModelError:
    return ModelError(
        path,
        "did not run in a forward; a fused kernel may stand in its place: open the model with "
        "use_kernels=False",
    )


def output_of(model: nn.Module, path: str, ids: Tensor, mask: Tensor) -> Tensor:
    """Run one forward up to a module and return the hidden states that it writes.

    Args:
        model: in ``eval`` mode.
        path: of the module.
        ids: (rows, tokens).
        mask: (rows, tokens).

    Returns:
        (rows, tokens, out_features), in the model's dtype.

    Raises:
        ModelError: the module did not run.
    """
    seen: list[Tensor] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(first_tensor(output).detach().reshape(*ids.shape, -1))
        raise _Enough

    handle = model.get_submodule(path).register_forward_hook(look)
    try:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        seen_by = behind_rows(model, mask)
        model(input_ids=ids, attention_mask=seen_by, position_ids=positions, use_cache=False)
    except _Enough:
        pass
    finally:
        handle.remove()
    if not seen:
        raise _did_not_run(path)
    return seen[0]
