"""What SERAC costs on an atlas model: adding edits, finding them, and decoding what none of them asks for.

``python tests/benchmarks/serac_costs.py MODEL --checkpoint FOLDER [--json]``

* adding: seconds for 1,000 edits in one batch;
* search: 32 prompts read and looked up among 100 and among 100,000 stored edits, best of 7 rounds that take
  turns, and what room the vectors and the look-up took at the most, measured as resident memory (Linux);
* decoding: tokens a second, greedily with a KV cache, on prompts that no edit of the memory is met by, with the
  memory in force and without; rounds take turns, the median of the ratios counts.

Exits 1 when a bar is missed.
"""

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import torch
import typer

from kedit_core import Editor, Plugins
from kedit_core.cli.screen import print_json, quiet_transformers, screen
from kedit_core.tokens import encode
from kedit_memory.readers import reader_of
from kedit_serac.checkpoints import read
from kedit_serac.kernels import scope_top1

EDITS, FEW, MANY, QUERIES = 1_000, 100, 100_000, 32
PROMPTS, TOKENS, ROUNDS = 16, 48, 7
BARS: Mapping[str, tuple[str, float]] = {
    "adding, s": ("at most", 5.0),
    "search, times": ("at most", 3.0),
    "search, room": ("at most", 1.1),
    "decoding, share": ("at least", 0.85),
}


class Costs:
    """An atlas model with SERAC whose costs are measured."""

    def __init__(self, model: str, checkpoint: Path) -> None:
        plugins = Plugins.installed()
        with quiet_transformers():
            self.editor = Editor.from_pretrained(
                model, "serac", {"checkpoint": str(checkpoint)}, plugins=plugins
            )
        self._classifier = read(checkpoint).classifier
        found = list(plugins.call_all("read_requests", source="atlas:editable"))
        self._facts = found[:EDITS]
        self._kept = [one.prompt for one in plugins.call_all("read_requests", source="atlas:kept")]

    def adding(self) -> dict[str, float]:
        """Return how long edits take; they stay in force."""
        started, worked = perf_counter(), process_time()
        self.editor.edit(self._facts)
        return {
            "adding, s": perf_counter() - started,
            "adding, s of processor": process_time() - worked,
        }

    def search(self) -> dict[str, float]:
        """Return how much slower looking up is among many edits than among few, and its room."""
        classifier = self._classifier
        reader = reader_of(
            self.editor.model, self.editor.tokenizer, classifier.source, "cpu", classifier.lexicon
        )
        chance = torch.Generator().manual_seed(0)
        asked = [one.ids for one in encode(self.editor.tokenizer, self._kept[:QUERIES])]
        length = classifier.length
        raw = MANY * length * 4

        def seconds(memory: torch.Tensor) -> float:
            started = perf_counter()
            scope_top1(classifier.embed(reader.states(asked, alone=False)), memory)
            return perf_counter() - started

        for _ in range(ROUNDS):  # what is loaded and pooled once is there
            seconds(torch.randn(FEW, length, generator=chance))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = _resident("VmRSS")
        memory = torch.randn(MANY, length, generator=chance)
        few: list[float] = []
        many: list[float] = []
        for _ in range(ROUNDS):
            few.append(seconds(memory[:FEW]))
            many.append(seconds(memory))
        return {
            f"{QUERIES} queries, {FEW} edits, ms": 1000 * min(few),
            f"{QUERIES} queries, {MANY} edits, ms": 1000 * min(many),
            "search, times": min(many) / min(few),
            "search, room": (_resident("VmHWM") - before) / raw,
        }

    def decoding(self) -> dict[str, float]:
        """Return tokens a second on prompts out of scope, with the memory in force and without."""
        met = self.editor.scope(self._kept).requests
        outside = [prompt for prompt, one in zip(self._kept, met, strict=True) if one is None]
        tokenizer: Any = self.editor.tokenizer
        read = tokenizer(outside[:PROMPTS], return_tensors="pt", padding=True, padding_side="left")
        rows = {name: read[name] for name in ("input_ids", "attention_mask")}
        self._tokens_a_second(rows)
        own: list[float] = []
        bare: list[float] = []
        for _ in range(ROUNDS):
            own.append(self._tokens_a_second(rows))
            with self.editor.original():
                bare.append(self._tokens_a_second(rows))
        shares = [with_it / without for with_it, without in zip(own, bare, strict=True)]
        return {
            "tokens/s with memory": statistics.median(own),
            "tokens/s without": statistics.median(bare),
            "decoding, share": statistics.median(shares),
        }

    def _tokens_a_second(self, rows: Any) -> float:
        model: Any = self.editor.model
        started = perf_counter()
        model.generate(**rows, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        return PROMPTS * TOKENS / (perf_counter() - started)


def _resident(name: str) -> int:
    """Return bytes of resident memory, now (``VmRSS``) or at the most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def missed(found: Mapping[str, float]) -> list[str]:
    """Return the bars that are missed."""
    return [
        f"{name}: {found[name]:.3g}, {which} {bar}"
        for name, (which, bar) in BARS.items()
        if (found[name] > bar if which == "at most" else found[name] < bar)
    ]


def main(
    model: str,
    checkpoint: Annotated[Path, typer.Option("--checkpoint")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    costs = Costs(model, checkpoint)
    # The look-up first: the most that was ever resident is then what it took itself.
    found = {**costs.search(), **costs.adding(), **costs.decoding()}
    complaints = missed(found)
    if as_json:
        print_json({"costs": found, "missed": complaints})
    else:
        for name, value in found.items():
            screen().print(f"{name:30} {value:.4g}")
        for complaint in complaints:
            screen().print(f"missed: {complaint}")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    typer.run(main)
