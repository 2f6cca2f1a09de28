"""Whether second moments come from enough text: what solutions from half of it are like.

Writing a key k needs the direction C⁻¹k; the update that moves W k by one unit and disturbs other keys
least (ROME, arXiv:2202.05262, eq. 2) has the right factor

    s = C⁻¹k / (kᵀC⁻¹k),    and disturbs them by    s C sᵀ.

Solutions from half of the text are compared with those from all of it. For averages over n tokens, the half
is as far from the whole as the whole is from no end of text: the variances are 2/n - 1/n and 1/n.
Since what is disturbed too much falls as 1/n, twice the text spares half of what is measured here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core import EditRequest, encode
from kedit_core.errors import RequestError
from kedit_locate.moments import Moment
from kedit_locate.rows import Row
from kedit_locate.sampling import sample, start_token
from kedit_locate.solver import factorise

ENOUGH = 0.05
"""Of the disturbance: when twice the text would spare less, it is not worth it."""

_KEYS, _LENGTH, _SEED = 64, 16, 2  # of sampled rows; a corpus is sampled with other seeds


@frozen(kw_only=True)
class Sufficiency:
    """How solutions from half of the text differ from those from all of it.

    Attributes:
        layer: whose moments they are.
        tokens: of all the text.
        half: of its first half.
        keys: how many were solved for.
        cosine: between the two solutions of a key, the average.
        norm: relative change of their length, half against whole, the average of its size.
        disturbance: how much more the half's solutions disturb other keys, as a share, in total.
    """

    layer: int
    tokens: int
    half: int
    keys: int
    cosine: float
    norm: float
    disturbance: float

    @property
    def enough(self) -> bool:
        """Tell whether twice the text would change little."""
        return self.disturbance / 2 < ENOUGH


def sufficiency(layer: int, whole: Moment, half: Moment, keys: Tensor) -> Sufficiency:
    """Return how solutions from half of the text differ from those from all of it.

    Args:
        layer: whose moments they are.
        whole: over all the text.
        half: over half of it.
        keys: (keys, in_features).
    """
    found = [_solutions(moment, keys) for moment in (half, whole)]  # (keys, in_features) each
    lengths = [solution.norm(dim=1) for solution in found]
    cosine = (found[0] * found[1]).sum(1) / (lengths[0] * lengths[1])
    moment = whole.matrix.double()
    disturbed = [float((solution @ moment * solution).sum()) for solution in found]
    return Sufficiency(
        layer=layer,
        tokens=whole.count,
        half=half.count,
        keys=len(keys),
        cosine=float(cosine.mean()),
        norm=float((lengths[0] / lengths[1] - 1).abs().mean()),
        disturbance=disturbed[0] / disturbed[1] - 1,
    )


def subject_rows(tokenizer: Any, requests: Sequence[EditRequest]) -> list[Row]:
    """Return the prompts of requests, to be looked up at their subjects' last tokens.

    Args:
        tokenizer: of the model.
        requests: with subjects.

    Raises:
        RequestError: a request has no subject.
    """
    rows = []
    for request in requests:
        if request.subject_span is None:
            raise RequestError(f"the subject of {request.prompt!r} is needed")
        text = encode(tokenizer, [request.prompt])[0]
        rows.append(Row(ids=text.ids, lookup=text.last_token_of(request.subject_span)))
    return rows


def sampled_rows(model: nn.Module, tokenizer: Any) -> list[Row]:
    """Return texts that the model samples, to be looked up at their last tokens.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
    """
    device = next(model.parameters()).device
    start = torch.full((_KEYS, 1), start_token(tokenizer), device=device)
    ids = sample(model, start, _LENGTH - 1, torch.Generator().manual_seed(_SEED))
    return [Row(ids=tuple(row), lookup=_LENGTH - 1) for row in ids.tolist()]


def verdict(found: Sequence[Sufficiency]) -> str:
    """Return a sentence on all layers.

    Args:
        found: one for each layer.
    """
    lacking = [str(one.layer) for one in found if not one.enough]
    if not lacking:
        return "these tokens are enough: twice as many would change little"
    return (
        f"more tokens are worth it at layer {', '.join(lacking)}: with twice as many, edits there would "
        f"disturb other keys about {max(one.disturbance for one in found) / 2:.0%} less"
    )


def _solutions(moment: Moment, keys: Tensor) -> Tensor:
    """Return the right factor for every key, (keys, in_features) float64."""
    directions = factorise(moment.matrix).whiten(keys.cpu())
    scale = (keys.cpu().double() * directions).sum(1, keepdim=True)
    return directions / scale
