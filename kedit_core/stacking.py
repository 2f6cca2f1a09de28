"""Which kinds of edits go together on one model.

Weights go on weights, and a memory on edited weights. Weights do not go under a memory: it was made
for the activations that they would change. Two memories stand beside different modules. A prompt
comes on anything and is outermost: nothing comes after it. What one method adds to its own edits is
its own affair, and everything can be undone at any time.
"""

from collections.abc import Callable, Sequence

from kedit_core.deltas import Delta, SideMemory
from kedit_core.errors import StackingError
from kedit_core.methods import Kind

KindOf = Callable[[str], Kind]
"""Returns the kind of a method by its name."""


def check_method(
    method: str, in_force: Sequence[Delta], kind_of: KindOf, *, where: str = ""
) -> None:
    """See that a method may add to the edits in force, as far as its kind tells.

    Args:
        method: its name.
        in_force: oldest first.
        kind_of: returns the kind of each method.
        where: the file that brings the edits; empty where they are to be computed.

    Raises:
        StackingError: it comes after another method's prompt, or writes weights under a memory.
    """
    for delta in in_force:
        other = delta.method
        if other == method:
            continue
        if kind_of(other) == "prompt":
            problem = f"{other!r} puts a prompt before everything, and nothing goes on top of it"
            raise StackingError(method, problem, delta.id, _earlier(method, other, where), where)
        if kind_of(method) == "weights" and kind_of(other) == "side-memory":
            problem = (
                f"it changes weights, and the memory of {other!r} was made for them as they are"
            )
            raise StackingError(method, problem, delta.id, _earlier(method, other, where), where)


def check_delta(
    delta: Delta, in_force: Sequence[Delta], kind_of: KindOf, *, where: str = ""
) -> None:
    """See that a delta may come on top of the edits in force.

    Args:
        delta: computed or loaded.
        in_force: oldest first.
        kind_of: returns the kind of each method.
        where: the file that brings it; empty where it was computed.

    Raises:
        StackingError: its kind may not, or it stands beside the module of another method's memory.
    """
    check_method(delta.method, in_force, kind_of, where=where)
    if kind_of(delta.method) != "side-memory":
        return
    for other in in_force:
        if other.method == delta.method or kind_of(other.method) != "side-memory":
            continue
        for at in sorted(_places(delta) & _places(other)):
            problem = (
                f"the memory of {other.method!r} stands beside {at or 'the whole model'} already"
            )
            way_out = "load one of the two" if where else _undo(other.method)
            raise StackingError(delta.method, problem, other.id, way_out, where)


def check_file(
    path: str, loaded: Sequence[Delta], in_force: Sequence[Delta], kind_of: KindOf
) -> None:
    """See that the deltas of a file may come on top of the edits in force, one after the other.

    Raises:
        StackingError: one of them may not.
    """
    newest = {delta.method: delta for delta in in_force}  # of a memory the one that is in force
    for delta in loaded:
        check_delta(delta, tuple(newest.values()), kind_of, where=path)
        newest[delta.method] = delta


def _places(delta: Delta) -> set[str]:
    """Return the modules that a delta stands beside."""
    return {part.at for part in delta.parts if isinstance(part, SideMemory)}


def _earlier(method: str, other: str, where: str) -> str:
    return f"the edits of {method!r} must come before those of {other!r}" if where else _undo(other)


def _undo(other: str) -> str:
    return f"undo the edits of {other!r} first"
