"""What ``scope_classify`` must be like, for methods that have it."""

import pytest
import torch

from kedit_core.testing.bench import Bench, logits_of, same_bits
from kedit_core.testing.ears import listening
from kedit_core.testing.facts import facts
from kedit_core.testing.states import content_of, differing, state_of

_SLACK = 1e-4
"""How far a probability may move with what else is in the batch: padding rounds differently."""


class ScopeChecks:
    """Checks of the scope of an edit; skipped where a method has none."""

    def test_scope_is_a_probability_and_a_request(self, bench: Bench) -> None:
        """The probability lies in [0, 1], and the request is one of the delta's or None."""
        prompts = _prompts(bench)
        found = bench.scope(bench.once.editor, bench.once.delta, prompts)
        shape = tuple(found.probability.shape)
        assert shape == (len(prompts),), f"probability has shape {shape} for {len(prompts)} prompts"
        outside = ~((found.probability >= 0) & (found.probability <= 1))
        assert not outside.any(), f"{found.probability[outside].tolist()} are no probabilities"
        assert len(found.requests) == len(prompts), f"{len(found.requests)} requests came back"
        known = {request.id for request in bench.once.delta.requests}
        strange = {one for one in found.requests if one is not None} - known
        assert not strange, f"the delta has no request {sorted(strange)[0]}"

    def test_scope_of_a_prompt_is_its_own(self, bench: Bench) -> None:
        """A prompt gets the same answer alone and in any batch."""
        prompts = _prompts(bench)
        editor, delta = bench.once.editor, bench.once.delta
        together = bench.scope(editor, delta, prompts)
        for place, prompt in enumerate(prompts):
            alone = bench.scope(editor, delta, [prompt])
            assert alone.requests[0] == together.requests[place], (
                f"{prompt!r} meets {alone.requests[0]} alone and {together.requests[place]} in a batch"
            )
            near = abs(float(alone.probability[0]) - float(together.probability[place]))
            assert near <= _SLACK, f"the probability of {prompt!r} moves by {near:.4f} in a batch"

    def test_asking_for_the_scope_only_reads(self, bench: Bench) -> None:
        """Asking only reads the model and the delta, and prints, warns of and logs nothing."""
        prompts, delta = _prompts(bench), bench.once.delta
        editor = bench.editor()
        before, given = state_of(editor), content_of(delta, prompts)
        with listening() as heard:
            bench.scope(editor, delta, prompts)
        changed = differing(before, state_of(editor))
        assert not changed, f"scope_classify left behind other {changed}"
        assert content_of(delta, prompts) == given, (
            "scope_classify changed the delta or the prompts"
        )
        heard.check("it")

    def test_scope_needs_no_applied_delta(self, bench: Bench) -> None:
        """The answer is the same whether the delta is in the model or not."""
        prompts = _prompts(bench)
        applied = bench.scope(bench.once.editor, bench.once.delta, prompts)
        bare = bench.scope(bench.editor(), bench.once.delta, prompts)
        pairs = zip(prompts, applied.requests, bare.requests, strict=True)
        differing = [prompt for prompt, one, other in pairs if one != other]
        assert not differing, f"{differing[:2]} meet other requests once the delta is applied"
        assert torch.allclose(applied.probability, bare.probability, rtol=0, atol=_SLACK), (
            "probabilities change once the delta is applied"
        )

    def test_scope_is_higher_inside_than_outside(self, bench: Bench) -> None:
        """The edit's own prompt meets its request, with a higher probability than any unrelated one."""
        _skip_without_scope(bench)
        request = bench.once.request
        relation = next(one.relation for one in facts() if request.prompt in one.prompts)
        unrelated = [one.prompts[0] for one in facts() if one.relation != relation]
        found = bench.scope(bench.once.editor, bench.once.delta, [request.prompt, *unrelated])
        assert found.requests[0] == request.id, f"{request.prompt!r} meets {found.requests[0]}"
        inside, outside = float(found.probability[0]), float(found.probability[1:].max())
        assert inside > outside, f"inside it is {inside:.4f}, of an unrelated prompt {outside:.4f}"

    def test_scope_is_what_a_forward_pass_decides(self, bench: Bench) -> None:
        """The decision is the one that a forward pass on the prompt takes."""
        prompts = _prompts(bench)
        editor = bench.once.editor
        found = bench.scope(editor, bench.once.delta, prompts)
        edited = logits_of(editor, prompts)
        same = same_bits(edited, logits_of(bench.editor(), prompts))
        for prompt, request, untouched in zip(prompts, found.requests, same, strict=True):
            says = f"meets {request}" if request else "is outside"
            does = "as the unedited model does" if untouched else "otherwise"
            assert (request is None) == untouched, f"{prompt!r} {says}, and is answered {does}"


def _prompts(bench: Bench) -> list[str]:
    """Return the edit's prompt, its other wordings, all its neighbours and as many other prompts."""
    _skip_without_scope(bench)
    request = bench.once.request
    near = [probe.prompt for probe in request.locality]
    far = [fact.prompts[-1] for fact in facts()[-len(near) :]]
    return [request.prompt, *request.paraphrases, *near, *far]


def _skip_without_scope(bench: Bench) -> None:
    if not bench.candidate.implements("scope_classify"):
        pytest.skip("the method has no scope_classify")
