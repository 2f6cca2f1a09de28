"""What reading prefixes once and running only suffixes gains in the search for values.

``python tests/benchmarks/value_search.py [--edits 20]`` searches the values of the same edits twice
in one process and one thread: as the authors' code of ROME does it (every step a whole forward of
all rows, logits at all positions), and with ``kedit_locate.values``. It prints seconds an edit, the
ratio, and how far the shifts differ.
"""

import random
from statistics import mean
from time import perf_counter

import torch
import typer
from attrs import frozen
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from kedit_core import Editor, Plugins
from kedit_core.cli.screen import quiet_transformers
from kedit_core.progress import Progress
from kedit_core.untouched import at_rest
from kedit_locate.capture import replaced_output
from kedit_locate.config import Context, Search
from kedit_locate.rows import EditRows, edit_rows, padded
from kedit_locate.templates import context_prefixes
from kedit_locate.values import search_values


@frozen
class Timed:
    """A shift, and the seconds that the search for it took."""

    shift: Tensor
    seconds: float


@frozen
class Plain:
    """What a plain search found: h₀ and δ (width,), and the mean NLL of a token of the target."""

    base: Tensor
    shift: Tensor
    nll: float


def plain_search(model: nn.Module, edit: EditRows, site: str, search: Search) -> Plain:
    """Search for a value by whole forwards of all rows, one after the other step."""
    device = next(model.parameters()).device
    rows = [*edit.rewrites, edit.anchor]
    ids, mask = padded([row.ids for row in rows], device)
    places = torch.tensor([row.lookup for row in rows], device=device)
    every = torch.arange(len(rows), device=device)
    base = first = torch.empty(0)

    def run(shift: Tensor) -> Tensor:
        nonlocal base

        def change(hidden: Tensor) -> Tensor:
            nonlocal base
            base = hidden[0, places[0]].detach() if not len(base) else base
            added = torch.zeros_like(hidden)
            added[every, places] = shift.expand(len(rows), -1)
            return hidden + added

        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with replaced_output(model, site, change):
            output = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            )
        return output.logits.log_softmax(-1)

    shift = torch.zeros(model.config.hidden_size, device=device, requires_grad=True)
    adam = torch.optim.Adam([shift], lr=search.lr)
    for step in range(search.steps):
        said = run(shift)
        nll = 0
        for number, row in enumerate(edit.rewrites):
            start = len(row.ids) - len(row.target)
            target = torch.tensor(row.target, device=device)[:, None]
            own = said[number, start : len(row.ids)].gather(1, target)
            nll = nll - own.mean() / len(edit.rewrites)
        now = said[-1, places[-1]]
        first = now.detach() if not len(first) else first
        decay = search.decay * shift.norm() / base.norm() ** 2
        loss = nll + search.kl * (now.exp() * (now - first)).sum() + decay
        if loss < search.stop or step == search.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            shift *= (search.clamp * base.norm() / shift.norm()).clamp(max=1)
    return Plain(base, shift.detach(), float(nll.detach()))


def run(model: str = "atlas:gpt2", edits: int = 20, seed: int = 0) -> None:
    """Print both times, their ratio and the difference of the shifts."""
    torch.set_num_threads(1)
    plugins = Plugins.installed()
    with quiet_transformers():
        editor = Editor.from_pretrained(model, "rome", plugins=plugins)
    facts = list(plugins.call_all("read_requests", source="atlas:editable"))
    requests = random.Random(seed).sample(facts, edits)
    search, site = Search(), editor.weights.layout.down_of(0).path
    prefixes = context_prefixes(
        editor.model, editor.tokenizer, Context(), 0, editor.weights, editor.cache
    )
    plain: list[Timed] = []
    ours: list[Timed] = []
    with at_rest(editor.model):
        for request in requests:
            rows = edit_rows(editor.tokenizer, request, prefixes)
            started = perf_counter()
            found = plain_search(editor.model, rows, site, search)
            plain.append(Timed(found.shift, perf_counter() - started))
            started = perf_counter()
            values = search_values(editor.model, [rows], site, search, Progress())
            ours.append(Timed(values.shift[0], perf_counter() - started))
    slow, fast = mean(one.seconds for one in plain), mean(one.seconds for one in ours)
    near = min(
        float(torch.cosine_similarity(a.shift, b.shift, dim=0))
        for a, b in zip(plain, ours, strict=True)
    )
    table = Table(
        "MODEL", "WHOLE FORWARDS", "SUFFIXES", "RATIO", "LEAST COSINE OF SHIFTS", box=None
    )
    table.add_row(model, f"{slow:.2f} s", f"{fast:.2f} s", f"{slow / fast:.2f}", f"{near:.6f}")
    Console(highlight=False, emoji=False).print(table)


if __name__ == "__main__":
    typer.run(run)
