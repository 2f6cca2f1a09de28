"""Which prompts are read together: like lengths, so that few pads are read; shared beginnings once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from attrs import frozen
from torch import nn

from kedit_core.reading import reach_past_pads
from kedit_core.tokens import Ids

ROWS = 64
TOKENS = 2048  # of a padded batch
_ENOUGH = 16  # rows that keep a processor busy; a GPU takes all it gets
_SHARERS = 3  # prompts that make a beginning worth reading apart
_STEMS = 256  # on one shelf


@frozen(kw_only=True)
class Text:
    """A prompt to be read.

    Attributes:
        ids: (tokens,) all of it.
        stem: which of its shelf's stems it begins with.
        begun: tokens of the stem.
    """

    ids: Ids
    stem: int = 0
    begun: int = 0

    @property
    def rest(self) -> Ids:
        """Return the tokens behind the stem."""
        return self.ids[self.begun :]


@frozen(kw_only=True)
class Shelf:
    """Prompts, and beginnings that they share; no stems where each is read from its start."""

    stems: tuple[Ids, ...]
    texts: tuple[Text, ...]


def shelves(model: nn.Module, prompts: Sequence[Ids], *, share: bool) -> Iterator[Shelf]:
    """Yield all prompts, those with a shared beginning beside others that have it.

    Args:
        model: that will read them.
        prompts: each once.
        share: look for shared beginnings, if there are more prompts than one batch holds and the
            model does not mind pads.
    """
    wanted = share and len(prompts) > ROWS and reach_past_pads(model) == float("inf")
    stems = _stems(sorted(prompts)) if wanted else {}
    alone = [prompt for prompt in prompts if prompt not in stems]
    if alone:
        yield Shelf(stems=(), texts=tuple(Text(ids=prompt) for prompt in alone))
    places: dict[Ids, int] = {}
    texts: list[Text] = []
    for prompt, stem in sorted(stems.items(), key=lambda one: (len(one[1]), one[1])):
        full = len(places) == _STEMS or (len(places) + 1) * len(stem) > TOKENS
        if stem not in places and texts and full:
            yield Shelf(stems=tuple(places), texts=tuple(texts))
            places, texts = {}, []
        place = places.setdefault(stem, len(places))
        texts.append(Text(ids=prompt, stem=place, begun=len(stem)))
    if texts:
        yield Shelf(stems=tuple(places), texts=tuple(texts))


def batches(
    model: nn.Module, texts: Iterable[Text], more: Callable[[Text], int]
) -> Iterator[list[Text]]:
    """Yield texts of like length together, and with answers of like length.

    Args:
        model: that will read them.
        texts: all of one shelf.
        more: tokens, at the most, that will be read after a text.
    """
    reach = reach_past_pads(model)
    enough = _ENOUGH if next(model.parameters()).device.type == "cpu" else ROWS
    waiting = sorted(
        ((more(text).bit_length(), len(text.rest), more(text), text) for text in texts),
        key=lambda one: one[:2],
    )
    batch: list[Text] = []
    widest = narrowest = most = 0
    kind = (0, 0)
    for bits, rest, after, text in waiting:
        width = len(text.ids)
        wide, narrow, much = max(widest, width), min(narrowest, width), max(most, after)
        crowded = len(batch) == ROWS or (len(batch) + 1) * wide > TOKENS
        unlike = len(batch) >= enough and kind != (bits, rest)
        far = narrow < wide and wide + much > reach
        if batch and (crowded or unlike or far):
            yield batch
            batch = []
        if not batch:
            kind, wide, narrow, much = (bits, rest), width, width, after
        batch.append(text)
        widest, narrowest, most = wide, narrow, much
    if batch:
        yield batch


def _stems(prompts: Sequence[Ids]) -> dict[Ids, Ids]:
    """Return, of sorted prompts, the longest proper beginning that each shares with two others, if any."""
    alike = [0, 0, *(_shared(one, other) for one, other in pairwise(prompts)), 0, 0]
    found = {}
    for place, prompt in enumerate(prompts):
        near = alike[place : place + 4]  # with the two before it and the two behind it
        longest = max(map(min, pairwise(near)))
        stem = prompt[: min(longest, len(prompt) - 1)]
        if stem:
            found[prompt] = stem
    return found


def _shared(one: Ids, other: Ids) -> int:
    """Return how many tokens two texts begin with alike."""
    unlike = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unlike, min(len(one), len(other)))
