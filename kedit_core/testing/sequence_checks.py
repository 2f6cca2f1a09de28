"""What several edits must be like: together, one after another, and some of them taken out."""

from collections.abc import Sequence

import pytest
from torch import Tensor

from kedit_core.editor import Editor
from kedit_core.requests import EditRequest
from kedit_core.testing.bench import Bench, holds, logits_of, same_bits

_OF_TEN = 7
"""How many of ten edits must still hold when a method says that it is continual."""

_NOTHING = 0.02
"""Up to which share two tensors look alike by chance."""


class SequenceChecks:
    """Checks of more than one edit."""

    def test_several_requests_hold_together(self, bench: Bench) -> None:
        """Two requests hold together: made at once by a batched method, else one after the other."""
        editor, asked = bench.editor(), bench.requests[:2]
        if bench.candidate.info.batched:
            editor.edit(asked)
        else:
            for request in asked:
                editor.edit(request)
        assert all(holds(editor, asked)), f"not held: {_not_held(editor, asked)}"

    def test_a_continual_method_holds_many_edits(self, bench: Bench) -> None:
        """Of ten edits made one after the other, a continual method holds seven at the end."""
        if not bench.candidate.info.continual:
            pytest.skip("the method does not say that it is continual")
        editor = bench.editor()
        for request in bench.requests:
            editor.edit(request)
        held = sum(holds(editor, bench.requests))
        missing = _not_held(editor, bench.requests)
        assert held >= _OF_TEN, f"{held} of {len(bench.requests)} edits hold; not held: {missing}"

    def test_carry_is_of_this_batch_alone(self, bench: Bench) -> None:
        """``carry`` holds the batch's own contribution, never a running total."""
        first, second, *_ = bench.requests
        alone = bench.editor().edit(second)
        editor = bench.editor()
        earlier, later = editor.edit(first), editor.edit(second)
        if not earlier.carry and not later.carry:
            pytest.skip("the method carries nothing from one edit to the next")
        assert later.carry.keys() == alone.carry.keys(), "after another edit, carry has other names"
        for name, found in later.carry.items():
            own = alone.carry[name]
            assert found.shape == own.shape, (
                f"carry {name} has shape {tuple(found.shape)} after another edit and "
                f"{tuple(own.shape)} without it"
            )
            before = earlier.carry.get(name)
            if before is not None and before.shape == own.shape:
                held = _share_of(before, found, own)
                assert not held, f"carry {name} holds {held:.0%} of the earlier edit's as well"

    def test_what_was_undone_leaves_no_trace(self, bench: Bench) -> None:
        """An edit that was undone leaves no trace in the next one, neither its carry nor its memory."""
        first, second, third, *_ = bench.requests
        plain, detour = bench.editor(), bench.editor()
        plain.edit(first)
        wanted = plain.edit(third)
        for request in (first, second):
            detour.edit(request)
        detour.undo()
        assert detour.edit(third).id == wanted.id, "the undone edit shows in the next"

    def test_a_memory_holds_the_earlier_edits_too(self, bench: Bench) -> None:
        """The second delta of a memory holds both edits, and its undo brings the first one back."""
        editor, asked = _with_two(bench)
        assert all(holds(editor, asked)), f"not held: {_not_held(editor, asked)}"
        editor.undo()
        prompts = [request.prompt for request in asked]
        again = logits_of(editor, prompts)
        assert all(same_bits(again, logits_of(bench.once.editor, prompts))), (
            "after undo the model says something else than with the first edit alone"
        )

    def test_a_memory_lets_go_of_one_edit(self, bench: Bench) -> None:
        """A request that is removed from a memory no longer holds, and the others still do."""
        editor, (first, second) = _with_two(bench)
        editor.remove(first.id)
        kept = [request.id for delta in editor.deltas for request in delta.requests]
        assert kept == [second.id], f"the memory says that it holds {kept}"
        assert holds(editor, [first, second]) == [False, True], (
            f"{first.prompt!r} was removed, and the memory says otherwise"
        )


def _share_of(earlier: Tensor, found: Tensor, own: Tensor) -> float:
    """Return how much of an earlier edit's tensor is mixed into what should be ``own``; 0 for nothing.

    In a sum it is added, in a mean it takes the place of its own. What another model says of the same
    request differs too, but not by a share of this one tensor: then most of the difference is left.
    """
    moved = (found.double() - own.double()).flatten()
    for towards in (earlier.double(), earlier.double() - own.double()):
        along = towards.flatten()
        share = float(moved @ along / (along @ along).clamp_min(1e-30))
        left = float((moved - share * along).norm())
        if share > _NOTHING and left < float(moved.norm()) / 2:
            return share
    return 0.0


def _with_two(bench: Bench) -> tuple[Editor, Sequence[EditRequest]]:
    """Return an editor whose memory took in two edits, one after the other."""
    if not bench.candidate.remembers:
        pytest.skip("the method writes weights and has no memory")
    editor, asked = bench.editor(), bench.requests[:2]
    for request in asked:
        editor.edit(request)
    return editor, asked


def _not_held(editor: Editor, requests: Sequence[EditRequest]) -> str:
    pairs = zip(requests, holds(editor, requests), strict=True)
    return ", ".join(repr(request.prompt) for request, held in pairs if not held)
