"""Where a model keeps facts: causal tracing (Meng et al., 2022, arXiv:2202.05262, section 2).

The embeddings of a fact's subject are corrupted with noise until the model no longer says the
answer o. Then one state is put back to what it is in the clean run, and P[o] is read again:

    indirect effect = P*[o | state restored] - P*[o]

over several draws of the noise. Averaged over many facts it shows through which tokens and layers
what the model knows of a subject passes. Restored is what a layer returns (``hidden``), or what its MLP
or its attention writes, together with those of the layers around it: a single one says little.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from kedit_core import EditRequest, ModelLayout
from kedit_core.errors import KeditError, ModelError
from kedit_core.pieces import LayerLayout
from kedit_core.progress import Advance, Progress
from kedit_core.untouched import untouched
from kedit_locate.effects import STATES, Effects, State, Trace
from kedit_locate.facts import GROUPS, Fact, known_facts
from kedit_locate.restoring import Corruption, Run, probabilities, read_clean

_WINDOW = 0.2  # of the layers: the paper restores 10 of GPT-2 XL's 48


@frozen(kw_only=True)
class Tracing:
    """How states are traced.

    Attributes:
        samples: draws of the noise.
        noise: its standard deviation, in those of the subjects' embeddings.
        window: how many layers' MLPs or attentions are restored together; None for a fifth of them.
        seed: of the noise.
    """

    samples: int = field(default=10, validator=validators.ge(1))
    noise: float = field(default=3.0, validator=validators.ge(0.0))
    window: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    seed: int = 0


def trace(
    model: nn.Module,
    tokenizer: Any,
    layout: ModelLayout,
    requests: Sequence[EditRequest],
    settings: Tracing,
    progress: Progress,
    *,
    states: Sequence[State] = STATES,
    chat: bool = False,
) -> Trace:
    """Return the average indirect effect of every kind of state at every layer and group of tokens.

    The answer is a request's ``target_true``, and requests whose answer the model does not say are
    left out; without one it is what the model says. Its first token is asked for. Tokens are restored one
    at a time. The noise of a fact depends on the seed and the fact alone.

    Args:
        model: is as before when this returns or raises.
        tokenizer: the model's.
        layout: of the model.
        requests: with subjects.
        settings: how.
        progress: told of runs done.
        states: which kinds; one that no layer of the model has is left out.
        chat: render each prompt through the chat template.

    Raises:
        RequestError: a request has no subject, or is too long for the model.
        KeditError: the model knows none of the facts.
        ModelError: no layer has a state that was asked for.
    """
    cells = [cell for state in states for cell in _cells(layout, state, settings)]
    traced = [state for state in states if any(cell.state == state for cell in cells)]
    if not traced:
        raise ModelError(layout.layers[0].path, f"no layer has {' or '.join(states)} to restore")
    with untouched(model), torch.no_grad():
        facts = known_facts(model, tokenizer, requests, chat=chat)
        if not facts:
            raise KeditError(f"the model says target_true of none of the {len(requests)} requests")
        embedded = _subjects(model, layout, facts)  # (subject tokens, width) float64
        deviation = settings.noise * float(embedded.std(correction=0))
        runs = sum(len(fact.groups) * len(cells) + 1 for fact in facts) * settings.samples
        with progress.task("tracing facts", runs, "runs") as advance:
            found = []
            for fact in facts:
                noise = deviation * _drawn(fact, settings, embedded.shape[1])
                found.append(_traced(model, layout, fact, noise, cells, advance))
    windows = {one: _window(layout, one, settings) for one in traced}
    return _averaged(facts, found, windows, len(requests), deviation)


@frozen(kw_only=True)
class _Cell:
    """What is restored at one token for one layer of a heat map.

    Attributes:
        state: which kind.
        layer: the one in the middle.
        paths: of the modules that are restored together.
        lowest: no layer below this one has any of them.
    """

    state: State
    layer: int
    paths: tuple[str, ...]
    lowest: int


@frozen(kw_only=True)
class _Traced:
    """One fact.

    Attributes:
        clean: probability of its answer.
        corrupted: the same with its subject corrupted.
        effects: (groups, layers) indirect effects of each kind of state.
    """

    clean: float
    corrupted: float
    effects: Mapping[State, Tensor]


def _traced(
    model: nn.Module,
    layout: ModelLayout,
    fact: Fact,
    noise: Tensor,
    cells: Sequence[_Cell],
    advance: Advance,
) -> _Traced:
    """Return the effects in one fact; runs that restore nothing below a layer share forwards from there on.

    Args:
        model: in ``eval`` mode.
        layout: of the model.
        fact: to trace.
        noise: (samples, subject tokens, width).
        cells: what is restored, at every token from the subject on.
        advance: told of runs done.
    """
    paths = sorted({path for cell in cells for path in cell.paths})
    clean = read_clean(model, fact.ids, paths, fact.answer)
    corruption = Corruption(embedding=layout.embedding, first=fact.subject[0], noise=noise)
    blocks = [layer.path for layer in layout.layers]

    def averages(runs: Sequence[Run], lowest: int) -> list[float]:
        said = []
        for part in probabilities(model, clean, corruption, runs, below=blocks[:lowest]):
            said.append(part)
            advance(len(part))
        means: list[float] = torch.cat(said).reshape(-1, len(noise)).mean(1).tolist()
        return means

    (corrupted,) = averages([Run(sample=sample) for sample in range(len(noise))], 0)
    shape = (len(GROUPS), len(blocks))
    sums = {cell.state: torch.zeros(shape, dtype=torch.float64) for cell in cells}
    counts = {cell.state: torch.zeros(shape, dtype=torch.float64) for cell in cells}
    for lowest in sorted({cell.lowest for cell in cells}):
        own = [(cell, place) for cell in cells if cell.lowest == lowest for place in fact.groups]
        runs = [
            Run(sample=sample, paths=cell.paths, places=(place,))
            for cell, place in own
            for sample in range(len(noise))
        ]
        for (cell, place), mean in zip(own, averages(runs, lowest), strict=True):
            sums[cell.state][fact.groups[place], cell.layer] += mean - corrupted
            counts[cell.state][fact.groups[place], cell.layer] += 1
    return _Traced(
        clean=clean.probability,
        corrupted=corrupted,
        effects={state: sums[state] / counts[state] for state in sums},  # 0 / 0 is not a number
    )


def _averaged(
    facts: Sequence[Fact],
    found: Sequence[_Traced],
    windows: Mapping[State, int],
    requests: int,
    deviation: float,
) -> Trace:
    return Trace(
        effects=tuple(
            Effects(
                state=state,
                window=window,
                values=torch.stack([one.effects[state] for one in found]).nanmean(0),
            )
            for state, window in windows.items()
        ),
        counts=tuple(sum(n in fact.groups.values() for fact in facts) for n in range(len(GROUPS))),
        facts=len(facts),
        unknown=requests - len(facts),
        clean=sum(one.clean for one in found) / len(found),
        corrupted=sum(one.corrupted for one in found) / len(found),
        deviation=deviation,
    )


def _cells(layout: ModelLayout, state: State, settings: Tracing) -> list[_Cell]:
    """Return one cell for every layer that has, or has beside it, such a state."""
    found = []
    wide = _window(layout, state, settings)
    for index in range(len(layout.layers)):
        first = index - wide // 2
        around = layout.layers[max(first, 0) : first + wide]
        sites = [(path, layer.index) for layer in around if (path := _site(layer, state))]
        if sites:
            paths = tuple(path for path, _ in sites)
            found.append(_Cell(state=state, layer=index, paths=paths, lowest=sites[0][1]))
    return found


def _site(layer: LayerLayout, state: State) -> str | None:
    if state == "hidden":
        return layer.path
    projection = layer.down if state == "mlp" else layer.attention_out
    return projection.path if projection else None


def _window(layout: ModelLayout, state: State, settings: Tracing) -> int:
    if state == "hidden":
        return 1
    return settings.window or max(round(_WINDOW * len(layout.layers)), 1)


def _subjects(model: nn.Module, layout: ModelLayout, facts: Sequence[Fact]) -> Tensor:
    """Return the embeddings of the tokens of all subjects, (subject tokens, width)."""
    ids = [fact.ids[place] for fact in facts for place in fact.subject]
    embedding = model.get_submodule(layout.embedding)
    read: Tensor = embedding(torch.tensor([ids], device=next(model.parameters()).device))
    return read[0].double()


def _drawn(fact: Fact, settings: Tracing, width: int) -> Tensor:
    """Return noise of deviation 1, (samples, subject tokens, width) float64."""
    named = blake2b(f"{settings.seed} {fact.name}".encode(), digest_size=7).hexdigest()
    generator = torch.Generator().manual_seed(int(named, 16))
    shape = (settings.samples, len(fact.subject), width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
