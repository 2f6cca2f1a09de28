"""A prompt as one turn of a chat: what the tokenizer's template puts around it, and before the answer."""

from typing import Any

from attrs import field, frozen

from kedit_core.errors import RequestError

_PLACEHOLDER = "⟦kedit⟧"


@frozen(kw_only=True)
class Turn:
    """A text as the user's turn of a chat, the assistant's turn open.

    Attributes:
        rendered: all that the model reads.
        shift: character of ``rendered`` that the first one of the text stands at; of a text whose
            blanks the template strips, the one where it would stand.
        shown: characters of the text that the template shows, [start, end).
        lead: what stands between ``rendered`` and the answer: nothing, unless the template itself puts
            blanks there when it shows a whole conversation.
    """

    rendered: str = field(repr=False)
    shift: int
    shown: tuple[int, int]
    lead: str


def as_turn(tokenizer: Any, text: str) -> Turn:
    """Return a text in the tokenizer's chat template.

    Raises:
        RequestError: the tokenizer has no template, or it fails, or does not show the text as it is.
    """
    rendered = _render(tokenizer, text)
    # Looked for where another text of the same turn starts: the template may use the same words.
    place = _render(tokenizer, _PLACEHOLDER).find(_PLACEHOLDER)
    shown = _shown(rendered, place, text)
    if place < 0 or shown is None:
        raise RequestError(f"the chat template does not show the prompt {text!r} as it is")
    return Turn(
        rendered=rendered,
        shift=place - shown[0],
        shown=shown,
        lead=_lead(tokenizer, text, rendered),
    )


def _shown(rendered: str, place: int, text: str) -> tuple[int, int] | None:
    """Return which characters of a text stand at a place: all, or all but its outer blanks."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    spans = ((0, len(text)), (start, len(text)), (0, end), (start, end))
    return next((span for span in spans if rendered.startswith(text[slice(*span)], place)), None)


def _lead(tokenizer: Any, text: str, rendered: str) -> str:
    """Return the blanks that the template puts between the open turn and what the assistant says."""
    try:
        whole = _render(tokenizer, text, _PLACEHOLDER)
    except RequestError:  # a template for prompts alone
        return ""
    if not whole.startswith(rendered):
        return ""
    between, found, _ = whole[len(rendered) :].partition(_PLACEHOLDER)
    # Words there, such as an empty chain of thought, are the model's to say.
    return between if found and not between.strip() else ""


def _render(tokenizer: Any, text: str, answer: str | None = None) -> str:
    """Return the rendered chat, its assistant's turn open or holding ``answer``."""
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError("this tokenizer has no chat template; leave chat out")
    turns = [{"role": "user", "content": text}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer is None
            )
        )
    # A template is a program of its author's; it may raise what it likes.
    except Exception as error:
        raise RequestError(f"the chat template fails on {text!r}: {error}") from error
