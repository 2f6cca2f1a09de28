"""Questions that an edit should not answer, and questions the other way round."""

from collections.abc import Iterator

from kedit_core import EditBatch, EditRequest
from kedit_core.questions import Question
from kedit_lab.texts import texts_of


def negations(batch: EditBatch, template: str | None) -> Iterator[Question]:
    """Yield each request's negated prompts, after which its new target should not come.

    Args:
        batch: whole requests; their negated prompts stand in ``extra["negations"]``.
        template: makes one of the prompt for a request that has none, ``{}`` being the prompt.

    Raises:
        RequestError: ``negations`` holds no texts.
    """
    for request in batch.requests:
        for prompt in texts_of(request, "negations") or _made(template, request.prompt):
            yield _question(request, prompt, request.target_new)


def reversals(batch: EditBatch, template: str | None) -> Iterator[Question]:
    """Yield prompts about each request's new target, after which its subject should come.

    Args:
        batch: whole requests; their reversed prompts stand in ``extra["reversals"]``.
        template: makes one for a request that has none, ``{}`` being the new target.

    Raises:
        RequestError: ``reversals`` holds no texts.
    """
    for request in batch.requests:
        if request.subject is not None:
            for prompt in texts_of(request, "reversals") or _made(template, request.target_new):
                yield _question(request, prompt, request.subject)


def _made(template: str | None, text: str) -> tuple[str, ...]:
    return () if template is None else (template.replace("{}", text),)


def _question(request: EditRequest, prompt: str, answer: str) -> Question:
    return Question(request=request.id, prompt=prompt, answers=(answer,), rival=None)
