"""How a model goes on after a prompt, as text for people."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.scoring import continue_greedily, ends_of_text, up_to
from kedit_core.tokens import encode


def completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int,
    *,
    chat: bool,
) -> list[str]:
    """Return the first sentence that greedy decoding adds to each prompt.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
        prompts: as a user would type them.
        tokens: at the most.
        chat: render each through the chat template.
    """
    said = continue_greedily(model, [one.ids for one in encode(tokenizer, prompts, chat)], tokens)
    # An end of turn need not be a special token, but generation ends there.
    ends = {*tokenizer.all_special_ids, *ends_of_text(model, tokenizer)}
    return [_first_sentence(str(tokenizer.decode(up_to(ends, ids)))) for ids in said]


def _first_sentence(text: str) -> str:
    line = text.strip().partition("\n")[0]
    sentence, stop, _ = line.partition(". ")
    return (sentence + stop.strip()).strip()
