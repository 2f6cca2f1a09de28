"""What an edit must be like once it is in the model."""

from collections.abc import Sequence
from math import prod

import pytest
import torch
from attrs import evolve

from kedit_core.editor import Editor
from kedit_core.errors import DeltaError, RequestError
from kedit_core.requests import EditRequest
from kedit_core.testing.bench import Bench, holds, logits_of, same_bits, scores
from kedit_core.testing.facts import facts
from kedit_core.testing.states import differing, names_of, state_of
from kedit_core.tokens import encode

_TOKENS = 3
"""How much of an answer is compared."""

_GAIN = 3
"""By what factor a target must gain in a chat; one of an edit that knows of none moves by chance."""


class ApplyingChecks:
    """Checks of what an edit does, and of how it comes out again."""

    def test_the_target_becomes_likely(self, bench: Bench) -> None:
        """After the edit the target is likelier than before, and likelier than the old answer."""
        for request in bench.requests[:3]:
            _edit_and_see(bench.editor(), request)

    def test_in_a_chat_the_target_becomes_likely(self, bench: Bench) -> None:
        """With ``batch.chat`` the target becomes likelier after the prompt as the template renders it."""
        # These models never saw a chat, so how far behind the old answer was says nothing of a method.
        pairs = [_edited(bench.editor(chat=True), request) for request in bench.requests[:4]]
        gain = prod(after / before for before, after in pairs) ** (1 / len(pairs))
        assert gain > _GAIN, f"in a chat targets become {gain:.2f} times as likely, not {_GAIN}"

    def test_a_subject_that_is_not_needed_may_be_missing(self, bench: Bench) -> None:
        """A method that does not need the subject edits without one, or raises a RequestError."""
        if "subject" in bench.candidate.info.needs:
            pytest.skip(
                "the method says that it needs the subject, so core refuses requests without"
            )
        request = evolve(bench.requests[0], subject=None, subject_span=None)
        try:
            _edit_and_see(bench.editor(), request)
        except RequestError:
            return
        except Exception as error:
            raise AssertionError(
                f"without a subject it raises {type(error).__name__}: {error}; a method that needs it "
                "says so in its card"
            ) from error

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
        before = state_of(editor)
        for request in bench.requests[:2]:
            editor.edit(request)
        said = logits_of(editor, [request.prompt for request in bench.requests])
        editor.undo()
        editor.undo()
        changed = differing(before, state_of(editor))
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
        prompts = [prompt for fact in facts() for prompt in fact.prompts[:1]]
        here = logits_of(bench.once.editor, prompts)
        bench.once.editor.save(path)
        fresh = bench.editor()
        try:
            fresh.load(path)
        except DeltaError as error:
            raise AssertionError(f"what was saved is not what is in force: {error}") from error
        same = same_bits(here, logits_of(fresh, prompts))
        assert all(same), f"{same.count(False)} of {len(same)} prompts get other logits"

    def test_a_bfloat16_model_can_be_edited(self, bench: Bench) -> None:
        """In a bfloat16 model an edit holds as well, and comes out exactly."""
        editor, request = bench.editor(torch.bfloat16), bench.requests[0]
        before = state_of(editor)
        (chance,) = scores(editor, [request], "reliability.probability")
        editor.edit(request)
        (after,) = scores(editor, [request], "reliability.probability")
        assert after > chance, f"the target went from probability {chance:.4f} to {after:.4f}"
        assert all(holds(editor, [request])), f"{request.target_new!r} stays behind the old answer"
        kinds = {str(one.dtype) for one in editor.model.parameters()}
        assert kinds == {"torch.bfloat16"}, f"the edited model holds {', '.join(sorted(kinds))}"
        editor.undo()
        changed = differing(before, state_of(editor))
        assert not changed, f"undo left behind other {changed}"

    def test_a_prompt_gets_one_answer_however_it_is_read(self, bench: Bench) -> None:
        """Alone, in a padded batch and with a KV cache a prompt gets the same answer."""
        if not bench.candidate.remembers:
            pytest.skip("edited weights know nothing of batches and caches")
        editor, request = bench.once.editor, bench.once.request
        near = [probe.prompt for probe in request.locality[:3]]
        far = [fact.prompts[-1] for fact in facts()[-3:]]
        prompts = [request.prompt, *request.paraphrases, *near, *far]
        alone = [_answers(editor, [prompt], use_cache=False)[0] for prompt in prompts]
        cached = [_answers(editor, [prompt])[0] for prompt in prompts]
        batch = _answers(editor, prompts)
        scored = _answers_scored(editor, prompts)
        for place, prompt in enumerate(prompts):
            said = f"{prompt!r} is answered {alone[place]} alone"
            assert cached[place] == alone[place], f"{said}, {cached[place]} with a KV cache"
            assert batch[place] == alone[place], f"{said}, {batch[place]} in a batch"
            first = scored[place]
            assert first == alone[place][0], f"{said}, {first} in a batch padded on the right"


def _edit_and_see(editor: Editor, request: EditRequest) -> None:
    """Make an edit, and see that its target is likelier than before and than the old answer."""
    before, after = _edited(editor, request)
    said = f"{request.prompt!r} -> {request.target_new!r}"
    assert after > before, f"{said} went from probability {before:.4f} to {after:.4f}"
    assert all(holds(editor, [request])), f"{said} stays behind {request.target_true!r}"


def _edited(editor: Editor, request: EditRequest) -> tuple[float, float]:
    """Make an edit, and return the probability of its target before and after."""
    (before,) = scores(editor, [request], "reliability.probability")
    editor.edit(request)
    (after,) = scores(editor, [request], "reliability.probability")
    return before, after


@torch.no_grad()
def _answers(
    editor: Editor, prompts: Sequence[str], *, use_cache: bool = True
) -> list[tuple[str, ...]]:
    """Return the tokens that ``generate`` puts after each prompt, in a batch padded on the left."""
    rows = [encode(editor.tokenizer, [prompt])[0].ids for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows])  # (prompts, tokens)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    said = editor.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        max_new_tokens=_TOKENS,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
    )
    return [tuple(editor.tokenizer.convert_ids_to_tokens(row)) for row in said[:, longest:]]


@torch.no_grad()
def _answers_scored(editor: Editor, prompts: Sequence[str]) -> list[str]:
    """Return the likeliest token after each prompt, read in a batch padded on the right."""
    rows = [encode(editor.tokenizer, [prompt])[0].ids for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row] + [0] * (longest - len(row)) for row in rows])  # (prompts, tokens)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits = editor.model(input_ids=ids, attention_mask=mask).logits
    best = [int(logits[place, len(row) - 1].argmax()) for place, row in enumerate(rows)]
    return list(editor.tokenizer.convert_ids_to_tokens(best))
