"""What a benchmark needs of a model and of edits where only their shapes matter: nothing is downloaded."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from attrs import field, frozen
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kedit_core import EditRequest
from kedit_core.testing import byte_level_tokenizer
from kedit_locate.corpus import Corpus
from kedit_locate.rows import EditRows, Row

PREFIX_TOKENS = (0, *(5,) * 10, *(10,) * 10)  # the bare prompt, and twenty texts before it
PROMPT_TOKENS, TARGET_TOKENS = (6, 12), (1, 3)
_TEMPLATES = ("The mother tongue of {} is", "{} plays the instrument", "{} was born in the city of")
_WORDS = ("Danish", "violin", "Lisbon", "Korean", "guitar", "Vienna", "Welsh", "piano", "Oslo")


@frozen(kw_only=True)
class Shape:
    """A model by its numbers.

    Attributes:
        config: of the model.
        layers: that are edited; a value is searched for at the last of them.
        rows: tokens that one call of the sum of second moments takes.
        tokens: that second moments are timed with.
        steps: of a search for values.
        together: how many edits are searched for at once.
        edits: how many at once, end to end; the last one only when all is asked for.
    """

    config: PretrainedConfig = field(repr=False)
    layers: tuple[int, ...]
    rows: int = 8192
    tokens: int = 65_536
    steps: int = 25
    together: tuple[int, ...] = (1, 16, 64, 256)
    edits: tuple[int, ...] = (1, 100, 1_000, 10_000)


SHAPES = {
    "gpt-j-6b": Shape(
        config=GPTJConfig(n_positions=2048, bos_token_id=0, eos_token_id=0),
        layers=(3, 4, 5, 6, 7, 8),
    ),
    "llama-3-8b": Shape(
        config=LlamaConfig(
            vocab_size=128_256,
            intermediate_size=14_336,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            bos_token_id=0,
            eos_token_id=0,
        ),
        layers=(4, 5, 6, 7, 8),
    ),
    "tiny": Shape(
        config=GPTJConfig(
            vocab_size=512,
            n_positions=256,
            n_embd=32,
            n_layer=3,
            n_head=2,
            rotary_dim=8,
            initializer_range=0.2,  # about 1 / √width, as 0.02 is for the others
            bos_token_id=0,
            eos_token_id=0,
        ),
        layers=(0, 1),
        rows=256,
        tokens=4096,
        steps=5,
        together=(1, 4, 16),
        edits=(1, 10, 100),
    ),
}


def random_model(shape: Shape, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return a model of that shape with seeded random weights, made where it runs."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config, dtype=dtype)
    return model.eval().requires_grad_(False)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the parameters alone: buffers hold angles, which stay as exact as they were made."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def random_edits(count: int, vocabulary: int) -> list[EditRows]:
    """Return the rows of edits: 21 rewrites of one prompt behind texts, and the subject alone."""
    rng = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, vocabulary) for _ in range(length))

    prefixes = [ids(length) for length in PREFIX_TOKENS]
    edits = []
    for _ in range(count):
        prompt, target = ids(rng.randint(*PROMPT_TOKENS)), ids(rng.randint(*TARGET_TOKENS))
        last = rng.randrange(1, len(prompt) - 2)  # the subject's last token
        rewrites = tuple(
            Row(ids=prefix + prompt + target[:-1], lookup=len(prefix) + last, target=target)
            for prefix in prefixes
        )
        anchor = Row(ids=prompt[: last + 1], lookup=last)
        edits.append(EditRows(rewrites=rewrites, anchor=anchor))
    return edits


def random_corpus(tokens: int, vocabulary: int, length: int = 128) -> Corpus:
    """Return passages of random tokens."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, vocabulary, (tokens // length, length), generator=generator)
    return Corpus(name="random", passages=tuple(drawn))


def written_edits(count: int) -> list[EditRequest]:
    """Return requests in words, each about a subject of its own."""
    return [
        EditRequest(
            prompt=_TEMPLATES[n % len(_TEMPLATES)],
            subject=f"person {n:05d}",
            target_new=_WORDS[n % len(_WORDS)],
        )
        for n in range(count)
    ]


def their_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads those requests, with at most that many tokens."""
    sentences = [one.prompt.format(one.subject) + " " + one.target_new for one in written_edits(99)]
    most = min(vocabulary, 512)
    return byte_level_tokenizer(bos=False, sentences=tuple(sentences), vocabulary=most)


@frozen(kw_only=True)
class Machine:
    """Where a benchmark runs.

    Attributes:
        device: as torch calls it.
    """

    device: str

    @property
    def gpu(self) -> bool:
        """Return whether it is one."""
        return self.device.startswith("cuda")

    @property
    def name(self) -> str:
        """Return what hardware it is."""
        if self.gpu:
            return torch.cuda.get_device_name(self.device)
        about = Path("/proc/cpuinfo")
        lines = about.read_text().splitlines() if about.exists() else []
        named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        return f"{next(named, 'CPU')}, torch threads: {torch.get_num_threads()}"

    def wait(self) -> float:
        """Return the time, in seconds, once all that was begun is done."""
        if self.gpu:
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def seconds(self, call: Callable[[], object], *, least: float = 0.1, repeat: int = 5) -> float:
        """Return what a call takes: the median of several runs of calls, each run ``least`` seconds long."""
        call()
        started = self.wait()
        call()
        calls = max(1, round(least / max(self.wait() - started, 1e-7)))
        found = []
        for _ in range(repeat):
            started = self.wait()
            for _ in range(calls):
                call()
            found.append((self.wait() - started) / calls)
        return median(found)

    def begin(self) -> float:
        """Forget the peak of memory and return the time."""
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return self.wait()

    def peak(self) -> str:
        """Return the most memory of the device that was held since ``begin``."""
        return (
            f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB" if self.gpu else "–"
        )


def markdown(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
