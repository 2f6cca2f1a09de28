"""The memory in force: a hook beside one projection that adds what the chosen shard would change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core import Applied, Delta, Scope, encode
from kedit_core.errors import DeltaError
from kedit_core.outputs import first_tensor, replace_first
from kedit_locate.capture import inputs_of
from kedit_memory.passages import Passage
from kedit_memory.readers import reader_of
from kedit_memory.routing import Routing
from kedit_wise.kernels import side_projection
from kedit_wise.routes import Found, Prompts, Router, ScopedRouter, named
from kedit_wise.shards import SideMatrix, side_matrix_of


class Beside:
    """A memory in force in a model."""

    def __init__(self, model: nn.Module, tokenizer: Any, delta: Delta) -> None:
        """Build what ``delta`` says beside its projection."""
        memory = side_matrix_of(delta)
        self._model, self._routing = model, Routing(model)
        self._module = _module_of(model, memory, delta)
        self._router = _router(memory, self._module)
        self._reader = _reader(model, tokenizer, memory)

    def attach(self) -> Applied:
        """Begin to speak."""
        return self._routing.attach([self._module.register_forward_hook(self._beside)])

    def _beside(self, _: nn.Module, args: Any, output: Any) -> Any:
        passage = self._routing.passage
        if passage is None:  # somebody calls the module alone
            return None
        main = first_tensor(output)
        rows, tokens = passage.shape
        # Some families flatten rows and tokens before the MLP.
        inputs = args[0].reshape(rows * tokens, -1)
        if passage.reads_a_prompt:
            found = self._found(passage, inputs.detach().reshape(rows, tokens, -1))
            passage.settle(found.shard, found.probability)
        kept = passage.kept
        if kept is None or not kept.inside:
            return None
        shard = kept.decision.to(inputs.device).repeat_interleave(tokens)  # (rows · tokens,)
        moved: Tensor = side_projection(
            inputs, self._router.updates, shard, main.reshape(rows * tokens, -1)
        )
        return replace_first(output, moved.reshape(main.shape))

    def _found(self, passage: Passage, inputs: Tensor) -> Found:
        """Return where the prompts of a pass go, of which the projection reads ``inputs``."""
        if isinstance(self._router, ScopedRouter):
            return self._router.find(self._reader.ahead(passage))
        return self._router.find(Prompts(inputs=inputs, real=passage.prompts.to(inputs.device)))


@torch.no_grad()
def scope(model: Any, tokenizer: Any, delta: Delta, prompts: Sequence[str]) -> Scope:
    """Return the probability that each prompt is in scope, and whose; a forward decides the same."""
    memory = side_matrix_of(delta)
    router = _router(memory, _module_of(model, memory, delta))
    reader = _reader(model, tokenizer, memory)
    probability: list[float] = []
    requests: list[str | None] = []
    for one in encode(tokenizer, prompts, delta.provenance.chat):
        # Alone, so that a prompt gets the same answer whatever else is asked.
        if isinstance(router, ScopedRouter):
            found = router.find(reader.states([one.ids], alone=True))
        else:
            ids = torch.tensor([one.ids], device=model.device)
            mask = torch.ones_like(ids)
            inputs = inputs_of(model, [memory.at], ids, mask)[memory.at]
            found = router.find(Prompts(inputs=inputs, real=mask.bool()))
        probability.append(float(found.probability[0]))
        requests += named(memory, found)
    return Scope(probability=torch.tensor(probability), requests=requests)


def _module_of(model: nn.Module, memory: SideMatrix, delta: Delta) -> Any:
    try:
        return model.get_submodule(memory.at)
    except AttributeError:
        raise DeltaError(
            f"delta {delta.id}", f"stands beside {memory.at}, which the model does not have"
        ) from None


def _router(memory: SideMatrix, module: Any) -> Router | ScopedRouter:
    where = (module.weight.device, module.weight.dtype)
    if memory.scoped is None:
        return Router(memory, *where)
    return ScopedRouter(memory, memory.scoped, *where)


def _reader(model: Any, tokenizer: Any, memory: SideMatrix) -> Any:
    """Return who reads prompts for the memory's classifier; None where it has none."""
    if memory.scoped is None:
        return None
    classifier = memory.scoped.classifier
    return reader_of(model, tokenizer, classifier.source, model.device, classifier.lexicon)
