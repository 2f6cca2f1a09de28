"""The work that each operator of kedit-locate has to do for a shape of model, to be timed."""

from collections.abc import Iterator

import torch
from attrs import frozen
from random_models import PREFIX_TOKENS, Shape
from torch.library import CustomOpDef

from kedit_locate.injection_kernels import two_site_inject
from kedit_locate.kernels import adam_clamp_step, syrk_accumulate
from kedit_locate.writing_kernels import low_rank_write

RANKS = 100  # of an update: a hundred edits
TOKENS = 6  # from a subject's last one on


@frozen(kw_only=True)
class Work:
    """One operator at one size.

    Attributes:
        name: with the size.
        operator: what is called.
        given: its arguments.
        bytes: that it has to read and write at least.
        flops: that it has to make at least.
        dtype: that they are made in.
    """

    name: str
    operator: CustomOpDef
    given: tuple[object, ...]
    bytes: float
    flops: float
    dtype: torch.dtype


def works_of(shape: Shape, device: str) -> Iterator[Work]:
    """Yield the work of every operator, one at a time: all of them together may be too large."""
    for make in (_sum_work, _step_work, _write_work, _inject_work):
        yield from make(shape, device)


def name_of(dtype: torch.dtype) -> str:
    """Return what a dtype is called in a table."""
    return str(dtype).removeprefix("torch.")


def _sum_work(shape: Shape, device: str) -> Iterator[Work]:
    _, inner = _widths(shape)
    rows = shape.rows
    keep = torch.arange(rows, device=device) % 10 > 0
    kept = int(keep.sum())
    total = torch.zeros(inner, inner, device=device, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        yield Work(
            name=f"syrk_accumulate, {rows} x {inner}, {name_of(dtype)}",
            operator=syrk_accumulate,
            given=(total, x, keep),
            bytes=kept * inner * x.itemsize + inner**2 * total.itemsize,
            flops=kept * inner**2,
            dtype=dtype,
        )


def _step_work(shape: Shape, device: str) -> Iterator[Work]:
    (width, _), edits = _widths(shape), max(shape.together)
    state = [torch.zeros(edits, width, device=device) for _ in range(3)]
    slope, ones = torch.randn_like(state[0]), torch.ones_like(state[0][:, 0])
    yield Work(
        name=f"adam_clamp_step, {edits} x {width}",
        operator=adam_clamp_step,
        given=(*state, slope, ones.bool(), ones, 0.5, 1),
        bytes=7 * slope.nbytes,
        flops=0,
        dtype=torch.float32,
    )


def _write_work(shape: Shape, device: str) -> Iterator[Work]:
    width, inner = _widths(shape)
    left = torch.randn(width, RANKS, device=device)
    right = torch.randn(RANKS, inner, device=device)
    base = torch.randn(width, inner, device=device).bfloat16()
    for name, one in (("Linear", base), ("Conv1D", base.t().contiguous().t())):
        yield Work(
            name=f"low_rank_write, {width} x {inner}, rank {RANKS}, {name}",
            operator=low_rank_write,
            given=(torch.empty_like(one), one, left, right),
            bytes=2 * base.nbytes + left.nbytes + right.nbytes,
            flops=2 * base.numel() * RANKS,
            dtype=torch.float32,
        )


def _inject_work(shape: Shape, device: str) -> Iterator[Work]:
    (width, _), edits = _widths(shape), max(shape.together)
    hidden = torch.randn(edits * len(PREFIX_TOKENS), TOKENS, width, device=device).bfloat16()
    shift = torch.randn(edits, width, device=device)
    rows = torch.arange(edits, device=device).repeat_interleave(len(PREFIX_TOKENS))
    yield Work(
        name=f"two_site_inject, {len(hidden)} x {TOKENS} x {width}",
        operator=two_site_inject,
        given=(hidden, hidden.clone(), shift, shift.clone(), rows, torch.zeros_like(rows)),
        bytes=4 * hidden.nbytes + 2 * shift.nbytes,
        flops=0,
        dtype=torch.float32,
    )


def _widths(shape: Shape) -> tuple[int, int]:
    """Return the widths of the model and of its MLPs."""
    width = shape.config.hidden_size
    return width, getattr(shape.config, "intermediate_size", None) or 4 * width
