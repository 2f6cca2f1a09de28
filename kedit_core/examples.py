"""Examples: what a model says after a few prompts, unedited and edited."""

from collections.abc import Sequence

from attrs import frozen

from kedit_core.editor import Editor
from kedit_core.requests import EditRequest
from kedit_core.run_records import Example

_TOKENS = 8


@frozen(kw_only=True)
class _Asked:
    request: str
    kind: str
    prompt: str
    wanted: str


def examples_of(editor: Editor, requests: Sequence[EditRequest], count: int = 6) -> list[Example]:
    """Return what the model says now and said unedited about some of the requests.

    Args:
        editor: of the model.
        requests: of which ``count`` are taken, evenly spread over their order.
        count: at the most.
    """
    step = max(1, len(requests) // max(count, 1))
    asked = [one for request in requests[::step][:count] for one in _asked(request)]
    if not asked:
        return []
    prompts = [one.prompt for one in asked]
    after = editor.complete(prompts, _TOKENS)
    with editor.original():
        before = editor.complete(prompts, _TOKENS)
    return [
        Example(
            request=one.request,
            kind=one.kind,  # type: ignore[arg-type]
            prompt=one.prompt,
            wanted=one.wanted,
            before=said,
            after=says,
        )
        for one, said, says in zip(asked, before, after, strict=True)
    ]


def _asked(request: EditRequest) -> list[_Asked]:
    found = [("edit", request.prompt, request.target_new)]
    found += [("paraphrase", text, request.target_new) for text in request.paraphrases[:1]]
    found += [("neighbour", probe.prompt, probe.answers[0]) for probe in request.locality[:1]]
    return [
        _Asked(request=request.id, kind=kind, prompt=prompt, wanted=wanted)
        for kind, prompt, wanted in found
    ]
