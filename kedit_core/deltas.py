"""Deltas: what an edit changes, as plain data."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from attrs import Attribute, field, frozen
from torch import Tensor

from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_core.readonly import ReadOnlyDict, read_only
from kedit_core.requests import EditRequest, as_requests


def _shape(tensor: Tensor) -> str:
    return f"<{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}>"


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return "{" + ", ".join(f"{name}: {_shape(tensor)}" for name, tensor in tensors.items()) + "}"


def _bits(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, str], ...]:
    return tuple((name, digest(tensors[name])) for name in sorted(tensors))


def _json(values: Mapping[str, Any]) -> ReadOnlyDict[Any]:
    """Return ``values`` as they come back from a file, or refuse them while nothing is in force yet."""
    try:
        return read_only(json.loads(json.dumps(dict(values))))
    except (TypeError, ValueError) as error:
        raise DeltaError("settings or notes of a delta", f"are no JSON values ({error})") from None


def _named(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors by name, in the order of their names, as a file gives them back."""
    return read_only({name: tensors[name] for name in sorted(tensors)})


def _check_matrix(weight: str, name: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DeltaError(weight, f"{name} has shape {tuple(matrix.shape)}, a matrix is needed")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise DeltaError(
            weight, f"{name} is {matrix.dtype}, float32 is needed (float64 in a float64 model)"
        )
    if not bool(torch.isfinite(matrix).all()):
        raise DeltaError(weight, f"{name} holds values that are not finite")


@frozen(kw_only=True)
class LowRank:
    """An update ``left @ right`` of one weight matrix.

    Attributes:
        weight: live parameter path, for example ``model.layers.5.mlp.down_proj.weight``.
        left: (out_features, rank).
        right: (rank, in_features).
    """

    weight: str
    left: Tensor = field(eq=digest, repr=_shape)
    right: Tensor = field(eq=digest, repr=_shape)

    @left.validator
    def _is_matrix(self, _: "Attribute[Tensor]", left: Tensor) -> None:
        _check_matrix(self.weight, "left", left)

    @right.validator
    def _ranks_agree(self, _: "Attribute[Tensor]", right: Tensor) -> None:
        _check_matrix(self.weight, "right", right)
        if self.left.shape[1] != right.shape[0]:
            raise DeltaError(
                self.weight, f"left has rank {self.left.shape[1]}, right has {right.shape[0]}"
            )
        if self.left.dtype != right.dtype:
            raise DeltaError(self.weight, f"left is {self.left.dtype}, right is {right.dtype}")

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out_features, in_features)."""
        return self.left.shape[0], self.right.shape[1]


@frozen(kw_only=True)
class Dense:
    """An update of one weight matrix.

    Attributes:
        weight: live parameter path.
        update: (out_features, in_features).
    """

    weight: str
    update: Tensor = field(eq=digest, repr=_shape)

    @update.validator
    def _is_matrix(self, _: "Attribute[Tensor]", update: Tensor) -> None:
        _check_matrix(self.weight, "update", update)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out_features, in_features)."""
        return self.update.shape[0], self.update.shape[1]


@frozen(kw_only=True)
class SideMemory:
    """A memory beside a module: tensors and settings, from which ``apply_delta`` builds the module.

    Attributes:
        at: path of the module it stands beside; ``""`` is the model.
        tensors: by name and in the order of the names; the mapping is read-only.
        settings: JSON values, read-only.
    """

    at: str
    tensors: Mapping[str, Tensor] = field(eq=_bits, repr=_shapes, converter=_named)
    settings: Mapping[str, Any] = field(factory=dict, converter=_json, hash=False)


Part = LowRank | Dense | SideMemory


def update_of(weight: str, left: Tensor, right: Tensor) -> LowRank | Dense:
    """Return ``left @ right`` as factors while they are smaller than the matrix, else as the matrix.

    Args:
        weight: live parameter path.
        left: (out_features, rank).
        right: (rank, in_features).
    """
    out_features, rank = left.shape
    in_features = right.shape[1]
    if rank * (in_features + out_features) < in_features * out_features:
        return LowRank(weight=weight, left=left, right=right)
    return Dense(weight=weight, update=left @ right)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _as_parts(values: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(values)


@frozen(kw_only=True)
class Provenance:
    """Where a delta comes from. Core fills all but ``notes``.

    Attributes:
        base: per touched parameter the digests of its original, by dtype (``float32``,
            ``bfloat16``, …); of a memory those of a sample of the whole model, under ``""``.
        config: the method's configuration with everything resolved.
        chat: prompts were rendered through the chat template.
        seed: of the configuration, when it has one.
        versions: of kedit-core, the plugin, torch and transformers.
        device: type of the device that it was computed on.
        after: ids of the deltas in force when it was computed, oldest first.
        step: how many batches of the method came before.
        written: per touched parameter its digest once this delta was in the model, after those of ``after``.
        notes: what the method wants to remember, JSON values, read-only.
    """

    base: Mapping[str, Mapping[str, str]] = field(factory=dict)
    config: Mapping[str, Any] = field(factory=dict)
    chat: bool = False
    seed: int | None = None
    versions: Mapping[str, str] = field(factory=dict)
    device: str = ""
    after: tuple[str, ...] = field(default=(), converter=_names)
    step: int = 0
    written: Mapping[str, str] = field(factory=dict)
    notes: Mapping[str, Any] = field(factory=dict, converter=_json)


@frozen(kw_only=True)
class Delta:
    """What one edit, or one batch of edits, changes.

    Attributes:
        method: name of the method that computed it.
        requests: what was asked, whole but for the probes.
        parts: what to change.
        carry: what later edits of the method need from this one, never a running total; read-only.
        provenance: where it comes from.
    """

    method: str
    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    parts: tuple[Part, ...] = field(converter=_as_parts)
    carry: Mapping[str, Tensor] = field(factory=dict, eq=_bits, repr=_shapes, converter=_named)
    provenance: Provenance = field(factory=Provenance, eq=False, repr=False)

    @cached_property
    def id(self) -> str:
        """Return the delta's name: 16 hex digits of method, request ids, parts and carry."""
        requests = [request.id for request in self.requests]
        parts = [list(_part_bits(part)) for part in self.parts]
        named = [self.method, requests, parts, _bits(self.carry)]
        return blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=8).hexdigest()

    def weights(self) -> Iterator[LowRank | Dense]:
        """Return the parts that change weight matrices."""
        return (part for part in self.parts if not isinstance(part, SideMemory))


def _part_bits(part: Part) -> Iterator[Any]:
    match part:
        case LowRank():
            yield from ("low-rank", part.weight, digest(part.left), digest(part.right))
        case Dense():
            yield from ("dense", part.weight, digest(part.update))
        case SideMemory():
            yield from ("side-memory", part.at, _bits(part.tensors), part.settings)
