"""How much faster WISE trains from the edited block on, and what its memory costs a decoder.

``python tests/benchmarks/wise_speed.py [MODEL] [--edits 3] [--steps 40] [--tokens 64] [--repeats 3] [--json]``

* Training: seconds an edit of the plugin, all that an edit does, and of the same training by whole forwards of
  all rows, in turns; the losses of both, step by step.
* Decoding: tokens a second of the model alone and with eight shards beside it, of prompts that these leave to
  the model and of prompts that go to one of them each, in turns, with a KV cache, the best of the repeats.

Exits 1 when a bar is missed: training 3 times as fast with the same losses, decoding at 90 % out of scope and
at 70 % in scope.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_atlas.world import KEPT, load_world
from kedit_core import Delta, Editor, EditRequest, Plugins, encode
from kedit_core.cli.screen import print_json, quiet_transformers, screen
from kedit_locate.rows import padded
from kedit_wise.beside import Beside
from kedit_wise.config import Descent
from kedit_wise.lessons import lines_of
from kedit_wise.masks import drawn
from kedit_wise.shards import side_matrix_of

BARS: Mapping[str, float] = {"training": 3.0, "out of scope": 0.9, "in scope": 0.7}
SAME = 1e-3  # of a loss: the two add up in another order
IRRELEVANT = "The harvest was late that year, and nobody knew why."
SHARDS = 8


class Bench:
    """An atlas model, facts to edit, and prompts about other facts."""

    def __init__(self, model: str, folder: Path, steps: int) -> None:
        self._plugins = Plugins.installed()
        self._settings = Descent(steps=steps, stop=0.0)
        texts = folder / "irrelevant.txt"
        texts.write_text(f"{IRRELEVANT}\n")
        trained = {
            "writer": "descent",
            "descent": {"steps": steps, "stop": 0.0},
            "routes": {
                "measure": "mean",
                "threshold": "activation",
                "texts": str(texts),
                "tokens": 32,
            },
        }
        with quiet_transformers():
            self._trainer = Editor.from_pretrained(model, "wise", trained, plugins=self._plugins)
            settings = {"shards": {"size": 1}}
            self._solver = Editor.from_pretrained(model, "wise", settings, plugins=self._plugins)
        found = list(self._plugins.call_all("read_requests", source="atlas:editable"))
        self._facts: list[EditRequest] = random.Random(0).sample(found, 4 * SHARDS)
        kept = random.Random(0).sample(load_world().of(KEPT), 16 * SHARDS)
        self._others = [fact.openings[0] for fact in kept]

    def training(self, edits: int) -> dict[str, float]:
        """Return seconds an edit of both trainings, and how far their losses are apart."""
        self._trainer.edit(self._facts[0])  # what is made once for a model
        self._trainer.undo()
        seconds, off = {"plugin": 0.0, "whole": 0.0}, 0.0
        for fact in self._facts[1 : edits + 1]:
            started = perf_counter()
            delta = self._trainer.edit(fact)
            seconds["plugin"] += perf_counter() - started
            self._trainer.undo()
            started = perf_counter()
            losses = self._whole(fact, delta)
            seconds["whole"] += perf_counter() - started
            noted = delta.provenance.notes["writes"][0]["loss"]
            off = max(off, *(abs(a - b) / b for a, b in zip(noted, losses, strict=True)))
        return {
            **{name: one / edits for name, one in seconds.items()},
            "times as fast": seconds["whole"] / seconds["plugin"],
            "losses apart": off,
        }

    def _whole(self, fact: EditRequest, delta: Delta) -> list[float]:
        """Return the losses of the same training by whole forwards of all rows and all logits."""
        own, memory, model = self._settings, side_matrix_of(delta), self._trainer.model
        lines = lines_of(self._trainer.tokenizer, fact, memory.settings["prefixes"], chat=False)
        (text,) = encode(self._trainer.tokenizer, [IRRELEVANT])
        ids, mask = padded([*(line.ids for line in lines), text.ids], model.device)
        ends = torch.tensor([*(line.prompt for line in lines), len(text.ids)])
        counts = torch.arange(ids.shape[1]) < ends[:, None]
        module = model.get_submodule(memory.at)
        base = module.weight.detach()
        entries = drawn(tuple(base.shape), own.mask, 0, seed=0, disjoint=True)
        update, losses = torch.zeros_like(base), []
        for _ in range(own.steps):
            update.requires_grad_()
            shifts: list[Tensor] = []

            def beside(_: Any, args: Any, output: Tensor) -> Tensor:
                shifts.append(args[0] @ update.T)  # noqa: B023
                return output + shifts[-1]  # noqa: B023

            handle = module.register_forward_hook(beside)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            handle.remove()
            said = [
                cross_entropy(row[line.prompt - 1 : len(line.ids)], torch.tensor(line.target))
                for line, row in zip(lines, logits, strict=False)
            ]
            apart = torch.where(counts, shifts[0].norm(dim=-1), 0.0).sum(1) / ends
            inside, outside = apart[:-1], apart[-1]
            terms = (outside - inside + own.margin, (outside - own.quiet)[None], own.loud - inside)
            loss = torch.stack(said).mean() + sum(_mean_above(one) for one in terms)
            (gradient,) = torch.autograd.grad(loss, update)
            losses.append(float(loss.detach()))
            update = update.detach()
            update -= own.lr * (gradient + own.decay * (base + update)) * entries
            update.clamp_(-own.clamp, own.clamp)
        return losses

    def decoding(self, tokens: int, repeats: int) -> dict[str, dict[str, float]]:
        """Return tokens a second with the memory and without, for prompts out of scope and in it."""
        facts = self._facts[:SHARDS]
        delta = self._solver.edit(facts)
        met = self._solver.scope(self._others).requests
        left = [one for one, request in zip(self._others, met, strict=True) if request is None]
        kinds = {"out of scope": left[:SHARDS], "in scope": [fact.prompt for fact in facts]}
        self._solver.undo()
        found = {name: {"alone": 0.0, "memory": 0.0} for name in kinds}
        for _ in range(repeats):
            for name, prompts in kinds.items():
                best = found[name]
                best["alone"] = max(best["alone"], self._speed(prompts, tokens))
                with Beside(self._solver.model, self._solver.tokenizer, delta).attach():
                    best["memory"] = max(best["memory"], self._speed(prompts, tokens))
        return {name: {**one, "share": one["memory"] / one["alone"]} for name, one in found.items()}

    def _speed(self, prompts: Sequence[str], tokens: int) -> float:
        rows = [one.ids for one in encode(self._solver.tokenizer, prompts)]
        width = max(map(len, rows))
        ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        started = perf_counter()
        self._solver.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return len(rows) * tokens / (perf_counter() - started)


def _mean_above(values: Tensor) -> Tensor:
    above = values[values > 0]
    return above.mean() if len(above) else values.new_zeros(())


def missed(training: Mapping[str, float], decoding: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the bars that are missed."""
    found = {"training": training["times as fast"]}
    found |= {name: one["share"] for name, one in decoding.items()}
    complaints = [
        f"{name}: {found[name]:.2f} of {bar}" for name, bar in BARS.items() if found[name] < bar
    ]
    if training["losses apart"] > SAME:
        complaints.append(f"losses lie {training['losses apart']:.1e} apart")
    return complaints


def main(
    model: Annotated[str, typer.Argument()] = "atlas:llama",
    edits: int = 3,
    steps: int = 40,
    tokens: int = 64,
    repeats: int = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        bench = Bench(model, Path(folder), steps)
        training = bench.training(edits)
        decoding = bench.decoding(tokens, repeats)
    complaints = missed(training, decoding)
    if as_json:
        print_json({"training": training, "decoding": decoding})
    else:
        show(f"{model}, seconds an edit of {steps} steps", {"": training})
        show(f"tokens a second, {SHARDS} rows, {SHARDS} shards", decoding)
        for complaint in complaints:
            screen().print(f"missed: {complaint}")
    sys.exit(bool(complaints))


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print one table."""
    table = Table(title=title, box=None, pad_edge=False)
    for heading in ("", *(name.upper() for name in next(iter(rows.values())))):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.3g}" for value in row.values()))
    screen().print(table)


if __name__ == "__main__":
    typer.run(main)
