"""What exports are worth: whole checkpoints and adapters against the edited model, bit by bit.

``python tests/benchmarks/exports.py`` edits small random models of eight families with random updates of
several ranks on several layers, and both embedded models with ROME, in float32, bfloat16 and float16. It
exports each and loads it again with plain transformers and with PEFT. Prints a Markdown table; exits 1
when a checkpoint or a merged adapter is not the edited model bit for bit.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
import typer
from attrs import frozen
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kedit_core import (
    Delta,
    EditBatch,
    Editor,
    EditRequest,
    LowRank,
    MethodInfo,
    Plugins,
    Weights,
    export_lora,
    export_merged,
    hookimpl,
)
from kedit_core.cli.screen import quiet_transformers
from kedit_core.digests import state_digest

FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "qwen3", "phi3", "gemma2", "olmo2")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANKS = ((1, 3, 0, 8), (0, 200, 5, 0), (2, 0, 300, 0))
"""Of three edits, on each of four layers."""

HEADINGS = (
    "model",
    "dtype",
    "rank",
    "checkpoint equal",
    "adapter, merged: equal",
    "adapter, switched off: equal",
    "adapter, unmerged: logits differ by",
    "the edits change logits by",
)


@frozen(kw_only=True)
class NoSettings:
    """Settings of a method that has none."""


def noise_method() -> Plugins:
    """Return plugins with one method, which writes random updates of given ranks."""
    module = ModuleType("noise")

    @hookimpl
    def method_info() -> MethodInfo:
        return MethodInfo(name="noise", summary="noise", kind="weights", config=NoSettings)

    @hookimpl
    def compute_delta(batch: EditBatch, weights: Weights) -> Delta:
        (request,) = batch.requests
        generator = torch.Generator().manual_seed(len(request.prompt))
        parts = []
        for layer, rank in zip(weights.layout.layers, request.extra["ranks"], strict=True):
            if rank:
                left = torch.randn(layer.down.out_features, rank, generator=generator)
                right = torch.randn(rank, layer.down.in_features, generator=generator)
                parts.append(LowRank(weight=layer.down.weight, left=left / 1000, right=right))
        return Delta(method="noise", requests=batch.requests, parts=parts)

    module.method_info, module.compute_delta = method_info, compute_delta
    plugins = Plugins()
    plugins.register(module)
    return plugins


def random_model(family: str, vocabulary: int) -> PreTrainedModel:
    """Return a seeded model of a family: four layers, width 128."""
    older = family in ("gpt2", "gptj")
    width, layers, heads = (
        ("n_embd", "n_layer", "n_head")
        if older
        else ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    sizes = {width: 128, layers: 4, heads: 4, "vocab_size": vocabulary}
    sizes |= {"bos_token_id": 1, "eos_token_id": 1}
    sizes |= {"rotary_dim": 16} if older else {"intermediate_size": 512, "pad_token_id": 1}
    if family not in ("gpt2", "gptj", "gpt_neox"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 32}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


def edited_models(folder: Path) -> Iterator[tuple[str, Editor]]:
    """Yield each model with its edits in force."""
    tokenizer = Editor.from_pretrained("atlas:gpt2").tokenizer
    for family in FAMILIES:
        for dtype in DTYPES:
            source = folder / f"{family}-{dtype}"
            random_model(family, len(tokenizer)).to(dtype).save_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source)
            editor = Editor(model, tokenizer, "noise", plugins=noise_method())
            for number, ranks in enumerate(RANKS):
                prompt = "the " * (number + 1) + "river"
                extra = {"ranks": ranks}
                editor.edit(EditRequest(prompt=prompt, target_new="flows", extra=extra))
            yield f"{family}, random", editor
    found = iter(Plugins.installed().call_all("read_requests", source="atlas:editable"))
    requests = [next(found) for _ in range(3)]
    for name in ("atlas:gpt2", "atlas:llama"):
        for dtype in DTYPES[:2]:
            editor = Editor.from_pretrained(name, "rome", dtype=dtype)
            for request in requests:
                editor.edit(request)
            yield f"{name}, ROME", editor


def logits_of(model: PreTrainedModel) -> Tensor:
    """Return what a model says to eight random texts."""
    ids = torch.randint(5, 400, (8, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def compared(name: str, editor: Editor, folder: Path) -> tuple[list[str], bool]:
    """Export an edited model both ways; return its row, and whether all is equal that must be."""
    model, dtype = editor.model, editor.model.dtype

    def unedited() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=dtype)

    checkpoint = export_merged(editor, folder / "checkpoint")
    adapter = export_lora(editor, folder / "adapter")
    wanted, bits = logits_of(model), state_digest(model)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    equal = [state_digest(loaded) == bits and torch.equal(logits_of(loaded), wanted)]
    beside = PeftModel.from_pretrained(unedited(), adapter.path)
    apart = float((logits_of(beside) - wanted).abs().max())
    plain = logits_of(unedited())
    with beside.disable_adapter():
        off = torch.equal(logits_of(beside), plain)
    merged = beside.merge_and_unload()
    equal += [state_digest(merged) == bits and torch.equal(logits_of(merged), wanted), off]
    cells = [name, str(dtype).removeprefix("torch."), str(adapter.rank)]
    cells += ["yes" if one else "NO" for one in equal]
    cells += [f"{apart:.1e}", f"{float((plain - wanted).abs().max()):.1e}"]
    return cells, all(equal) and adapter.exact


def run() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    # PEFT asks transformers for an attribute that was renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)
    good = True
    rows = [list(HEADINGS), ["---"] * len(HEADINGS)]
    with tempfile.TemporaryDirectory() as name, quiet_transformers():
        for number, (model, editor) in enumerate(edited_models(Path(name))):
            cells, equal = compared(model, editor, Path(name) / f"{number}")
            rows.append(cells)
            good &= equal
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(run)
