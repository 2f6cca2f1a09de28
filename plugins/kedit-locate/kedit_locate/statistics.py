"""What ``kedit locate stats`` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import torch
from attrs import asdict, frozen
from numpy.lib.npyio import NpzFile

from kedit_core import EditRequest, TensorCache
from kedit_core.cli.opening import open_editor
from kedit_core.cli.screen import print_json, screen
from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins
from kedit_core.untouched import untouched
from kedit_locate.config import Statistics
from kedit_locate.keys import keys_of
from kedit_locate.moments import KIND, Moment, halves, keep, moment_key, moments
from kedit_locate.shards import SHARDS
from kedit_locate.sufficiency import (
    Sufficiency,
    sampled_rows,
    subject_rows,
    sufficiency,
    verdict,
)


@frozen(kw_only=True)
class StatisticsRow:
    """One kept second moment.

    Attributes:
        file: where it lies.
        module: whose keys.
        width: in_features.
        tokens: counted.
        corpus: which text.
        model: fingerprint of the model.
        damaged: the file is not what was written.
        shard: which part of a pass that did not end, as in ``2 of 8``; empty for a whole moment.
    """

    file: str
    module: str = ""
    width: int = 0
    tokens: int = 0
    corpus: str = ""
    model: str = ""
    damaged: bool = False
    shard: str = ""


def build_statistics(
    plugins: Plugins,
    model: str,
    layers: str,
    wanted: Statistics,
    dtype: str | None,
    device: str | None,
) -> list[StatisticsRow]:
    """Collect the second moments of ``layers`` in one pass and return their rows."""
    editor = open_editor(plugins, model, None, dtype, device)
    downs = [editor.weights.layout.down_of(layer) for layer in _layers(layers)]
    moments(
        editor.model, editor.tokenizer, downs, wanted, editor.weights, editor.cache, editor.progress
    )
    keys = [moment_key(editor.tokenizer, down, wanted, editor.weights) for down in downs]
    files = {str(editor.cache.path(KIND, key)) for key in keys}
    return [row for row in kept_statistics() if row.file in files]


def sufficiency_of(
    plugins: Plugins,
    model: str,
    layers: str,
    wanted: Statistics,
    requests: Sequence[EditRequest] | None,
    dtype: str | None,
    device: str | None,
) -> list[Sufficiency]:
    """Compare solutions from half of the text with those from all of it, for each layer.

    Args:
        plugins: that are installed.
        model: to open.
        layers: as ``--layers`` names them.
        wanted: which text; what is not kept is collected.
        requests: whose subjects' keys are solved for; None takes keys of text that the model samples.
        dtype: of the model.
        device: of the model.

    Raises:
        KeditError: statistics have no halves.
    """
    editor = open_editor(plugins, model, None, dtype, device)
    downs = [editor.weights.layout.down_of(layer) for layer in _layers(layers)]
    about = (wanted, editor.weights, editor.cache, editor.progress)
    rows = subject_rows(editor.tokenizer, requests) if requests else None
    found = []
    pairs = halves(editor.model, editor.tokenizer, downs, *about)
    for layer, down, (whole, half) in zip(_layers(layers), downs, pairs, strict=True):
        if half is None:
            key = moment_key(editor.tokenizer, down, wanted, editor.weights)
            raise KeditError(
                f"the statistics of layer {layer} have no halves: they were imported, are older than "
                "halves are, or their text is too short to cut; ask for more --tokens, or remove "
                f"{editor.cache.path(KIND, key)} and build them again"
            )
        with untouched(editor.model):
            rows = rows or sampled_rows(editor.model, editor.tokenizer)
            keys = keys_of(editor.model, rows, down)
        found.append(sufficiency(layer, whole, half, keys))
    return found


def show_sufficiency(found: Sequence[Sufficiency], as_json: bool) -> None:
    """Print a row for each layer and what it means, or one JSON document."""
    if as_json:
        layers = [{**asdict(one), "enough": one.enough} for one in found]
        print_json({"layers": layers, "verdict": verdict(found)})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("LAYER", "HALF", "TOKENS", "KEYS", "COSINE", "NORM", "DISTURBS"):
        table.add_column(heading, justify="right")
    for one in found:
        counts = (str(one.layer), f"{one.half:,}", f"{one.tokens:,}", str(one.keys))
        change = (f"{one.cosine:.4f}", f"±{one.norm:.1%}", f"{one.disturbance:+.1%}")
        table.add_row(*counts, *change)
    screen().print(table)
    screen().print(
        f"\nsolutions from half of the tokens against all; {verdict(found)}", markup=False
    )


def kept_statistics() -> list[StatisticsRow]:
    """Return a row for every kept second moment and every shard of an unfinished one, damaged files too."""
    cache = TensorCache()
    return [
        _row(cache, kind, path, key)
        for kind in (KIND, SHARDS)
        for path, key in cache.keys(kind).items()
    ]


def import_statistics(
    plugins: Plugins,
    model: str,
    file: Path,
    layer: int,
    wanted: Statistics,
    dtype: str | None,
    device: str | None,
) -> StatisticsRow:
    """Keep the second moment of a ``.npz`` written by ROME's code under this model's key.

    Raises:
        KeditError: the file holds something else, or does not fit the layer.
    """
    moment = read_npz(file)
    editor = open_editor(plugins, model, None, dtype, device)
    down = editor.weights.layout.down_of(layer)
    if len(moment.matrix) != down.in_features:
        raise KeditError(
            f"{file} is {len(moment.matrix)} wide, layer {layer} of {model} is {down.in_features}"
        )
    key = moment_key(editor.tokenizer, down, wanted, editor.weights)
    path = keep(moment, key, editor.cache)
    return _row(editor.cache, KIND, path, dict(key))


def read_npz(file: Path) -> Moment:
    """Return the second moment of a ``.npz`` file: ``mom2.mom2`` is a sum, ``mom2.count`` its tokens.

    Raises:
        KeditError: the file cannot be read or holds something else.
    """
    try:
        # Opened here: numpy leaves a broken file open.
        with file.open("rb") as stream:
            found = numpy.load(stream, allow_pickle=False)
            if not isinstance(found, NpzFile):
                raise ValueError("it holds a single array")
            total, count = found["mom2.mom2"].astype("float64"), int(found["mom2.count"])
    except (OSError, EOFError, ValueError, TypeError, KeyError, BadZipFile) as error:
        raise KeditError(f"{file} is no statistics file of ROME: {error}") from None
    if count < 1:
        raise KeditError(f"{file} counts {count} tokens, so there is nothing to average")
    matrix = torch.from_numpy(total) / count
    if (
        matrix.ndim != 2
        or matrix.shape[0] != matrix.shape[1]
        or not bool(torch.isfinite(matrix).all())
    ):
        raise KeditError(f"{file} holds no finite square matrix")
    return Moment(matrix=matrix.float(), count=count)


def show_rows(rows: Sequence[StatisticsRow], as_json: bool) -> None:
    """Print rows as a table, or as one JSON document."""
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("MODULE", "WIDTH", "TOKENS", "CORPUS", "MODEL", "FILE"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        unfinished = f" (unfinished: shard {row.shard})" if row.shard else ""
        state = "damaged" if row.damaged else f"{row.module}{unfinished}"
        cells = (
            state,
            f"{row.width:,}",
            f"{row.tokens:,}",
            row.corpus,
            row.model[:8],
            Path(row.file).name,
        )
        table.add_row(*cells, style="red" if row.damaged else "")
    screen().print(table)
    if not rows:
        screen().print("nothing is kept; try: kedit locate stats build MODEL --layers 0")


def _row(cache: TensorCache, kind: str, path: Path, key: dict[str, Any] | None) -> StatisticsRow:
    # A whole file may still be another's: copied here, or renamed.
    if key is None or "module" not in key or cache.path(kind, key) != path:
        return StatisticsRow(file=str(path), damaged=True)
    kept = cache.find(kind, key)
    number, shards = key.get("shard", (0, 0))
    return StatisticsRow(
        file=str(path),
        module=key["module"],
        width=key["width"],
        tokens=int(kept["count"]) if kept else 0,
        corpus=key["corpus"],
        model=key["model"],
        damaged=kept is None,
        shard=f"{number + 1} of {shards}" if shards else "",
    )


def _layers(text: str) -> list[int]:
    """Return the layers that ``5``, ``3,4,5`` or ``3-8`` names, ascending."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()):
            raise KeditError(f"--layers {text!r} is not of the form 5, 3,4,5 or 3-8")
        if int(last) < int(first):
            raise KeditError(f"--layers {text!r} goes down from {first} to {last}")
        found.update(range(int(first), int(last) + 1))
    return sorted(found)
