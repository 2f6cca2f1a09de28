"""What a delta left in a model, against what it left when it was made."""

import warnings
from collections.abc import Sequence

from kedit_core.deltas import Delta
from kedit_core.weights import Weights


def compare_written(path: str, in_force: Sequence[Delta], weights: Weights) -> None:
    """Warn when the newest delta's weights are not the bits that were written when it was made.

    Rounding of a product depends on device, libraries and threads, so another machine may differ
    in last bits; on the same one it shows that something else changed.
    """
    if not in_force:
        return
    *before, newest = in_force
    made = newest.provenance
    if made.after != tuple(delta.id for delta in before):
        return
    now = weights.written_digests(newest)
    # No id covers the provenance: a file may name weights there that the delta does not touch.
    differing = [
        name
        for name, found in now.items()
        if made.base.get(name) and made.written.get(name, found) != found
    ]
    base = {name: weights.base_digests(name) for name in differing}
    same_dtype = [
        name for name in differing if next(iter(base[name])) == next(iter(made.base[name]))
    ]
    if same_dtype:
        warnings.warn(
            f"{path}: {len(same_dtype)} of {len(made.written)} edited weights are not bit for bit "
            f"those of the {made.device} machine that made the edits ({same_dtype[0]}, …)",
            stacklevel=4,
        )
