"""Routes by a trained scope classifier (``kedit_memory.scope``): a prompt goes where the edit is that it meets.

The classifier reads states of all thirds of the model, the shards stand in the first or second. So a prompt
is read twice: once without the memory, for the decision, and then as any other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core import EditRequest, Weights, encode
from kedit_core.digests import digest
from kedit_core.errors import KeditError
from kedit_memory.readers import reader_of
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_files import made_for, scope_for
from kedit_wise.config import Routes


def _of_its_own(classifier: ScopeClassifier) -> ScopeClassifier:
    """Return the same with tensors of their own: products of those that lie in a file round otherwise."""
    own = {name: getattr(classifier, name).clone() for name in ("projection", "offset", "leaning")}
    return evolve(classifier, **own)


@frozen(kw_only=True)
class Scoped:
    """The classifier of a memory, and what it knows each edit by.

    Attributes:
        classifier: trained and calibrated.
        directions: (edits, width) of the edits' prompts.
    """

    classifier: ScopeClassifier = field(converter=_of_its_own)
    directions: Tensor = field(eq=digest, repr=False)

    def plus(self, directions: Tensor) -> "Scoped":
        """Return the same with more edits, (new edits, width)."""
        return evolve(self, directions=torch.cat([self.directions, directions]))


def begun(routes: Routes, weights: Weights, tokenizer: Any) -> Scoped:
    """Return the classifier that the settings name, with no edit yet.

    Args:
        routes: they name where it is.
        weights: of the model.
        tokenizer: the model's.

    Raises:
        KeditError: there is none for this model.
    """
    if routes.checkpoint is None:
        raise KeditError(
            "routes.router=scope needs a trained scope classifier; say where it is with "
            "--set routes.checkpoint=FOLDER (kedit serac train PLAN.toml fills one)"
        )
    found = scope_for(Path(routes.checkpoint), made_for(weights, tokenizer))
    directions = torch.empty(0, found.classifier.length)
    return Scoped(classifier=found.classifier, directions=directions)


def directions_of(
    model: Any,
    tokenizer: Any,
    classifier: ScopeClassifier,
    requests: Sequence[EditRequest],
    *,
    chat: bool,
) -> Tensor:
    """Return the directions of edits, (edits, width), the same bits whatever they are added with.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
        classifier: the memory's.
        requests: the edits.
        chat: render prompts through the chat template.
    """
    asked = [one.ids for one in encode(tokenizer, [one.prompt for one in requests], chat)]
    reader = reader_of(model, tokenizer, classifier.source, model.device, classifier.lexicon)
    pairs = zip(reader.states(asked, alone=True), classifier.named(requests), strict=True)
    return torch.stack(
        [classifier.embed_edits(state[None], name[None])[0] for state, name in pairs]
    )
