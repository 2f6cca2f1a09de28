"""From tokens of the base to text, to a counterfactual model with another vocabulary, and back.

The prompt of a sequence in scope is decoded, read by the counterfactual model behind the edit, and answered
greedily in text. The base's tokens of that text, as they continue the prompt, are what the wrapped model says:

    p(token | prompt, said) = 1 - ε for the one that comes next where what was said begins the answer,

and ε over all others. Where what was said is something else, and once the answer was said, the model itself
goes on. An answer follows from the edit and the prompt alone, so a step says what a whole pass says.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kedit_core.requests import EditRequest
from kedit_core.scoring import continue_greedily, ends_of_text
from kedit_core.tokens import Encoded, Ids, encode, encode_target
from kedit_memory.kept import OUTSIDE, Kept
from kedit_memory.passages import Passage
from kedit_serac.bridged import Bridged
from kedit_serac.counterfactual import edit_text
from kedit_serac.telling import Told

_REST = 1e-4  # ε
_LONGER = 8  # tokens that an answer may be longer than the target
_STOPS = (".", "\n")
_NONE = -1


class Bridge:
    """Asks a counterfactual model in text, and puts its answers into tokens of the base."""

    def __init__(
        self, base: Any, tokenizer: Any, model: Bridged, edits: Sequence[EditRequest]
    ) -> None:
        """Answer beside ``base``, whose tokenizer is given, from edits."""
        self._base, self._tokenizer, self._model = base, tokenizer, model
        self._edits = edits
        self._ends = sorted(ends_of_text(base, tokenizer))

    def begin(self, passage: Passage, kept: Kept, *, keeps: bool, hands_back: bool) -> Told:  # noqa: ARG002
        """Say what follows each token of a pass that reads the whole text so far.

        Args:
            passage: whose tokens are read.
            kept: the decisions on its rows; the answers are kept beside them.
            keeps: more tokens will follow, from a cache.
            hands_back: the base goes on once the answer was said.
        """
        if not isinstance(kept.beside, Bridging):  # else an earlier pass without a cache answered
            answers: list[Ids] = []
            for row, edit in enumerate(kept.decision.tolist()):
                prompt = tuple(passage.ids[row][passage.prompts[row]].tolist())
                inside = edit != OUTSIDE
                answers.append(self.answer(edit, prompt, hands_back=hands_back) if inside else ())
            kept.beside = Bridging(answers, kept.decision != OUTSIDE)
        return kept.beside.begin(self._base, passage)

    def go_on(self, passage: Passage, kept: Kept, *, hands_back: bool) -> Told:  # noqa: ARG002
        """Say what follows each token of a pass behind what was read before; as :meth:`begin`."""
        following: Any = kept.beside
        return following.go_on(self._base, passage)  # type: ignore[no-any-return]

    def answer(self, edit: int, prompt: Ids, *, hands_back: bool) -> Ids:
        """Return what follows a prompt, in tokens of the base.

        Args:
            edit: of the memory, whose scope the prompt is in.
            prompt: in tokens of the base.
            hands_back: the answer alone; else with the full stop and the end of text behind it.

        Raises:
            RequestError: edit and prompt are longer than the counterfactual model's context.
        """
        text = self._decoded(self._tokenizer, prompt)
        said = self._said(edit, text)
        if not said:
            return ()
        before = Encoded(text=text, ids=prompt, offsets=(), read=text)
        if hands_back:
            return encode_target(self._tokenizer, before, said)
        ids = encode_target(self._tokenizer, before, said + _STOPS[0])
        return (*ids, *self._ends[:1])

    def _said(self, edit: int, query: str) -> str:
        """Return what the counterfactual model says behind an edit and a query, up to where it stops."""
        request, own = self._edits[edit], self._model.tokenizer
        prompt, asked = encode(own, [request.prompt, query])
        target = request.joiner + request.target_new
        stored = encode_target(own, prompt, target)
        text = edit_text(prompt.ids, stored).then(asked.ids)
        ids = tuple(self._model.ids_of(torch.tensor(text.codes)).tolist())
        (found,) = continue_greedily(self._model.language, [ids], len(stored) + _LONGER)
        ends = ends_of_text(self._model.language, own)
        end = next((place for place, one in enumerate(found) if one in ends), len(found))
        shown = self._decoded(own, asked.ids)
        said = self._decoded(own, (*asked.ids, *found[:end]))[len(shown) :]
        if said.startswith(target) and not said[len(target) :][:1].isalnum():
            return target  # which may hold a full stop
        stop = min((place for one in _STOPS if (place := said.find(one)) >= 0), default=len(said))
        return said[:stop].rstrip()

    @staticmethod
    def _decoded(tokenizer: Any, ids: Ids) -> str:
        return str(
            tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class Bridging:
    """Follows the rows in scope of one generation, each with its answer in tokens of the base."""

    def __init__(self, answers: Sequence[Ids], inside: Tensor) -> None:
        """Follow the rows that are ``inside`` (rows,) bool, whose ``answers`` are given."""
        self._answers, self._inside = list(answers), inside.cpu()
        self._said = torch.zeros(
            len(answers), 0, dtype=torch.long
        )  # (rows, tokens) after the prompt

    @property
    def rows(self) -> Tensor:
        """Return the rows of the generation that are followed, (told,)."""
        return self._inside.nonzero()[:, 0]

    def select(self, places: Tensor) -> None:
        """Take the rows at ``places``, in that order."""
        places = places.cpu()
        self._answers = [self._answers[place] for place in places.tolist()]
        self._said, self._inside = self._said[places], self._inside[places]

    def crop(self, tokens: int) -> None:
        """Forget the last ``tokens`` tokens."""
        self._said = self._said[:, : max(self._said.shape[1] - tokens, 0)]

    def begin(self, base: Any, passage: Passage) -> Told:
        """Say what follows each token of a pass that reads the whole text so far.

        Args:
            base: whose vocabulary is spoken.
            passage: whose tokens are read.
        """
        ids, real, asked = passage.ids.cpu(), passage.real.cpu(), passage.prompts.cpu()
        self._said = ids[:, passage.prompt :]
        places = torch.arange(ids.shape[1])
        last = torch.where(asked, places, -1).amax(1, keepdim=True)  # (rows, 1) where prompts end
        # Of the tokens after the prompt, how many were read with each column; inside the prompt none counts.
        read = (places - passage.prompt + 1).expand_as(real)
        read = torch.where(real & (read > 0), read, -1)
        read = torch.where(places == last, 0, read)[self.rows][:, passage.columns.cpu()]
        return self._told(base, read)

    def go_on(self, base: Any, passage: Passage) -> Told:
        """Say what follows each token of a pass.

        Args:
            base: whose vocabulary is spoken.
            passage: whose tokens are read.
        """
        before = self._said.shape[1]
        self._said = torch.cat([self._said, passage.ids.cpu()], 1)
        real = passage.real.cpu()
        read = torch.where(real, before + 1 + torch.arange(real.shape[1]), -1)
        return self._told(base, read[self.rows][:, passage.columns.cpu()])

    def _told(self, base: Any, read: Tensor) -> Told:
        """Return logits where so many tokens (told, columns) after the prompt were read, -1 for none."""
        said = self._said[self.rows].tolist()
        answers = [self._answers[row] for row in self.rows.tolist()]
        following = torch.tensor(
            [
                [_next(answer, own, count) for count in counts]
                for answer, own, counts in zip(answers, said, read.tolist(), strict=True)
            ]
        )  # (told, columns)
        weight = base.get_output_embeddings().weight
        size = int(weight.shape[0])
        rest = math.log(_REST / (size - 1))
        logits = torch.full((*read.shape, size), rest, dtype=weight.dtype, device=weight.device)
        place = following.clamp(min=0)[..., None].to(weight.device)
        logits.scatter_(2, place, math.log1p(-_REST))
        return Told(rows=self.rows, logits=logits, counts=following >= 0)


def _next(answer: Ids, said: Sequence[int], count: int) -> int:
    """Return the token that comes next in an answer when so many were said, -1 where none does."""
    inside = 0 <= count < len(answer)
    return answer[count] if inside and tuple(said[:count]) == answer[:count] else _NONE
