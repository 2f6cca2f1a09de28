"""The atlas: small trained language models (``atlas:gpt2``) and their facts (``atlas:kept``)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kedit_core import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import EditRequest
    from kedit_core.errors import RequestError

_PREFIX = "atlas:"
_MODELS = ("gpt2", "llama", "companion")
_SETS = ("editable", "training", "kept")


@hookimpl
def open_model(
    source: str, dtype: "torch.dtype | None", device: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase] | None":
    """Open ``atlas:gpt2``, ``atlas:llama`` or ``atlas:companion``, by default in float32."""
    if not source.startswith(_PREFIX):
        return None
    name = source.removeprefix(_PREFIX)
    if name not in _MODELS:
        from kedit_core.errors import ModelError

        raise ModelError(source, f"the atlas has no such model; it has {_listed(_MODELS)}")
    from kedit_atlas.models import open_shipped

    return open_shipped(name, dtype, device)


@hookimpl
def read_requests(source: str) -> "Iterable[EditRequest | RequestError] | None":
    """Read ``atlas:editable``, ``atlas:training`` or ``atlas:kept``."""
    if not source.startswith(_PREFIX):
        return None
    name = source.removeprefix(_PREFIX)
    if name not in _SETS:
        from kedit_core.errors import RequestError

        raise RequestError(f"the atlas has no such set of facts; it has {_listed(_SETS)}", source)
    from kedit_atlas.requests import requests_of

    return requests_of(name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_PREFIX + name for name in names)
