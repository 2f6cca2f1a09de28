"""The questions that a judgement asks: one prompt each, its right answers, and what they compete with."""

from collections.abc import Iterator

from attrs import frozen

from kedit_core.requests import EditBatch, EditRequest, Probe, joiner_for

AXES = ("reliability", "generalization", "locality", "portability")


@frozen(kw_only=True)
class Question:
    """One prompt that one request is judged by.

    Attributes:
        request: its id.
        prompt: full text.
        answers: the right answers; any counts.
        rival: what the answer is preferred to, or None.
        joiner: stands between the prompt and any of them; None for what fits each.
        group: of the probe.
    """

    request: str
    prompt: str
    answers: tuple[str, ...]
    rival: str | None
    joiner: str | None = None
    group: str = ""

    def joined(self, answer: str) -> str:
        """Return an answer as it stands after the prompt."""
        if self.joiner == "":
            return answer
        bare = answer.lstrip()
        return (joiner_for(self.prompt, bare) if self.joiner is None else self.joiner) + bare


def questions_of(batch: EditBatch, axis: str) -> Iterator[Question]:
    """Yield what the requests of a batch ask on one axis."""
    for request in batch.requests:
        if axis == "reliability":
            yield _own(request, request.prompt)
        elif axis == "generalization":
            yield from (_own(request, text) for text in request.paraphrases)
        elif axis == "locality":
            yield from (_probed(request, probe, request.target_new) for probe in request.locality)
        else:
            yield from (_probed(request, probe, None) for probe in request.portability)


def _own(request: EditRequest, prompt: str) -> Question:
    bare = request.target_new.lstrip()
    usual = joiner_for(request.prompt, bare) + bare
    return Question(
        request=request.id,
        prompt=prompt,
        answers=(request.target_new,),
        rival=request.target_true,
        # A joiner that the user chose is part of the edit, of its paraphrases too.
        joiner=None if request.joiner + request.target_new == usual else request.joiner,
    )


def _probed(request: EditRequest, probe: Probe, rival: str | None) -> Question:
    return Question(
        request=request.id,
        prompt=probe.prompt,
        answers=probe.answers,
        rival=rival,
        group=probe.group,
    )
