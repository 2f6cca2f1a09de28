"""Looking at what a module reads and writes during one forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kedit_core.outputs import first_tensor, replace_first


class _Enough(Exception):  # noqa: N818
    """Everything that was wanted has been seen; the rest of the forward is not needed."""


@contextmanager
def replaced_output(
    model: nn.Module, path: str, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the hidden states that a module returns by ``change`` of them inside the block."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return replace_first(output, change(first_tensor(output)))

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


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
        model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
