"""Taking edits out: whole deltas, and single requests of a batch or of a memory."""

from collections.abc import Sequence

from attrs import evolve

from kedit_core.deltas import Delta
from kedit_core.errors import NotInForceError
from kedit_core.requests import EditRequest
from kedit_core.workshop import Workshop


def undo(workshop: Workshop, id: str | None, *, recompute: bool) -> None:  # noqa: A002
    """Take one delta out, as ``Editor.undo`` says.

    Raises:
        NotInForceError: there is none.
    """
    stack = workshop.stack
    history = stack.history
    if not history:
        raise NotInForceError("there is no edit to undo", ())
    known = [delta.id for delta in history]
    if id is not None and id not in known:
        raise NotInForceError(f"no delta {id!r} to undo", known)
    place = len(history) - 1 if id is None else known.index(id)
    if recompute:
        later = [workshop.asked_by(delta) for delta in history[place + 1 :]]
        workshop.replay(history[:place], later)
    elif known[place] not in [delta.id for delta in stack.in_force()]:
        remove(workshop, [request.id for request in workshop.asked_by(history[place]).requests])
    else:
        stack.settle((*history[:place], *history[place + 1 :]))


def remove(workshop: Workshop, request_ids: Sequence[str]) -> None:
    """Take single requests out, as ``Editor.remove`` says; all of them or none.

    Raises:
        NotInForceError: a request is not in force.
    """
    stack = workshop.stack
    held = [request.id for delta in stack.in_force() for request in delta.requests]
    for name in request_ids:
        if name not in held:
            raise NotInForceError(f"no request {name!r} to remove", held)
    before = stack.history
    try:
        for delta in stack.in_force():
            if any(request.id in request_ids for request in delta.requests):
                _remove_from(workshop, delta, request_ids)
    except BaseException:
        stack.settle(before)
        raise


def _remove_from(workshop: Workshop, delta: Delta, request_ids: Sequence[str]) -> None:
    """Put in the place of ``delta`` one without some of its requests."""
    kept = tuple(request for request in delta.requests if request.id not in request_ids)
    if workshop.replaces(delta.method):
        _shrink(workshop, delta, kept)
        return
    history = workshop.stack.history
    place = history.index(delta)
    new: tuple[Delta, ...] = ()
    if kept:
        asked = workshop.asked_by(delta).only(kept)
        workshop.stack.settle(history[:place])
        new = (workshop.compute(asked),)
    workshop.stack.settle((*history[:place], *new, *history[place + 1 :]))


def _shrink(workshop: Workshop, delta: Delta, kept: Sequence[EditRequest]) -> None:
    """Put memories of ``kept`` alone in the places of ``delta`` and of those that led to it."""
    method, history = delta.method, workshop.stack.history
    own = [one for one in history if one.method == method]
    names = {request.id for request in kept}
    new: dict[str, Delta] = {}  # by the id of the delta whose place it takes
    if kept and workshop.removes(method):
        dropped = tuple(r.id for r in delta.requests if r.id not in names)
        smaller = workshop.compute(evolve(workshop.asked_by(delta).only(()), remove=dropped))
        # One that held just as much already would make an undo that takes nothing out.
        new = {one.id: one for one in own if {r.id for r in one.requests} < names}
        new[delta.id] = smaller
    elif kept:
        asked = {one.id: workshop.asked_by(one) for one in own}
        left = {
            name: one.only([r for r in one.requests if r.id in names])
            for name, one in asked.items()
        }
        left = {name: one for name, one in left.items() if one.requests}
        others = [one for one in history if one.method != method]
        workshop.replay(others, list(left.values()))
        new = dict(zip(left, workshop.stack.history[len(others) :], strict=True))
    workshop.stack.settle(
        [new.get(one.id, one) for one in history if one.method != method or one.id in new]
    )
