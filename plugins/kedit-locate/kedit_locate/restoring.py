"""Runs of one prompt whose subject is corrupted and whose states are partly put back.

A run is a row of a batch. All rows read the same prompt, so there are no pads, and rows that restore
different modules at different tokens share a forward.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_locate.capture import replaced_output
from kedit_locate.suffix import Suffix, enter, rows_of, run

_TOKENS = 4096  # of one forward

Change = Callable[[Tensor], Tensor]
"""Makes other hidden states of those that a module writes."""


@frozen(kw_only=True)
class Clean:
    """A prompt as the model reads it, nothing corrupted.

    Attributes:
        ids: (tokens,).
        answer: the token whose probability counts.
        probability: of it, after the prompt.
        states: what modules write (tokens, width), by path.
    """

    ids: tuple[int, ...]
    answer: int
    probability: float
    states: Mapping[str, Tensor] = field(repr=lambda states: f"<{len(states)} modules>")


@frozen(kw_only=True)
class Corruption:
    """Noise on the embeddings of a subject.

    Attributes:
        embedding: path of the token embedding.
        first: the subject's first token.
        noise: (samples, subject tokens, width).
    """

    embedding: str
    first: int
    noise: Tensor = field(repr=lambda noise: f"<{tuple(noise.shape)}>")


@frozen(kw_only=True)
class Run:
    """One run with a corrupted subject, in which some modules write what they wrote in the clean one.

    Attributes:
        sample: which noise.
        paths: of the modules.
        places: tokens at which they do.
    """

    sample: int
    paths: tuple[str, ...] = ()
    places: tuple[int, ...] = ()


@torch.no_grad()
def read_clean(
    model: nn.Module, ids: Sequence[int], paths: Sequence[str], answer: int | None = None
) -> Clean:
    """Return what the model says after a prompt, and what some of its modules write on the way.

    Args:
        model: in ``eval`` mode.
        ids: (tokens,).
        paths: of the modules.
        answer: the token whose probability is asked for; None takes the likeliest.

    Raises:
        ModelError: a module did not run.
    """
    states: dict[str, Tensor] = {}

    def keep(path: str, hidden: Tensor) -> Tensor:
        # A copy: some families go on to add to it in place.
        states[path] = hidden.reshape(len(ids), -1).clone()
        return hidden

    whole = _rows(model, ids, 1)
    with _changed(model, {path: partial(keep, path) for path in paths}):
        said = run(model, whole, *_ends(whole)).softmax(-1)[0]  # (vocabulary,)
    chosen = int(said.argmax()) if answer is None else answer
    return Clean(ids=tuple(ids), answer=chosen, probability=float(said[chosen]), states=states)


@torch.no_grad()
def probabilities(
    model: nn.Module,
    clean: Clean,
    corruption: Corruption,
    runs: Sequence[Run],
    *,
    below: Sequence[str] = (),
    tokens: int = _TOKENS,
) -> Iterator[Tensor]:
    """Yield the probability of the answer in every run, (runs,) float64, a forward's at a time.

    Args:
        model: in ``eval`` mode.
        clean: the prompt, read with the modules that runs restore.
        corruption: of its subject.
        runs: in the order of the answers.
        below: paths of the lowest blocks, where no run restores anything: they run once.
        tokens: of one forward, about.
    """
    samples = [Run(sample=sample) for sample in range(len(corruption.noise))]
    base = _rows(model, clean.ids, len(samples))
    if below:
        with _changed(model, _noise(corruption, samples)):
            base = enter(model, base, below, *_ends(base)).suffix
    most = max(tokens // len(clean.ids), 1)
    for start in range(0, len(runs), most):
        some = runs[start : start + most]
        rows = rows_of(base, torch.tensor([one.sample for one in some], device=base.ids.device))
        with _changed(model, _noise(corruption, some) | _restoring(clean, some)):
            said = run(model, rows, *_ends(rows)).softmax(-1)  # (runs, vocabulary)
        yield said[:, clean.answer].double().cpu()


@contextmanager
def _changed(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Change what modules write inside the ``with``."""
    with ExitStack() as stack:
        for path, change in changes.items():
            stack.enter_context(replaced_output(model, path, change))
        yield


def _noise(corruption: Corruption, runs: Sequence[Run]) -> dict[str, Change]:
    noise = corruption.noise[[one.sample for one in runs]]  # (runs, subject tokens, width)
    subject = slice(corruption.first, corruption.first + noise.shape[1])

    def add(embedded: Tensor) -> Tensor:
        changed = embedded.clone()  # (runs, tokens, width)
        changed[:, subject] += noise.to(changed)
        return changed

    return {corruption.embedding: add}


def _restoring(clean: Clean, runs: Sequence[Run]) -> dict[str, Change]:
    where: dict[str, list[tuple[int, int]]] = {}
    for row, one in enumerate(runs):
        for path in one.paths:
            where.setdefault(path, []).extend((row, place) for place in one.places)

    def put_back(path: str, hidden: Tensor) -> Tensor:
        rows, places = torch.tensor(where[path], device=hidden.device).T
        changed = hidden.reshape(len(runs), len(clean.ids), -1).clone()  # some families flatten it
        changed[rows, places] = clean.states[path].to(changed)[places]
        return changed.reshape(hidden.shape)

    return {path: partial(put_back, path) for path in where}


def _rows(model: nn.Module, ids: Sequence[int], rows: int) -> Suffix:
    """Return equal rows that are read as a whole."""
    device = next(model.parameters()).device
    batch = torch.tensor(ids, device=device).expand(rows, -1)
    return Suffix(
        ids=batch,
        mask=torch.ones_like(batch),
        positions=torch.arange(len(ids), device=device).expand(rows, -1),
        starts=(0,) * rows,
        cache=None,
    )


def _ends(rows: Suffix) -> tuple[Tensor, Tensor]:
    """Return the last token of every row, as rows and places."""
    row = torch.arange(len(rows.ids), device=rows.ids.device)
    return row, torch.full_like(row, rows.ids.shape[1] - 1)
