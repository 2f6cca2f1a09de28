"""The weights of a model under edit: originals, the list of changes in force, exact restore.

A written weight is a pure function of its original and of the ordered list:

    W = cast(W⁰ + Σ left · right + Σ update)

in float32 (float64 in a float64 model), all factors in force concatenated in order and multiplied
in
chunks of rank 512, the last chunk zero-padded to the next rank of the list below. Taking a change
out
evaluates the function without it, so rounding never accumulates and undo is exact.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import is_

import torch
from attrs import field, frozen
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_core.deltas import Delta, Dense, LowRank, Part, SideMemory
from kedit_core.digests import digest, fingerprint
from kedit_core.errors import DeltaError, ModelError
from kedit_core.interrupts import uninterrupted
from kedit_core.layout import ModelLayout, layout_of
from kedit_core.reports import Applied

EXPORT_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that adapter runtimes accept; the largest is the rank of a chunk."""

Write = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Fill ``out`` with cast(base + left @ right): out and base (out_features, in_features), never added to."""

_CASTS = (torch.float32, torch.bfloat16, torch.float16)


@frozen(eq=False)
class _Entry:
    """Changes that went in together."""

    parts: tuple[LowRank | Dense, ...]
    write: Write | None = None


@frozen(eq=False)
class _Finished:
    """A weight with its first full chunks in, so that long streams multiply only the last one."""

    ranks: int
    factors: tuple[LowRank, ...]
    value: Tensor = field(repr=False)  # (out_features, in_features), float32 or float64


class Weights:
    """What holds the originals of a model's edited weights and the changes in force."""

    def __init__(self, model: nn.Module, *, allow_tied: bool = False) -> None:
        """Watch over ``model``; with ``allow_tied`` a tied weight may be edited, both its uses change."""
        self._model = model
        self._allow_tied = allow_tied
        self._originals: dict[str, Tensor] = {}
        self._entries: list[_Entry] = []
        self._finished: dict[str, _Finished] = {}
        self._base_digests: dict[str, dict[str, str]] = {}

    @cached_property
    def layout(self) -> ModelLayout:
        """Return where the pieces of the model are, traced once."""
        return layout_of(self._model)

    @cached_property
    def fingerprint(self) -> str:
        """Return the name of the unedited model, for the keys of caches."""
        return fingerprint(self._model, self._originals)

    @property
    def touched(self) -> tuple[str, ...]:
        """Return the paths of the parameters that were written at least once."""
        return tuple(self._originals)

    def base_of(self, weight: str) -> Tensor:
        """Return the original of a parameter, as stored, whether edited or not."""
        return self._originals.get(weight, self._parameter(weight).detach())

    def matrix(self, weight: str) -> Tensor:
        """Return a weight as it is now, as a view (out_features, in_features)."""
        return self._oriented(weight, self._parameter(weight).detach())

    def base_digests(self, weight: str) -> dict[str, str]:
        """Return the digests of a parameter's original, as stored and cast to the usual dtypes."""
        if weight not in self._base_digests:
            base = self.base_of(weight)
            kinds = dict.fromkeys((base.dtype, *_CASTS))
            found = {str(kind).removeprefix("torch."): digest(base.to(kind)) for kind in kinds}
            self._base_digests[weight] = found
        return dict(self._base_digests[weight])

    def check(self, delta: Delta) -> None:
        """See that a delta fits this model.

        Raises:
            DeltaError: a part names a parameter that does not exist, has the wrong shape, or was
                computed for other weights.
            ModelError: the parameter cannot be edited.
        """
        for part in delta.weights():
            self._check_part(part)
            recorded = delta.provenance.base.get(part.weight)
            if recorded and not self._is_base(part.weight, recorded):
                raise DeltaError(
                    f"delta {delta.id}", f"it was computed for another model: {part.weight} differs"
                )

    def add(self, delta: Delta, *, write: Write | None = None) -> Applied:
        """Write the matrices of ``delta`` into the model; when this fails nothing has changed.

        Args:
            delta: of kind *weights*.
            write: the method's own kernel, used while its delta is the newest on a weight without
                dense updates. ``write(out, base, left, right)`` fills ``out`` in the weight's
                dtype.

        Raises:
            DeltaError: it does not fit.
        """
        if any(isinstance(part, SideMemory) for part in delta.parts):
            raise DeltaError(
                f"delta {delta.id}", f"method {delta.method!r} must apply its side memory itself"
            )
        self.check(delta)
        return self._push(_Entry(tuple(delta.weights()), write))

    @contextmanager
    def temporarily(self, parts: Iterable[Part]) -> Iterator[None]:
        """Show the model with ``parts`` written on top, and put it back at the end."""
        entry = _Entry(tuple(part for part in parts if not isinstance(part, SideMemory)))
        for part in entry.parts:
            self._check_part(part)
        paths = _paths([entry])
        before = {path: self._parameter(path).detach().clone() for path in paths}
        try:
            with uninterrupted():
                self._entries.append(entry)
                self._rewrite(paths)
            yield
        finally:
            with uninterrupted():
                if entry in self._entries:
                    self._entries.remove(entry)
                self._copy_in(before)

    @contextmanager
    def original(self) -> Iterator[None]:
        """Show the unedited model inside the block."""
        edited = {path: self._parameter(path).detach().clone() for path in _paths(self._entries)}
        try:
            with uninterrupted():
                self._copy_in({path: self._originals[path] for path in edited})
            yield
        finally:
            with uninterrupted():
                self._copy_in(edited)

    def _push(self, entry: _Entry) -> Applied:
        def undo() -> None:
            with uninterrupted():
                self._entries.remove(entry)
                self._rewrite(_paths([entry]))

        with uninterrupted():
            self._entries.append(entry)
            try:
                self._rewrite(_paths([entry]))
            except BaseException:
                undo()
                raise
        return Applied(undo)

    def _rewrite(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._keep_original(path)
            self._write(path)

    def _keep_original(self, path: str) -> None:
        if path not in self._originals:
            self._originals[path] = self._parameter(path).detach().cpu().clone()

    @torch.no_grad()
    def _write(self, path: str) -> None:
        parameter = self._parameter(path)
        own = [
            (part, entry.write)
            for entry in self._entries
            for part in entry.parts
            if part.weight == path
        ]
        if not own:
            parameter.copy_(self._originals[path])
            self._finished.pop(path, None)
            return
        factors = [part for part, _ in own if isinstance(part, LowRank)]
        kernel = own[-1][1]
        base = self._oriented(path, self._originals[path].to(parameter.device))
        if kernel is not None and len(factors) == len(own):
            out = self._oriented(path, torch.empty_like(parameter))
            kernel(out, base, *_joined(factors, base, torch.float32))
        else:
            out = self._sum(
                path, base, factors, [part for part, _ in own if isinstance(part, Dense)]
            )
        written = out.to(parameter.dtype)
        if not bool(torch.isfinite(written).all()):
            raise DeltaError(path, f"the edited weight is not finite in {parameter.dtype}")
        self._oriented(path, parameter).copy_(written)

    def _sum(
        self, path: str, base: Tensor, factors: Sequence[LowRank], dense: Sequence[Dense]
    ) -> Tensor:
        """Return base + Σ left·right + Σ update, (out_features, in_features), before the cast."""
        exact = torch.float64 if base.dtype == torch.float64 else torch.float32
        chunk = EXPORT_RANKS[-1]
        finished = self._finished.get(path)
        if finished is not None and _begins_with(factors, finished.factors):
            out, done = finished.value.clone(), finished.ranks
        else:
            out, done = base.to(exact, copy=True), 0
        if factors:
            left, right = _joined(
                factors, base, exact
            )  # (out_features, ranks), (ranks, in_features)
            while done < left.shape[1]:
                stop = min(done + chunk, left.shape[1])
                out += _padded(left[:, done:stop], 1) @ _padded(right[done:stop], 0)
                done = stop
                if stop % chunk == 0:
                    kept = _covering(factors, stop)
                    self._finished[path] = _Finished(stop, kept, out.clone())
        for part in dense:
            out += part.update.to(out)
        return out

    def _parameter(self, path: str) -> nn.Parameter:
        try:
            return self._model.get_parameter(path)
        except AttributeError:
            raise DeltaError(path, "the model has no such parameter") from None

    def _oriented(self, path: str, tensor: Tensor) -> Tensor:
        """Return a weight as (out_features, in_features); the module's type decides, never the shape."""
        module = self._model.get_submodule(path.rpartition(".")[0])
        return tensor.t() if isinstance(module, Conv1D) else tensor

    def _check_part(self, part: LowRank | Dense) -> None:
        parameter = self._parameter(part.weight)
        if parameter.device.type == "meta":
            raise ModelError(
                part.weight,
                "its values are not in memory (meta or offloaded), so it cannot be edited",
            )
        if not parameter.is_floating_point() or parameter.ndim != 2:
            raise ModelError(
                part.weight, f"is no plain matrix ({parameter.dtype}, {parameter.ndim} dimensions)"
            )
        if not self._allow_tied:
            self._check_untied(part.weight, parameter)
        shape = tuple(self._oriented(part.weight, parameter).shape)
        if part.shape != shape:
            raise DeltaError(
                part.weight, f"the update is {part.shape}, the weight {shape} (out, in)"
            )

    def _check_untied(self, path: str, parameter: nn.Parameter) -> None:
        for other, found in self._model.named_parameters(remove_duplicate=False):
            if found is parameter and other != path:
                raise ModelError(
                    path,
                    f"is tied to {other}, an edit would change both; allow_tied=True permits it",
                )

    def _is_base(self, weight: str, recorded: Mapping[str, str]) -> bool:
        """Compare this original with a recorded one in the dtype of either, which comes first in both."""
        own = self.base_digests(weight)
        return any(
            own.get(kind) == recorded.get(kind, "none")
            for kind in (next(iter(own)), next(iter(recorded)))
        )

    @torch.no_grad()
    def _copy_in(self, values: dict[str, Tensor]) -> None:
        for path, value in values.items():
            self._parameter(path).copy_(value)


def _paths(entries: Iterable[_Entry]) -> list[str]:
    return list(dict.fromkeys(part.weight for entry in entries for part in entry.parts))


def _joined(factors: Sequence[LowRank], like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return all left factors side by side and all right factors one below the other."""
    left = torch.cat([part.left for part in factors], dim=1).to(like.device, dtype)
    right = torch.cat([part.right for part in factors], dim=0).to(like.device, dtype)
    return left, right


def _padded(factor: Tensor, dim: int) -> Tensor:
    """Return a factor zero-padded along its rank to the next export rank."""
    rank = factor.shape[dim]
    missing = next(size for size in EXPORT_RANKS if size >= rank) - rank
    shape = [missing if place == dim else size for place, size in enumerate(factor.shape)]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)


def _begins_with(factors: Sequence[LowRank], start: Sequence[LowRank]) -> bool:
    return len(factors) >= len(start) and all(map(is_, factors, start))


def _covering(factors: Sequence[LowRank], ranks: int) -> tuple[LowRank, ...]:
    """Return the first factors that hold together at least ``ranks`` ranks."""
    held = 0
    for count, part in enumerate(factors, 1):
        held += part.left.shape[1]
        if held >= ranks:
            return tuple(factors[:count])
    return tuple(factors)
