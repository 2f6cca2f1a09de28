"""Ten thousand facts in one edit: what each phase takes of time and memory, and whether undo is exact.

``python tests/benchmarks/counterfact_at_once.py [--edits 10000] [--texts 1] [--threads 1] [--json]`` reads
CounterFact's records from ``../shared/data/counterfact_edit.json`` beside the checkout, makes a random
GPT-2 of 25 million parameters in its blocks and a tokenizer that learns its words from those records,
and writes all facts at once with MEMIT through the public editor: one write, values of a few steps. What
a random model says is worth nothing; what the edit costs is that of any model of this shape. Prints a
table of the phases, on stderr what each one took once it is done; exits 1 when undo leaves another bit.
"""

import json
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Annotated, Any

import torch
import typer
from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from kedit_core import Editor, EditRequest, Plugins, TensorCache, hookimpl
from kedit_core.cli.screen import print_json
from kedit_core.digests import state_digest
from kedit_core.errors import RequestError
from kedit_core.progress import Advance, Progress
from kedit_core.testing import byte_level_tokenizer

FILE = Path(__file__).parents[3] / "shared" / "data" / "counterfact_edit.json"
WIDTH, LAYERS, VOCABULARY = 512, 8, 8192
PHASES = {
    "sampling text for statistics": "statistics",
    "collecting second moments": "statistics",
    "searching values": "values",
    "reading keys": "keys",
    "solving": "solve",
    "asking for the targets": "ask",
}
"""By the name under which an edit tells its progress; what is in none of them is computing's rest."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@frozen(kw_only=True)
class Records:
    """What a file of records holds.

    Attributes:
        requests: that can be made at once.
        refused: how many records were refused, by reason.
    """

    requests: tuple[EditRequest, ...] = field(repr=False)
    refused: dict[str, int]


@define
class Phase:
    """What one phase took so far.

    Attributes:
        seconds: by the clock.
        computed: seconds of processors, which other work on the machine does not change.
        times: how often it was entered.
        memory: bytes of the process at the most.
    """

    seconds: float = 0.0
    computed: float = 0.0
    times: int = 0
    memory: int = 0


class Phases(Progress):
    """Measures the phases of an edit by what it tells of its progress and by its hooks.

    Attributes:
        found: by name, in the order in which they began.
    """

    def __init__(self) -> None:
        """Measure nothing yet."""
        self.found: dict[str, Phase] = {}
        self._inside: list[str] = []
        self._since, self._computed = perf_counter(), process_time()
        self._err = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Measure a task as the phase that it belongs to."""
        name = PHASES.get(description, description)
        done, shown = 0, perf_counter()

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            if perf_counter() - shown > 30:
                shown = perf_counter()
                self._err.print(f"{name}: {done:,} of {total:,} {unit}")

        with self.of(name):
            yield advance

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure what happens inside the block, but for phases within it."""
        self._account()
        self._inside.append(name)
        phase = self.found.setdefault(name, Phase())
        phase.times += 1
        before = phase.seconds
        try:
            yield
        finally:
            self._account()
            self._inside.pop()
            self._err.print(f"{name}: {phase.seconds - before:.1f} s, {gigabytes(phase.memory)}")

    def _account(self) -> None:
        """Add what has passed since the last call to the innermost phase."""
        now, computed, peak = perf_counter(), process_time(), peak_memory()
        if self._inside:
            phase = self.found[self._inside[-1]]
            phase.seconds += now - self._since
            phase.computed += computed - self._computed
            phase.memory = max(phase.memory, peak)
        self._since, self._computed = now, computed


def peak_memory() -> int:
    """Return the most bytes that the process held since the last call.

    Since its start where the system does not let it be reset.
    """
    try:
        lines = _STATUS.read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
        _CLEAR.write_text("5")  # proc(5): forgets the peak
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def gigabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.2f} GB"


def watched(phases: Phases) -> Plugins:
    """Return all installed plugins, and one that measures computing and writing."""
    module = ModuleType("phases")

    @hookimpl(wrapper=True)
    def compute_delta() -> Generator[None, Any, Any]:
        with phases.of("compute, rest"):
            return (yield)

    @hookimpl(wrapper=True)
    def apply_delta() -> Generator[None, Any, Any]:
        with phases.of("write"):
            return (yield)

    module.compute_delta, module.apply_delta = compute_delta, apply_delta
    plugins = Plugins.installed()
    plugins.register(module)
    return plugins


def read(records: list[dict[str, Any]], most: int) -> Records:
    """Return the requests of the first ``most`` records, and how many were refused for which reason."""
    requests: dict[str, EditRequest] = {}  # by prompt
    refused: Counter[str] = Counter()
    for record in records[:most]:
        try:
            request = EditRequest(
                prompt=record["prompt"],
                subject=record["subject"],
                target_new=record["target_new"],
                target_true=record["ground_truth"],
                paraphrases=record["rephrase_prompt"],
            )
        except RequestError:
            refused["cannot be read as a request"] += 1
            continue
        known = requests.setdefault(request.prompt, request)
        if known.id == request.id and known is not request:
            refused["given twice"] += 1
        elif known is not request:
            refused["another target was given for its prompt"] += 1
    return Records(requests=tuple(requests.values()), refused=dict(refused))


def text_of(record: dict[str, Any]) -> str:
    """Return what the tokenizer and the second moments see of a record: the old fact."""
    return f"{record['prompt']} {record['ground_truth']}."


def random_editor(
    records: list[dict[str, Any]], phases: Phases, cache: Path, config: Any
) -> Editor:
    """Return an editor of a seeded random model that reads these records."""
    texts = tuple(map(text_of, records))
    tokenizer = byte_level_tokenizer(bos=False, sentences=texts, vocabulary=VOCABULARY)
    torch.manual_seed(0)
    shape = GPT2Config(
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=WIDTH // 64,
        n_positions=256,
        vocab_size=len(tokenizer),
        activation_function="gelu_pytorch_tanh",  # one operator, as newer families have
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(shape).eval()
    plugins = watched(phases)
    return Editor(
        model,
        tokenizer,
        "memit",
        config,
        plugins=plugins,
        cache=TensorCache(cache),
        progress=phases,
    )


def run(
    edits: Annotated[int, typer.Option(help="Records to take from the file.")] = 10_000,
    steps: Annotated[int, typer.Option(help="Steps of the search for values.")] = 2,
    texts: Annotated[int, typer.Option(help="Texts of each length before a prompt.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Edit, undo, and print what each phase took."""
    if not FILE.exists():
        sys.exit(f"CounterFact's records are not there: {FILE}")
    torch.set_num_threads(threads)
    records = json.loads(FILE.read_text(encoding="utf-8"))
    taken = read(records, edits)
    phases = Phases()
    config: dict[str, Any] = {"passes": 1, "search": {"steps": steps}, "context": {"count": texts}}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(map(text_of, records)), encoding="utf-8")
        config["statistics"] = {"corpus": str(corpus)}
        editor = random_editor(records, phases, Path(folder) / "cache", config)
        before = state_digest(editor.model)
        with phases.of("edit, rest"):
            delta = editor.edit(taken.requests)
        changed = state_digest(editor.model) != before
        with phases.of("undo"):
            editor.undo()
        exact = state_digest(editor.model) == before
    notes = delta.provenance.notes
    found = {
        "edits": len(taken.requests),
        "refused": taken.refused,
        "steps": steps,
        "texts": texts,
        "threads": threads,
        "layers": list(notes["layers"]),
        "condition": dict(notes["condition"]),
        "conflicts": notes.get("conflicts", {"count": 0})["count"],
        "changed": changed,
        "undo_exact": exact,
        "seconds": sum(one.seconds for one in phases.found.values()),
        "processor_seconds": sum(one.computed for one in phases.found.values()),
        "peak_memory": max(one.memory for one in phases.found.values()),
        "phases": {
            name: {
                "seconds": one.seconds,
                "processor_seconds": one.computed,
                "times": one.times,
                "peak_memory": one.memory,
            }
            for name, one in phases.found.items()
        },
    }
    print_json(found) if as_json else show(found)
    sys.exit(0 if changed and exact else 1)


def show(found: dict[str, Any]) -> None:
    """Print what was found as a table."""
    table = Table("PHASE", "TIMES", "SECONDS", "OF PROCESSORS", "PEAK MEMORY", box=None)
    for name, one in [*found["phases"].items(), ("all", {"times": "", **found})]:
        seconds = (f"{one['seconds']:.1f}", f"{one['processor_seconds']:.1f}")
        table.add_row(name, str(one["times"]), *seconds, gigabytes(one["peak_memory"]))
    console = Console(highlight=False, emoji=False)
    console.print(table)
    refused = ", ".join(f"{count} {reason}" for reason, count in found["refused"].items())
    console.print(f"{found['edits']:,} edits in one; records refused: {refused or 'none'}")
    console.print(
        f"pairs of edits with nearly one key and different values: {found['conflicts']:,}"
    )
    console.print(f"undo is {'exact' if found['undo_exact'] else 'NOT EXACT'}")


if __name__ == "__main__":
    typer.run(run)
