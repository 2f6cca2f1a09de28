"""What a writer of shards is given and gives back, whichever it is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen
from torch import Tensor

from kedit_core import EditRequest
from kedit_wise.updates import Update


@frozen(kw_only=True)
class Held:
    """A shard that more edits are written into.

    Attributes:
        drawn: how many shards were begun before it.
        update: so far; None where it holds no edit yet.
        requests: its edits.
        keys: (edits, columns, in_features).
    """

    drawn: int
    update: Update | None
    requests: Sequence[EditRequest]
    keys: Tensor = field(repr=False)


@frozen(kw_only=True)
class Written:
    """A shard after a write.

    Attributes:
        update: of all its edits.
        keys: (new edits, columns, in_features) inputs that stand for the new ones.
        notes: for the provenance.
    """

    update: Update
    keys: Tensor = field(repr=False)
    notes: Mapping[str, Any]


class Writer(Protocol):
    """Writes edits into shards."""

    def write(
        self, requests: Sequence[EditRequest], held: Held, notes: Mapping[str, Any], *, chat: bool
    ) -> Written:
        """Return a shard with more edits in it.

        Args:
            requests: to write.
            held: the shard so far.
            notes: what was noted when the same edits were made before, or nothing.
            chat: render prompts through the chat template.
        """


def notes_of(
    layer: int, writes: Sequence[Mapping[str, Any]], warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the notes of a batch; what core is to warn of stands where core looks for it.

    Args:
        layer: beside whose projection the memory stands.
        writes: what each write noted.
        warnings: further sentences to warn of.
    """
    said = [sentence for one in writes for sentence in one.get("warnings", ())]
    said += warnings
    return {"layer": layer, "writes": list(writes), **({"warnings": said} if said else {})}


def noted(notes: Mapping[str, Any], write: int) -> Mapping[str, Any]:
    """Return what was noted of a write when the same edits were made before; nothing where nothing was.

    Args:
        notes: of that batch.
        write: which one of its writes.
    """
    every = notes.get("writes")
    found = every[write] if isinstance(every, list | tuple) and write < len(every) else None
    return found if isinstance(found, Mapping) else {}
