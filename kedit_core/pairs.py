"""Questions as token ids: a prompt with one answer, each text tokenised once and many at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

from kedit_core.questions import Question
from kedit_core.tokens import Encoded, Ids, all_ids_of, encode, encode_targets


@frozen(kw_only=True)
class Pair:
    """A prompt and an answer as ids.

    Attributes:
        prompt: (tokens,).
        answer: (tokens,) as they continue the prompt.
    """

    prompt: Ids
    answer: Ids


_Key = tuple[str, str]  # prompt, answer as it stands after it


class Pairs:
    """What a tokenizer makes of questions and their answers; it remembers what it has read.

    Ask for many pairs at a time: a call of the tokenizer costs more than the text in it.

    Attributes:
        tokenizer: that reads.
    """

    def __init__(self, tokenizer: Any, chat: bool = False) -> None:
        """Read with ``tokenizer``; with ``chat`` prompts are rendered through its chat template."""
        self.tokenizer, self._chat = tokenizer, chat
        self._prompts: dict[str, Encoded] = {}
        self._read: dict[_Key, Pair] = {}
        self._counted: dict[_Key, Pair] = {}

    def prompts(self, asked: Iterable[Question]) -> list[Ids]:
        """Return the ids of each question's prompt."""
        return [one.ids for one in self._encoded([question.prompt for question in asked])]

    def of(self, asked: Sequence[tuple[Question, str]]) -> list[Pair]:
        """Return a pair for each question and answer; prompt and answer are tokenised as they are edited.

        Raises:
            RequestError: an answer tokenises to nothing.
        """
        keys = [(question.prompt, question.joined(answer)) for question, answer in asked]
        missing = [key for key in dict.fromkeys(keys) if key not in self._read]
        prompts = self._encoded([prompt for prompt, _ in missing])
        targets = encode_targets(self.tokenizer, prompts, [answer for _, answer in missing])
        for key, prompt, target in zip(missing, prompts, targets, strict=True):
            self._read[key] = Pair(prompt=prompt.ids, answer=target)
        return [self._read[key] for key in keys]

    def counted(self, asked: Sequence[Question]) -> list[Pair]:
        """Return each prompt with its first answer, cut where the prompt alone would end.

        That is how EasyEdit counts the answer's tokens; it may leave none.
        """
        if self._chat:
            return self.of([(question, question.answers[0]) for question in asked])
        keys = [(one.prompt, one.joined(one.answers[0])) for one in asked]
        missing = [key for key in dict.fromkeys(keys) if key not in self._counted]
        joint = all_ids_of(self.tokenizer, [prompt + answer for prompt, answer in missing])
        alone = all_ids_of(self.tokenizer, [prompt for prompt, _ in missing])
        for key, ids, prompt in zip(missing, joint, alone, strict=True):
            count = len(prompt)
            self._counted[key] = Pair(prompt=ids[:count], answer=ids[count:])
        return [self._counted[key] for key in keys]

    def _encoded(self, texts: Sequence[str]) -> list[Encoded]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        self._prompts |= zip(missing, encode(self.tokenizer, missing, self._chat), strict=True)
        return [self._prompts[text] for text in texts]
