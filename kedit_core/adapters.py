"""Adapters: the updates of a model as one pair of factors per module, as PEFT and model servers read them.

Runtimes disagree on how they scale an adapter whose modules have ranks of their own: PEFT knows
patterns, vLLM drops them without a word, llama.cpp goes by the tensors. All agree when every module
has one rank r and ``lora_alpha`` is r. So each pair is padded with zeros to a common rank.

PEFT merges ``W += B @ A`` in float32, the sum that wrote the edited model. Zeros add nothing, but they move
the places where a matrix library breaks a long product into blocks (MKL on an AMD EPYC sums 256 ranks as
128 + 128, and 512 as 192 + 192 + 128), and so the last bits. Where zeros at the end do that, they go
between two blocks instead. Some processors leave no place for them between ranks far apart (an Intel Xeon,
320 among 512); the elements that then differ in their last bit are counted.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_core.deltas import Dense, LowRank
from kedit_core.errors import ExportError
from kedit_core.sums import EXPORT_RANKS, joined
from kedit_core.weights import Weights

Parts = Sequence[LowRank | Dense]
Updates = Mapping[str, Parts]
"""What is in force on each weight, oldest first, by parameter path."""

_STEP = 32  # blocks of matrix libraries begin at multiples of it
_SAMPLE = 64  # rows that show quickly whether two products differ
_INSTEAD = "export a merged checkpoint instead"
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # in which 0.0 and -0.0 differ


@frozen(kw_only=True, eq=False)
class Pair:
    """The factors of one module.

    Attributes:
        module: its path.
        left: (out_features, rank), PEFT's ``lora_B``.
        right: (rank, in_features), PEFT's ``lora_A``.
        error: ‖update - left @ right‖ / ‖update‖ (Frobenius) of a truncated update, 0 of a whole one.
        differing: elements of the weight that are not the edited model's once PEFT has merged the pair.
    """

    module: str
    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    error: float
    differing: int


def check_modules(model: nn.Module, updates: Updates) -> None:
    """See that an adapter can hold updates of these weights.

    Raises:
        ExportError: a weight is tied, or is none of a linear map, or the model has stacked experts.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    stacked = next((name for name, found in named if _is_of_experts(model, name, found)), None)
    if stacked is not None:
        # deepseek_v3: PEFT 0.21 takes mlp.down_proj for the experts', whatever layer the path names.
        raise ExportError(
            stacked,
            f"holds stacked experts, in whose models PEFT redirects adapters; {_INSTEAD}",
        )
    for path in updates:
        parameter, module = model.get_parameter(path), model.get_submodule(_module_of(path))
        uses = [name for name, found in named if found is parameter]
        if len(uses) > 1:
            raise ExportError(
                path,
                f"is tied ({', '.join(uses)}), and an adapter would change one use only; {_INSTEAD}",
            )
        if not isinstance(module, nn.Linear | Conv1D) or module.weight is not parameter:
            raise ExportError(
                path,
                f"belongs to a module of type {type(module).__name__}, and adapters are for linear "
                f"maps; {_INSTEAD}",
            )


def _is_of_experts(model: nn.Module, path: str, parameter: Tensor) -> bool:
    return parameter.ndim == 3 and not isinstance(model.get_submodule(_module_of(path)), nn.Conv1d)


def rank_for(updates: Updates, wanted: int | None) -> int:
    """Return the rank of an adapter: the one wanted, else the smallest that holds all updates whole.

    Raises:
        ExportError: no runtime accepts the rank, or no rank holds the updates whole.
    """
    if wanted is not None:
        if type(wanted) is not int or wanted not in EXPORT_RANKS:
            known = ", ".join(map(str, EXPORT_RANKS))
            raise ExportError(f"rank {wanted}", f"runtimes accept {known}; choose one of them")
        return wanted
    most = EXPORT_RANKS[-1]
    instead = f"give a rank to truncate it to (--rank 64), or {_INSTEAD}"
    for path, parts in updates.items():
        if any(isinstance(part, Dense) for part in parts):
            raise ExportError(path, f"has a dense update, which is no adapter; {instead}")
        if _ranks(parts) > most:
            raise ExportError(
                path,
                f"has updates of rank {_ranks(parts)} together, adapters end at {most}; {instead}",
            )
    return _next_rank(max(map(_ranks, updates.values())))


def pair_of(model: nn.Module, weights: Weights, path: str, parts: Parts, rank: int) -> Pair:
    """Return the factors of everything in force on one weight, at one rank.

    Args:
        model: the edited model.
        weights: of that model.
        path: of the weight.
        parts: in force on it, oldest first.
        rank: of the adapter; what does not fit is truncated by a singular value decomposition.
    """
    live = weights.matrix(path)  # (out_features, in_features), as base
    base = weights.base_of(path).to(live.device)
    if isinstance(model.get_submodule(_module_of(path)), Conv1D):
        base = base.t()
    merge, error = _Merge(base, live), 0.0
    factors = [part for part in parts if isinstance(part, LowRank)]
    if len(factors) == len(parts) and _ranks(parts) <= rank:
        left, right = _placed(*joined(factors, base), rank, merge)
    else:
        left, right, error = _truncated(parts, base, rank)
    return Pair(
        module=_module_of(path),
        left=left,
        right=right,
        error=error,
        differing=merge.differing(left, right),
    )


def save_adapter(pairs: Sequence[Pair], model: nn.Module, folder: Path) -> None:
    """Write the two files of a PEFT adapter.

    Args:
        pairs: all of one rank.
        model: that they are for.
        folder: exists already.
    """
    tensors = {}
    for pair in pairs:
        name = f"base_model.model.{pair.module}"
        tensors[f"{name}.lora_A.weight"] = pair.right.cpu().contiguous()
        tensors[f"{name}.lora_B.weight"] = pair.left.cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = pairs[0].left.shape[1]
    modules = [pair.module for pair in pairs]
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(model, "name_or_path", "") or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "target_modules": _targets(model, modules),
        "fan_in_fan_out": any(isinstance(model.get_submodule(one), Conv1D) for one in modules),
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


class _Merge:
    """PEFT's merge of one module, compared with the edited weight."""

    def __init__(self, base: Tensor, live: Tensor) -> None:
        """Compare with ``live``, the edited form of ``base``, both (out_features, in_features)."""
        self._base, self._live = base, live

    def differing(self, left: Tensor, right: Tensor, rows: int | None = None) -> int:
        """Return in how many elements they differ, in the first ``rows`` only if given."""
        merged = self._base[:rows].clone()
        merged += left[:rows] @ right
        kind = _BITS[merged.element_size()]
        return int((merged.view(kind) != self._live[:rows].view(kind)).sum())


def _targets(model: nn.Module, modules: list[str]) -> list[str] | str:
    """Return the target modules: full paths, or a pattern where PEFT would find them elsewhere too.

    PEFT takes a path in a list for the end of a path.
    """
    ends = tuple(f".{one}" for one in modules)
    if any(name.endswith(ends) for name, _ in model.named_modules() if name not in modules):
        return "|".join(map(re.escape, modules))
    return modules


def _truncated(parts: Parts, base: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best factors of some rank for a sum of updates, and the relative error that is left."""
    total = torch.zeros(parts[0].shape, dtype=torch.float64)  # (out_features, in_features)
    for part in parts:
        if isinstance(part, LowRank):
            total += part.left.cpu().double() @ part.right.cpu().double()
        else:
            total += part.update.cpu().double()
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    root = s[:rank].sqrt()
    kind = torch.float64 if base.dtype == torch.float64 else torch.float32
    left, right = (u[:, :rank] * root).to(kind), (root[:, None] * v[:rank]).to(kind)
    size = float(total.norm())
    error = float((total - left.double() @ right.double()).norm()) / size if size else 0.0
    kept = torch.arange(left.shape[1], device=base.device)
    return *_at(kept, left.to(base.device), right.to(base.device), rank), error


def _placed(left: Tensor, right: Tensor, rank: int, merge: _Merge) -> tuple[Tensor, Tensor]:
    """Return factors with zeros up to a rank, put where they leave the bits of the product alone."""
    ranks = torch.arange(left.shape[1], device=left.device)
    own = _next_rank(left.shape[1])  # the rank that the edited weight was computed with
    plain = _at(ranks, left, right, rank)
    if own == rank or not merge.differing(*plain):
        return plain
    for gap, width in _gaps(own, rank):
        spread = _at(ranks + width * (ranks >= gap), left, right, rank)
        if not merge.differing(*spread, _SAMPLE) and not merge.differing(*spread):
            return spread
    return plain


def _gaps(own: int, rank: int) -> Iterator[tuple[int, int]]:
    """Yield before which of ``own`` ranks zeros may be put, and how many."""
    for gap in range(_STEP, own, _STEP):
        for width in range(_STEP, rank - own + 1, _STEP):
            yield gap, width


def _at(places: Tensor, left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of some rank with the given ones at ``places`` and zeros elsewhere."""
    wide, tall = left.new_zeros(left.shape[0], rank), right.new_zeros(rank, right.shape[1])
    wide[:, places], tall[places] = left, right
    return wide, tall


def _next_rank(rank: int) -> int:
    return next(size for size in EXPORT_RANKS if size >= rank)


def _ranks(parts: Parts) -> int:
    return sum(part.left.shape[1] for part in parts if isinstance(part, LowRank))


def _module_of(path: str) -> str:
    return path.rpartition(".")[0]
