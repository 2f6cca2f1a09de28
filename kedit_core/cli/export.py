"""``kedit export``: write edits as what other programs load."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from attrs import frozen

from kedit_core.cli.opening import Device, Dtype, Json, Model, open_editor
from kedit_core.cli.screen import counted, print_json, quiet_transformers, readable, screen
from kedit_core.errors import KeditError, did_you_mean
from kedit_core.plugins import Plugins

_FORMS = ("merged", "lora")
_WITHOUT_ADAPTERS = ("gpt2",)
"""Model types whose class in vLLM takes no adapters."""


def run(
    context: typer.Context,
    model: Model,
    delta: Annotated[
        list[Path],
        typer.Option("--delta", help="A delta file, RUN or RUN/CELL to export; may be repeated."),
    ],
    to: Annotated[
        str, typer.Option("--to", help="merged: a whole checkpoint; lora: a PEFT adapter.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must be new.")],
    rank: Annotated[
        int | None,
        typer.Option(help="Of an adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512; truncates."),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write edits as a checkpoint or an adapter that needs no kedit to be served."""
    plugins: Plugins = context.obj
    if to not in _FORMS:
        hint = did_you_mean(to, _FORMS)
        raise KeditError(f"--to {to}: {' and '.join(_FORMS)} are known{hint}")
    if rank is not None and to == "merged":
        raise KeditError("--rank belongs to --to lora; a merged checkpoint is always whole")
    # Not earlier: they load torch.
    from kedit_core.export import check_out, export_lora, export_merged

    check_out(out)
    editor = open_editor(plugins, model, delta, dtype, device)
    with quiet_transformers():
        done = export_merged(editor, out) if to == "merged" else export_lora(editor, out, rank)
    # A plugin's own name for a model, such as atlas:gpt2, means nothing to other programs.
    source = editor.model.name_or_path or model
    kind = str(editor.model.dtype).removeprefix("torch.")
    next_step = _next_step(source, kind, editor.model.config.model_type, done)
    if as_json:
        print_json(_document(done, kind, next_step))
    else:
        _show(done, next_step)


@frozen(kw_only=True)
class _NextStep:
    """What to do with an export: Python lines that load it, and a command that serves it or why none does."""

    load: tuple[str, ...]
    serve: str | None
    unserved: str = ""


def _next_step(source: str, dtype: str, model_type: str, done: Any) -> _NextStep:
    """Return how plain programs use an export of ``source``, which was edited in ``dtype``."""
    if done.kind == "merged":
        return _NextStep(
            load=(
                "from transformers import AutoModelForCausalLM",
                f"model = AutoModelForCausalLM.from_pretrained({str(done.path)!r})",
            ),
            serve=f"vllm serve {quote(str(done.path))}",
        )
    load = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        f"model = AutoModelForCausalLM.from_pretrained({source!r}, dtype={dtype!r})",
        f"model = PeftModel.from_pretrained(model, {str(done.path)!r}).merge_and_unload()",
    )
    if model_type in _WITHOUT_ADAPTERS:
        unserved = f"takes no adapters for {model_type}; export --to merged for it"
        return _NextStep(load=load, serve=None, unserved=unserved)
    name = quote(f"{done.path.resolve().name}={done.path}")
    limit = f"--enable-lora --max-lora-rank {done.rank}"
    return _NextStep(load=load, serve=f"vllm serve {quote(source)} {limit} --lora-modules {name}")


def _document(done: Any, dtype: str, next_step: _NextStep) -> dict[str, Any]:
    return {
        "to": done.kind,
        "out": str(done.path),
        "bytes": done.size,
        "dtype": dtype,
        "deltas": done.deltas,
        "exact": done.exact,
        "rank": done.rank,
        "differing": done.differing,
        "truncation": done.truncation,
        "worst_truncation": done.worst_truncation,
        "load": next_step.load,
        "serve": next_step.serve,
        "unserved": next_step.unserved or None,
    }


def _show(done: Any, next_step: _NextStep) -> None:
    edits = counted(len(done.deltas), "edit")
    what = "checkpoint" if done.kind == "merged" else f"adapter of rank {done.rank}"
    lines = [f"{what} with {edits} in {done.path} ({readable(done.size)})"]
    if done.kind == "lora":
        lines += _how_exact(done)
    serve = next_step.serve or next_step.unserved
    lines += ["", *(f"load:   {line}" for line in next_step.load), f"vLLM:   {serve}"]
    console = screen()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _how_exact(done: Any) -> list[str]:
    if done.exact:
        return ["merged by PEFT it is the edited model bit for bit (measured here)"]
    if not done.worst_truncation:
        some, every = sum(map(bool, done.differing.values())), len(done.differing)
        return [
            f"merged by PEFT, {some} of {every} modules differ from the edited model in last bits"
        ]
    rows = [f"  {module}: {error:.2e}" for module, error in done.truncation.items() if error]
    return [
        f"truncated to rank {done.rank}, at the worst by {done.worst_truncation:.2e} of an update:",
        *rows,
    ]
