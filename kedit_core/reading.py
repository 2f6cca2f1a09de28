"""How a model reads: what pads do to it, and whether it can read on from what it keeps."""

import inspect
from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def goes_on(cache: Any) -> bool:
    """Tell whether a model can read several tokens on from a cache, and as often as wanted.

    It can from keys and values, which are put behind each other in new tensors. A recurrent state is
    written over, and some models start it anew for more than one token.

    Args:
        cache: what a forward returned as ``past_key_values``, or None.
    """
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return cache is not None and all(type(one) in kinds for one in getattr(cache, "layers", ()))


def reach_past_pads(model: nn.Module) -> float:
    """Return up to how many tokens pads between a prompt and its answer do no harm to a model.

    Full attention masks them out. A sliding window counts them as places, a recurrent state takes
    them in, and a model that is told no positions (ALiBi) counts them as distance: such models read
    prompts of different lengths apart.

    Args:
        model: that would read them.
    """
    config = getattr(model, "config", None)
    if config is None or not takes(model, "position_ids"):
        return 0
    windows = [getattr(config, "window_size", None) or float("inf")]  # GPT-Neo's, in no cache
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            windows.append(0)
    return min(windows)


def takes(model: nn.Module, argument: str) -> bool:
    """Tell whether a model's forward knows an argument.

    Args:
        model: to call.
        argument: its name.
    """
    return argument in inspect.signature(model.forward).parameters
