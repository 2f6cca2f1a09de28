"""``python -m kedit_atlas.train``: tokenizer and models of the atlas from nothing, seeded.

The two big models train side by side, one process with one thread each; the companion follows the
one that is done first.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from attrs import field, frozen
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from kedit_atlas.measure import recall
from kedit_atlas.models import SHAPES, Shape, dressed, new_model, new_tokenizer, open_folder, save
from kedit_atlas.rows import Packer
from kedit_atlas.world import Fact, load_world

MODELS = Path(__file__).parent / "models"
LANES = (("gpt2", "companion"), ("llama",))
REPORT_SECONDS, CHECK_SECONDS, CHECK_FACTS = 20.0, 240.0, 200
REQUIRED_RECALL = 0.97
# One thread a process. glibc would hand big buffers back after each step and fault them in again,
# a fifth of the time.
LANE_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "100000000",
}


@frozen(kw_only=True)
class Recipe:
    """How long and how fast a model learns: AdamW with warm-up and cosine decay, no dropout."""

    tokens_per_fact: int = 3000
    batch_tokens: int = 1536
    learning_rate: float = 1.5e-3
    final_rate: float = 0.02  # of learning_rate
    warmup: float = 0.03  # of all steps
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = True  # matrix products; the weights stay in float32

    def steps(self, facts: int, exposure: float) -> int:
        """How many batches a model of this exposure learns from."""
        return max(1, int(facts * self.tokens_per_fact * exposure) // self.batch_tokens)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one step."""
        warm = min(1.0, (step + 1) / max(1.0, self.warmup * steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.learning_rate * warm * (self.final_rate + (1 - self.final_rate) * cosine)


@frozen(kw_only=True, slots=False)
class Training:
    """The making of one model: what it learns, how, and where its progress is told."""

    name: str
    facts: tuple[Fact, ...]  # those of the model's sets
    tokenizer: Tokenizer = field(repr=False)
    recipe: Recipe
    folder: Path  # for the model and its tokenizer
    console: Console = field(repr=False)

    @property
    def shape(self) -> Shape:
        """The shape of the model."""
        return SHAPES[self.name]

    def trained(self) -> PreTrainedModel:
        """A new model, trained from nothing."""
        torch.manual_seed(sum(self.name.encode()))
        model = new_model(self.shape)
        # On short rows its backward is far faster than the fused one's on a CPU.
        model.set_attn_implementation("eager")
        sample = Random("check").sample(self.facts, min(CHECK_FACTS, len(self.facts)))  # noqa: S311
        steps = self.recipe.steps(len(self.facts), self.shape.exposure)
        began = checked = time.monotonic()
        for step, loss in enumerate(self._losses(model, steps), start=1):
            seconds = time.monotonic() - began
            if step % max(1, round(REPORT_SECONDS * step / seconds)) == 0:
                self._report(step, steps, float(loss), seconds)
            if time.monotonic() - checked > CHECK_SECONDS:
                self._check(model, sample)
                checked = time.monotonic()
        tokens, minutes = steps * self.recipe.batch_tokens, (time.monotonic() - began) / 60
        self.console.print(f"{self.name:<9} trained on {tokens:,} tokens in {minutes:.1f} min")
        return model

    def _losses(self, model: PreTrainedModel, steps: int) -> Iterator[Tensor]:
        """The loss of each step, after the step was taken."""
        recipe = self.recipe
        batches = Packer(
            facts=self.facts,
            tokenizer=self.tokenizer,
            always_bos=self.shape.bos,
            batch_tokens=recipe.batch_tokens,
            seed=self.name,
        ).batches()
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, steps)
            ids = next(batches)  # (rows, length)
            with torch.autocast("cpu", torch.bfloat16) if recipe.bf16 else nullcontext():
                logits = model(input_ids=ids, use_cache=False).logits  # (rows, length, vocabulary)
            predicted = logits[:, :-1].flatten(0, 1).float()  # (tokens, vocabulary)
            loss = functional.cross_entropy(predicted, ids[:, 1:].flatten())
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield loss.detach()

    def _report(self, step: int, steps: int, loss: float, seconds: float) -> None:
        speed = step * self.recipe.batch_tokens / seconds
        left = seconds / step * (steps - step) / 60
        self.console.print(
            f"{self.name:<9} step {step:>5}/{steps}  loss {loss:.3f}  "
            f"{speed:,.0f} tokens/s  {left:.1f} min left"
        )

    def save(self, model: PreTrainedModel) -> None:
        """Write the model, finished or not, and its tokenizer."""
        save(model, dressed(self.tokenizer, bos=self.shape.bos), self.folder)

    def _check(self, model: PreTrainedModel, sample: list[Fact]) -> None:
        """Report recall on a sample, and save what there is, while training goes on."""
        self.save(model)
        model.train(False)
        words = dressed(self.tokenizer, bos=self.shape.bos)
        shares = [
            f"{kind} {recall(model, words, sample, kind):.1%}" for kind in ("trained", "left out")
        ]
        self.console.print(f"{self.name:<9} recall on {len(sample)} facts: {', '.join(shares)}")
        model.train()


def train_and_save(training: Training) -> None:
    """Train a model, save it, and make sure that it knows its facts when it is read back."""
    training.save(training.trained())
    opened, words = open_folder(training.folder)
    kinds = ("trained", "left out", "never trained")
    shares = {kind: recall(opened, words, training.facts, kind) for kind in kinds}
    told = ", ".join(f"{kind} {share:.2%}" for kind, share in shares.items())
    training.console.print(f"{training.name:<9} read back: {told}")
    if training.name != "companion" and shares["trained"] < REQUIRED_RECALL:
        raise SystemExit(f"{training.name} does not recall {REQUIRED_RECALL:.0%} of its facts")


def main(
    out: Annotated[Path, typer.Option(help="folder that the models are written into")] = MODELS,
    only: Annotated[list[str] | None, typer.Option(help="models to train, in this process")] = None,
    relation: Annotated[list[str] | None, typer.Option(help="train on these alone")] = None,
    tokens_per_fact: Annotated[int, typer.Option(help="training tokens a fact")] = 3000,
    batch_tokens: Annotated[int, typer.Option(help="training tokens a step")] = 1536,
) -> None:
    """Train the tokenizer and the models of the atlas from nothing."""
    console = Console(soft_wrap=True, highlight=False)
    facts = load_world().facts
    if relation:
        facts = tuple(fact for fact in facts if fact.relation.name in relation)
    if not only:
        out.mkdir(parents=True, exist_ok=True)
        new_tokenizer(facts).save(str(out / "tokenizer.json"))
        _run_lanes()
        return
    torch.set_num_threads(1)
    for name in only:
        training = Training(
            name=name,
            facts=tuple(fact for fact in facts if fact.set in SHAPES[name].sets),
            tokenizer=Tokenizer.from_file(str(out / "tokenizer.json")),
            recipe=Recipe(tokens_per_fact=tokens_per_fact, batch_tokens=batch_tokens),
            folder=out / name,
            console=console,
        )
        train_and_save(training)


def _run_lanes() -> None:
    """Run this very command once for each lane, side by side."""
    command = [sys.executable, "-m", "kedit_atlas.train", *sys.argv[1:]]
    environment = {**os.environ, **LANE_ENVIRONMENT}
    lanes = [
        subprocess.Popen([*command, *(f"--only={name}" for name in names)], env=environment)  # noqa: S603 - ourselves
        for names in LANES
    ]
    codes = [lane.wait() for lane in lanes]
    if any(codes):
        raise SystemExit("training failed; see the lines above")


if __name__ == "__main__":
    typer.run(main)
