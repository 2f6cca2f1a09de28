"""What ``kedit locate stats`` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import torch
from attrs import asdict, frozen
from numpy.lib.npyio import NpzFile

from kedit_core import TensorCache
from kedit_core.cli.opening import open_editor
from kedit_core.cli.screen import print_json, screen
from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins
from kedit_locate.config import Statistics
from kedit_locate.moments import KIND, Moment, keep, moment_key, moments, unpacked


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
    """

    file: str
    module: str = ""
    width: int = 0
    tokens: int = 0
    corpus: str = ""
    model: str = ""
    damaged: bool = False


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


def kept_statistics() -> list[StatisticsRow]:
    """Return a row for every kept second moment, damaged files too."""
    cache = TensorCache()
    return [_row(cache, path, key) for path, key in cache.keys(KIND).items()]


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
    return _row(editor.cache, path, dict(key))


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
        state = "damaged" if row.damaged else row.module
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


def _row(cache: TensorCache, path: Path, key: dict[str, Any] | None) -> StatisticsRow:
    # A whole file may still be another's: copied here, or renamed.
    if key is None or "module" not in key or cache.path(KIND, key) != path:
        return StatisticsRow(file=str(path), damaged=True)
    kept = cache.find(KIND, key)
    return StatisticsRow(
        file=str(path),
        module=key["module"],
        width=key["width"],
        tokens=unpacked(kept).count if kept else 0,
        corpus=key["corpus"],
        model=key["model"],
        damaged=kept is None,
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
