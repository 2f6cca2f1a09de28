"""What surrounds a method's computation: the checks before it and the finish after it."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import nn

from kedit_core.config import as_mapping
from kedit_core.deltas import Delta, Dense, LowRank, Part, SideMemory
from kedit_core.errors import DeltaError, KeditError, ModelError, RequestError
from kedit_core.methods import MethodInfo
from kedit_core.parameters import check_parameters
from kedit_core.requests import EditRequest, as_requests
from kedit_core.stack import Stack
from kedit_core.stacking import KindOf, check_file, check_method
from kedit_core.tokens import check_context, encode, encode_target
from kedit_core.weights import Weights


@frozen(kw_only=True)
class Asked:
    """What a method is asked to compute.

    Attributes:
        method: its name.
        requests: the edits to make.
        config: an instance of its config class.
        chat: prompts are rendered.
        remove: ids of edits that a memory shall drop.
        notes: of the delta of just these edits that is made again; empty where they are new.
    """

    method: str
    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    config: Any
    chat: bool
    remove: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(factory=dict, repr=False)

    def only(self, kept: Sequence[EditRequest]) -> "Asked":
        """Return the same with some of its requests; notes of more edits say nothing of fewer."""
        notes = self.notes if len(kept) == len(self.requests) else {}
        return evolve(self, requests=kept, notes=notes)


def check_requests(
    requests: Sequence[EditRequest], info: MethodInfo, in_force: Sequence[Delta], kind_of: KindOf
) -> None:
    """See that a method can be asked for these edits, on top of those in force.

    Raises:
        RequestError: there is none, two are one, one is in force, or one lacks its subject.
        KeditError: the method takes one at a time.
        StackingError: its kind does not go on top of what is in force.
    """
    if not requests:
        raise RequestError("no request to edit")
    if len(requests) > 1 and not info.batched:
        raise KeditError(
            f"method {info.name!r} takes one request at a time, and {len(requests)} were given; "
            "call edit once for each"
        )
    held = {request.id for delta in in_force for request in delta.requests}
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise RequestError(f"request {request.id} ({request.prompt!r}) is given twice")
        if request.id in held:
            raise RequestError(
                f"request {request.id} ({request.prompt!r}) is in force already; undo it first"
            )
        if "subject" in info.needs and request.subject is None:
            raise RequestError(f"method {info.name!r} needs the subject of {request.prompt!r}")
        seen.add(request.id)
    check_method(info.name, in_force, kind_of)


def check_model(
    model: nn.Module, tokenizer: Any, requests: Sequence[EditRequest], *, chat: bool
) -> None:
    """See that a model can be edited, and that it reads these requests whole.

    Raises:
        ModelError: a parameter is offloaded or quantised, or the tokenizer belongs to another model.
        RequestError: a text tokenises to nothing, a subject is cut off, or prompt and target are
            longer than the context.
    """
    check_parameters(model)
    known: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    for request in requests:
        (prompt,) = encode(tokenizer, [request.prompt], chat)
        if not prompt.ids:
            raise RequestError(f"prompt {request.prompt!r} tokenises to nothing")
        target = encode_target(tokenizer, prompt, request.joiner + request.target_new)
        check_context(model, len(prompt.ids) + len(target))
        if request.subject_span is not None:
            prompt.last_token_of(request.subject_span)
        highest = max(*prompt.ids, *target)
        if highest >= known:
            raise ModelError(
                type(model).__name__,
                f"knows {known} tokens, and its tokenizer gives number {highest} in {request.prompt!r}: "
                "the two do not belong together",
            )


def check_loaded(path: str, loaded: Sequence[Delta], stack: Stack, kind_of: KindOf) -> None:
    """See that deltas of a file can come on top of a history.

    Raises:
        DeltaError: one is in force already, comes before a memory that it replaced, or would push out
            a memory whose edits it does not hold.
        UnknownMethodError: no plugin offers the method of one.
        StackingError: one does not go on top of what is in force by then.
    """
    present = {delta.id for delta in stack.history}
    for delta in loaded:
        if delta.id in present:
            where = "in force already" if delta in stack.history else "in it twice"
            raise DeltaError(path, f"delta {delta.id} is {where}")
        present.add(delta.id)
    _check_order(path, loaded, stack)
    both = stack.in_force((*stack.history, *loaded))
    kept: set[str] = set()
    for delta in both:
        again = kept.intersection(request.id for request in delta.requests)
        if again:
            raise DeltaError(path, f"request {min(again)} would be in force twice")
        kept.update(request.id for request in delta.requests)
    for delta in (*stack.in_force(), *loaded):
        if any(request.id not in kept for request in delta.requests):
            raise DeltaError(
                path,
                f"two memories of {delta.method!r} cannot be in force at once, and the later one does "
                f"not hold what {delta.id} holds",
            )
    check_file(path, loaded, stack.in_force(), kind_of)


def _check_order(path: str, loaded: Sequence[Delta], stack: Stack) -> None:
    """Refuse a memory before one that it replaced; weights add up in any order, but for rounding."""
    history = (*stack.history, *loaded)
    for place, delta in enumerate(history):
        later = [one for one in history[place + 1 :] if one.id in delta.provenance.after]
        for one in later:
            if len(stack.in_force((delta, one))) == 1:
                raise DeltaError(
                    path,
                    f"memory {delta.id} was made after {one.id} and holds it, but comes before it; put "
                    "them in the order in which they were made",
                )
        if later:
            warnings.warn(
                f"{path}: delta {delta.id} was made after {later[0].id} but comes before it; the edited "
                "weights may differ in their last bits from those that were judged",
                stacklevel=5,
            )


def check_fits(path: str, delta: Delta, weights: Weights) -> None:
    """See that a delta of a file was made for this model.

    Raises:
        DeltaError: it does not fit, was computed for another model, or does not say for which.
    """
    try:
        weights.check(delta)
    except DeltaError as error:
        raise DeltaError(path, f"was not made for this model: {error}") from None
    # No id covers the provenance: without its digests a delta would pass on any model of these shapes.
    if not all(delta.provenance.base.get(one) for one in _touched(delta)):
        raise DeltaError(
            path,
            f"delta {delta.id} does not say which model it was made for; make the edit again, and save it",
        )


def finish(
    found: Any,
    asked: Asked,
    held: Sequence[EditRequest],
    weights: Weights,
    after: Sequence[str],
    package: str,
    step: int,
) -> Delta:
    """Return a computed delta with its parts on the CPU and its provenance filled in.

    Args:
        found: what the method returned; of its provenance only the notes are kept.
        asked: what it was asked for.
        held: requests of earlier deltas that this one stands for too.
        weights: of the model.
        after: ids of the deltas in force.
        package: distribution and version of the method.
        step: how many batches of the method came before.

    Raises:
        DeltaError: the method returned something else than a delta that fits this model.
    """
    computed = _checked(found, asked, held)
    parts: tuple[Part, ...] = tuple(_on_cpu(part) for part in computed.parts)
    delta = evolve(computed, requests=(*held, *asked.requests), parts=parts)
    weights.check(delta)
    provenance = evolve(
        computed.provenance,
        base={path: weights.base_digests(path) for path in _touched(delta)},
        config=as_mapping(asked.config),
        chat=asked.chat,
        seed=getattr(asked.config, "seed", None),
        versions=_versions(package),
        device=_device_of(computed),
        after=tuple(after),
        step=step,
    )
    return evolve(delta, provenance=provenance)


def _checked(found: Any, asked: Asked, held: Sequence[EditRequest]) -> Delta:
    """Return what a method computed, once it is sure that it is a delta of what was asked."""
    method = asked.method
    if not isinstance(found, Delta):
        raise DeltaError(
            f"method {method!r}", f"compute_delta returned {type(found).__name__}, not a Delta"
        )
    if found.method != method:
        raise DeltaError(
            f"method {method!r}", f"compute_delta returned a delta of {found.method!r}"
        )
    if not found.parts:
        raise DeltaError(
            f"method {method!r}", "compute_delta returned a delta that changes nothing"
        )
    said, wanted = ([one.id for one in some] for some in (found.requests, asked.requests))
    if said not in (wanted, [*(one.id for one in held), *wanted]):
        raise DeltaError(
            f"method {method!r}",
            f"compute_delta returned a delta of the requests {said}, and was asked for {wanted}",
        )
    return found


def _touched(delta: Delta) -> tuple[str, ...]:
    """Return the paths of what a delta changes; ``""`` is the whole model, beside which a memory stands."""
    paths = ("" if isinstance(part, SideMemory) else part.weight for part in delta.parts)
    return tuple(dict.fromkeys(paths))


def _on_cpu(part: Part) -> Part:
    match part:
        case LowRank():
            return evolve(part, left=part.left.detach().cpu(), right=part.right.detach().cpu())
        case Dense():
            return evolve(part, update=part.update.detach().cpu())
        case SideMemory():
            return evolve(
                part, tensors={name: one.detach().cpu() for name, one in part.tensors.items()}
            )


def _versions(package: str) -> dict[str, str]:
    name, _, number = package.partition(" ")
    own = {name: number} if number else {}
    return {
        "kedit-core": version("kedit-core"),
        **own,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _device_of(delta: Delta) -> str:
    part = delta.parts[0]
    match part:
        case LowRank():
            return part.left.device.type
        case Dense():
            return part.update.device.type
        case SideMemory():
            return next((one.device.type for one in part.tensors.values()), "cpu")
