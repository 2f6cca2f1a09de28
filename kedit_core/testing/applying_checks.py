"""What an edit must be like once it is in the model."""

import torch

from kedit_core.testing.bench import (
    Bench,
    differing,
    holds,
    logits_of,
    names_of,
    same_bits,
    scores,
    state_of,
)
from kedit_core.testing.facts import facts


class ApplyingChecks:
    """Checks of what an edit does, and of how it comes out again."""

    def test_the_target_becomes_likely(self, bench: Bench) -> None:
        """After the edit the target is likelier than before, and likelier than the old answer."""
        for request in bench.requests[:3]:
            editor = bench.editor()
            (before,) = scores(editor, [request], "reliability.probability")
            editor.edit(request)
            (after,) = scores(editor, [request], "reliability.probability")
            said = f"{request.prompt!r} -> {request.target_new!r}"
            assert after > before, f"{said} went from probability {before:.4f} to {after:.4f}"
            assert all(holds(editor, [request])), f"{said} stays behind {request.target_true!r}"

    def test_neighbours_stay_within_the_tolerance(self, bench: Bench) -> None:
        """What neighbours answer loses no more of its probability than the test class tolerates."""
        lost = []
        for request in bench.requests[:3]:
            editor = bench.editor()
            (before,) = scores(editor, [request], "locality.probability")
            editor.edit(request)
            (after,) = scores(editor, [request], "locality.probability")
            lost.append(before - after)
        mean, allowed = sum(lost) / len(lost), bench.candidate.tolerance
        assert mean <= allowed, f"neighbours lost {mean:.3f} of probability, {allowed} is tolerated"

    def test_undo_is_exact(self, bench: Bench) -> None:
        """``undo()`` of what comes back leaves the model bit for bit as before."""
        editor = bench.editor()
        before = state_of(editor.model)
        for request in bench.requests[:2]:
            editor.edit(request)
        said = logits_of(editor, [request.prompt for request in bench.requests])
        editor.undo()
        editor.undo()
        changed = differing(before, state_of(editor.model))
        assert not changed, f"undo left behind other {changed}"
        again = logits_of(editor, [request.prompt for request in bench.requests])
        assert not all(same_bits(said, again)), "the edits changed nothing that the model says"

    def test_names_in_the_model_never_change(self, bench: Bench) -> None:
        """Parameter paths and state-dict keys never change."""
        once = bench.once
        now = names_of(once.editor.model)
        added = {*now[0], *now[1]} ^ {*once.names_before[0], *once.names_before[1]}
        assert now == once.names_before, f"the edit changed the names {sorted(added)[:5]}"

    def test_a_saved_delta_gives_a_fresh_model_the_same_logits(self, bench: Bench) -> None:
        """A delta that was saved and loaded gives a fresh model the same logits, bit for bit."""
        path = bench.folder() / "delta.safetensors"
        bench.once.editor.save(path)
        fresh = bench.editor()
        loaded = fresh.load(path)
        assert [one.id for one in loaded] == [bench.once.delta.id], "another delta was read back"
        prompts = [prompt for fact in facts() for prompt in fact.prompts[:1]]
        here, there = logits_of(bench.once.editor, prompts), logits_of(fresh, prompts)
        same = same_bits(here, there)
        assert all(same), f"{same.count(False)} of {len(same)} prompts get other logits"

    def test_a_bfloat16_model_can_be_edited(self, bench: Bench) -> None:
        """In a bfloat16 model an edit holds as well, and comes out exactly."""
        editor, request = bench.editor(torch.bfloat16), bench.requests[0]
        before = state_of(editor.model)
        (chance,) = scores(editor, [request], "reliability.probability")
        editor.edit(request)
        (after,) = scores(editor, [request], "reliability.probability")
        assert after > chance, f"the target went from probability {chance:.4f} to {after:.4f}"
        assert all(holds(editor, [request])), f"{request.target_new!r} stays behind the old answer"
        kinds = {str(one.dtype) for one in editor.model.parameters()}
        assert kinds == {"torch.bfloat16"}, f"the edited model holds {', '.join(sorted(kinds))}"
        editor.undo()
        changed = differing(before, state_of(editor.model))
        assert not changed, f"undo left behind other {changed}"
