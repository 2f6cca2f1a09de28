"""The weights of a model under edit: originals, the list of changes in force, exact restore.

A written weight is a pure function of its original and of the ordered list:

    W = cast(W⁰ + Σ left · right + Σ update)

in float32 (float64 in a float64 model), all factors in force concatenated in order and multiplied
in chunks of rank 512, the last chunk zero-padded to the next rank of the list below. Taking a
change out evaluates the function without it, so rounding never accumulates and undo is exact.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_core.deltas import Delta, Dense, LowRank, Part, SideMemory
from kedit_core.digests import digest, fingerprint, sampled_digest
from kedit_core.errors import DeltaError, ModelError
from kedit_core.interrupts import uninterrupted
from kedit_core.layout import ModelLayout, layout_of
from kedit_core.parameters import check_plain, check_untied
from kedit_core.reports import Applied
from kedit_core.sums import Sums, joined
from kedit_core.wrapped import inner_model

Write = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Fill ``out`` with cast(base + left @ right): out and base (out_features, in_features), never added to."""

_CASTS = (torch.float32, torch.bfloat16, torch.float16)


@frozen(eq=False)
class _Entry:
    """Changes that went in together."""

    parts: tuple[LowRank | Dense, ...]
    write: Write | None = None


class Weights:
    """What holds the originals of a model's edited weights and the changes in force.

    Attributes:
        memories_out: takes what is beside the weights out of the model for a block; who puts it in says how.
    """

    def __init__(
        self, model: nn.Module, *, allow_tied: bool = False, layout: Mapping[str, str] | None = None
    ) -> None:
        """Watch over ``model``; ``allow_tied`` lets tied weights change, ``layout`` overrides what is found."""
        self._model, self._layout = inner_model(model), layout
        self._allow_tied = allow_tied
        self._originals: dict[str, Tensor] = {}
        self._entries: list[_Entry] = []
        self._sums = Sums()
        self._base_digests: dict[str, dict[str, str]] = {}
        self.memories_out: Callable[[], AbstractContextManager[None]] = nullcontext

    @cached_property
    def layout(self) -> ModelLayout:
        """Return where the pieces of the model are, traced once."""
        return layout_of(self._model, self._layout)

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
        return self._originals.get(self._name_of(weight), self._parameter(weight).detach())

    def matrix(self, weight: str) -> Tensor:
        """Return a weight as it is now, as a view (out_features, in_features)."""
        return self._oriented(weight, self._parameter(weight).detach())

    def base_digests(self, weight: str) -> dict[str, str]:
        """Return the digests of a parameter's original, as stored and cast to the usual dtypes.

        ``""`` is the whole model, of whose parameters a sample is taken: what memories are made for.
        """
        if weight not in self._base_digests:
            first = weight or next(name for name, _ in self._model.named_parameters())
            base = self.base_of(first)
            self._base_digests[weight] = {
                str(kind).removeprefix("torch."): digest(base.to(kind))
                if weight
                else sampled_digest(self._model, self._originals, kind)
                for kind in dict.fromkeys((base.dtype, *_CASTS))
            }
        return dict(self._base_digests[weight])

    def written_digests(self, delta: Delta) -> dict[str, str]:
        """Return the digests of the parameters that a delta touches, as they are now."""
        paths = dict.fromkeys(part.weight for part in delta.weights())
        return {path: digest(self._parameter(path)) for path in paths}

    def check(self, delta: Delta) -> None:
        """See that a delta fits this model.

        Raises:
            DeltaError: a part names a parameter that does not exist, has the wrong shape, or was
                computed for other weights.
            ModelError: the parameter cannot be edited.
        """
        for part in delta.weights():
            self._check_part(part)
        for path, recorded in delta.provenance.base.items():
            if recorded and not self._is_base(path, recorded):
                differs = f"{path} differs" if path else "a sample of its weights differs"
                raise DeltaError(
                    f"delta {delta.id}", f"it was computed for another model: {differs}"
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
        return self._push(_Entry(self._named(delta.weights()), write))

    @contextmanager
    def temporarily(self, parts: Iterable[Part]) -> Iterator[None]:
        """Show the model with ``parts`` written on top, and put it back at the end."""
        matrices = self._named(part for part in parts if not isinstance(part, SideMemory))
        for part in matrices:
            self._check_part(part)
        entry, entries = _Entry(matrices), list(self._entries)
        before = self._as_they_are([entry])
        with uninterrupted() as gate:
            try:
                self._entries.append(entry)
                self._rewrite(before)
                with gate.open():
                    yield
            finally:
                self._entries.remove(entry)
                self._show_again(before, entries)

    @contextmanager
    def original(self) -> Iterator[None]:
        """Show the unedited model inside the block, its memories taken out too."""
        entries = list(self._entries)
        edited = self._as_they_are(entries)
        with self.memories_out(), uninterrupted() as gate:
            try:
                self._copy_in({path: self._originals[path] for path in edited})
                with gate.open():
                    yield
            finally:
                self._show_again(edited, entries)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Take out at the end of the block whatever was put in and left inside it."""
        entries = list(self._entries)
        with uninterrupted() as gate:
            try:
                with gate.open():
                    yield
            finally:
                if self._entries != entries:
                    paths = _paths([*self._entries, *entries])
                    self._entries[:] = entries
                    self._rewrite(paths)

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
            self._sums.forget(path)
            return
        factors = [part for part, _ in own if isinstance(part, LowRank)]
        kernel = own[-1][1]
        base = self._oriented(path, self._originals[path].to(parameter.device))
        if kernel is not None and len(factors) == len(own):
            out = self._oriented(path, torch.empty_like(parameter))
            kernel(out, base, *joined(factors, base))
        else:
            dense = [part for part, _ in own if isinstance(part, Dense)]
            out = self._sums.of(path, base, factors, dense)
        written = out.to(parameter.dtype)
        if not bool(torch.isfinite(written).all()):
            raise DeltaError(path, f"the edited weight is not finite in {parameter.dtype}")
        self._oriented(path, parameter).copy_(written)

    def _parameter(self, path: str) -> nn.Parameter:
        try:
            return self._model.get_parameter(path)
        except AttributeError:
            raise DeltaError(path, "the model has no such parameter") from None

    def _named(self, parts: Iterable[LowRank | Dense]) -> tuple[LowRank | Dense, ...]:
        return tuple(evolve(part, weight=self._name_of(part.weight)) for part in parts)

    def _name_of(self, path: str) -> str:
        """Return the name that a parameter is kept under: the first one of a tied weight."""
        if not self._allow_tied:
            return path
        wanted = self._parameter(path)
        return next(name for name, found in self._model.named_parameters() if found is wanted)

    def _oriented(self, path: str, tensor: Tensor) -> Tensor:
        """Return a weight as (out_features, in_features); the module's type decides, never the shape."""
        conv1d = isinstance(self._model.get_submodule(path.rpartition(".")[0]), Conv1D)
        return tensor.t() if conv1d else tensor

    def _check_part(self, part: LowRank | Dense) -> None:
        parameter = self._parameter(part.weight)
        check_plain(part.weight, parameter)
        if parameter.ndim != 2:
            raise ModelError(part.weight, f"is no plain matrix ({parameter.ndim} dimensions)")
        if not self._allow_tied:
            check_untied(self._model, part.weight)
        shape = tuple(self._oriented(part.weight, parameter).shape)
        if part.shape != shape:
            raise DeltaError(
                part.weight, f"the update is {part.shape}, the weight {shape} (out, in)"
            )

    def _is_base(self, weight: str, recorded: Mapping[str, str]) -> bool:
        """Compare this original with a recorded one in the dtype of either, which comes first in both."""
        own = self.base_digests(weight)
        return any(
            own.get(kind) == recorded.get(kind, "none")
            for kind in (next(iter(own)), next(iter(recorded)))
        )

    def _as_they_are(self, entries: Iterable[_Entry]) -> dict[str, Tensor]:
        return {path: self._parameter(path).detach().clone() for path in _paths(entries)}

    def _show_again(self, values: dict[str, Tensor], entries: Sequence[_Entry]) -> None:
        """Copy weights back as they were with ``entries``; write them anew when others are in force."""
        if self._entries == entries:
            self._copy_in(values)
        else:
            self._rewrite(values)

    @torch.no_grad()
    def _copy_in(self, values: dict[str, Tensor]) -> None:
        for path, value in values.items():
            self._parameter(path).copy_(value)


def _paths(entries: Iterable[_Entry]) -> list[str]:
    return list(dict.fromkeys(part.weight for entry in entries for part in entry.parts))
