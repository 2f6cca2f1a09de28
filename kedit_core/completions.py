"""How a model goes on after a prompt, as text for people."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.scoring import continue_greedily
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
    special = set(tokenizer.all_special_ids)
    ends = (next((n for n, one in enumerate(ids) if one in special), tokens) for ids in said)
    texts = (tokenizer.decode(list(ids[:end])) for ids, end in zip(said, ends, strict=True))
    return [_first_sentence(str(text)) for text in texts]


def _first_sentence(text: str) -> str:
    line = text.strip().partition("\n")[0]
    sentence, stop, _ = line.partition(". ")
    return (sentence + stop.strip()).strip()
