"""Rows of many edits, cut into parts that each share a forward."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from kedit_core.reading import reach_past_pads
from kedit_locate.rows import EditRows, Row
from kedit_locate.saying import exact
from kedit_locate.suffix import Suffix, read_suffix, rows_of

_FORWARD = 48
"""A forward of its own for shorter rows pays when it saves more tokens than this."""


@frozen(kw_only=True)
class Part:
    """Rows from their lookup token on, and what they say of their edits.

    Attributes:
        suffix: the rows.
        at: place of the lookup token in them: the first, but in whole rows.
        edit: (rows,) which edit a row belongs to.
        bare: (bare prompts,) rows that are the bare prompt of an edit.
        anchor: (anchors,) rows whose lookup token is the anchor of an edit.
        row: (targets,) row of each target token.
        place: (targets,) place in the suffix where it is predicted.
        target: (targets,) its id.
        share: (targets,) weight of its NLL in its edit's loss.
        apart: other rows were kept out because of their length: pads would change what the model says.
    """

    suffix: Suffix
    at: int
    edit: Tensor
    bare: Tensor
    anchor: Tensor
    row: Tensor
    place: Tensor
    target: Tensor
    share: Tensor
    apart: bool

    @property
    def picked(self) -> tuple[Tensor, Tensor]:
        """Return row and place of every token whose logits are needed: the targets', then the anchors'."""
        rows, places = self.anchors
        return torch.cat([self.row, rows]), torch.cat([self.place, places])

    @property
    def anchors(self) -> tuple[Tensor, Tensor]:
        """Return row and place of every anchor."""
        return self.anchor, torch.full_like(self.anchor, self.at)

    def adding(self, shift: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what adds each edit's shift to hidden states at the lookup token of its rows.

        Args:
            shift: (requests, width).
        """

        def shifted(hidden: Tensor) -> Tensor:
            flat = self._by_row(hidden)
            before, here, after = torch.split(
                flat, [self.at, 1, flat.shape[1] - self.at - 1], dim=1
            )
            here = here + shift[self.edit, None].to(flat.dtype)
            return torch.cat([before, here, after], dim=1).reshape(hidden.shape)

        return shifted

    def looked_up(self, hidden: Tensor) -> Tensor:
        """Return hidden states at the lookup tokens, (rows, width).

        Args:
            hidden: what a module writes; some families flatten rows and tokens.
        """
        return self._by_row(hidden)[:, self.at]

    def on(self, suffix: Suffix) -> "Part":
        """Return the same part of the same rows, read otherwise.

        Args:
            suffix: the rows.
        """
        return evolve(self, suffix=suffix)

    def only(self, active: Tensor) -> "Part | None":
        """Return the rows of some edits; None when there is none of them.

        Args:
            active: (requests,) which edits.
        """
        kept = active[self.edit].nonzero()[:, 0]
        if len(kept) == len(self.edit):
            return self
        if not len(kept):
            return None
        moved = torch.full_like(self.edit, -1)  # (rows,) where each row is then
        moved[kept] = torch.arange(len(kept), device=kept.device)
        bare, anchor = moved[self.bare], moved[self.anchor]
        targets = moved[self.row] >= 0
        return evolve(
            self,
            suffix=rows_of(self.suffix, kept),
            edit=self.edit[kept],
            bare=bare[bare >= 0],
            anchor=anchor[anchor >= 0],
            row=moved[self.row[targets]],
            place=self.place[targets],
            target=self.target[targets],
            share=self.share[targets],
        )

    def _by_row(self, hidden: Tensor) -> Tensor:
        return hidden.reshape(*self.suffix.ids.shape, -1)


@frozen(kw_only=True)
class _Weighed:
    """One row of one edit.

    Attributes:
        row: the row.
        edit: which edit it belongs to.
        before: tokens before the lookup token of the edit's bare prompt.
        share: of the edit's loss that its target makes up.
        bare: it is the edit's bare prompt.
        anchor: its lookup token is the edit's anchor.
    """

    row: Row
    edit: int
    before: int
    share: float
    bare: bool = False
    anchor: bool = False

    @property
    def tokens(self) -> int:
        """Return how many tokens its suffix has."""
        return len(self.row.ids) - self.row.lookup


def read_parts(model: nn.Module, edits: Sequence[EditRows], most: int) -> list[Part]:
    """Read what stands before the lookup tokens of all rows and return their suffixes.

    Rows of much different lengths are kept in parts of their own, rather than padded.

    Args:
        model: in ``eval`` mode.
        edits: rows of each edit.
        most: rows in a part.
    """
    rows = [row for number, edit in enumerate(edits) for row in _weighed(number, edit)]
    longest = max(one.row.lookup for one in rows) + max(one.tokens for one in rows)
    if longest > reach_past_pads(model):
        return _read_apart(model, rows, most)
    return [part for some in _of_like_length(rows, most) for part in _read(model, some, most)]


def _weighed(number: int, edit: EditRows) -> list[_Weighed]:
    """Return each different row once with its share of the edit's loss.

    A model that repeats itself gives equal prefixes; reading them once is the same sum. Where a prompt
    begins with the subject, its bare row reads the same as the anchor up to there, and stands for it.
    """
    counts = Counter(edit.rewrites)
    before = edit.rewrites[0].lookup
    found = [
        _Weighed(
            row=row,
            edit=number,
            before=before,
            share=count / len(edit.rewrites),
            bare=not place,
            anchor=not place and row.prompt == edit.anchor.ids,
        )
        for place, (row, count) in enumerate(counts.items())
    ]
    if found[0].anchor:
        return found
    anchor = _Weighed(row=edit.anchor, edit=number, before=before, share=0.0, anchor=True)
    return [*found, anchor]


def _of_like_length(rows: Sequence[_Weighed], most: int) -> list[list[_Weighed]]:
    """Cut rows into parts such that pads and forwards together cost least.

    Rows alike after the lookup token are ordered by what their prompts have before it: what stands
    before a prompt is read once for all.
    """
    ordered = sorted(rows, key=lambda one: (one.tokens, one.before))
    ends = [n for n in range(1, len(ordered)) if ordered[n].tokens > ordered[n - 1].tokens]
    ends = [0, *ends, len(ordered)]
    costs, cuts = [0], [0]  # of the rows up to each end: the least cost, and the last cut for it
    for end in ends[1:]:
        each = ordered[end - 1].tokens
        options = [
            cost + _FORWARD + (end - start) * each for start, cost in zip(ends, costs, strict=False)
        ]
        costs.append(min(options))
        cuts.append(options.index(costs[-1]))
    found: list[list[_Weighed]] = []
    last = len(ends) - 1
    while last:
        some = ordered[ends[cuts[last]] : ends[last]]
        pieces = -(-len(some) // most)
        bounds = [len(some) * piece // pieces for piece in range(pieces + 1)]
        found[:0] = [some[start:end] for start, end in pairwise(bounds)]
        last = cuts[last]
    return found


def _read_apart(model: nn.Module, weighed: Sequence[_Weighed], most: int) -> list[Part]:
    lookups = sorted({one.row.lookup for one in weighed})
    groups = [[one for one in weighed if one.row.lookup == lookup] for lookup in lookups]
    cut = [some for group in groups for some in _of_like_length(group, most)]
    parts = [part for some in cut for part in _read(model, some, most)]
    return [evolve(part, apart=len(lookups) > 1) for part in parts]


def _read(model: nn.Module, weighed: Sequence[_Weighed], most: int) -> list[Part]:
    lookups = [one.row.lookup for one in weighed]
    suffix = read_suffix(model, [one.row.ids for one in weighed], lookups)
    at, *others = {lookup - start for lookup, start in zip(lookups, suffix.starts, strict=True)}
    if others:  # whole rows: a shift has one place in a forward
        return _read_apart(model, weighed, most)
    row, place, target, share = _targets(weighed, at)
    device = suffix.ids.device

    def numbers(found: Sequence[int]) -> Tensor:
        return torch.tensor(found, device=device, dtype=torch.long)

    part = Part(
        suffix=suffix,
        at=at,
        edit=numbers([one.edit for one in weighed]),
        bare=numbers([number for number, one in enumerate(weighed) if one.bare]),
        anchor=numbers([number for number, one in enumerate(weighed) if one.anchor]),
        row=numbers(row),
        place=numbers(place),
        target=numbers(target),
        share=torch.tensor(share, dtype=exact(next(model.parameters()).dtype), device=device),
        apart=False,
    )
    return [part]


def _targets(
    weighed: Sequence[_Weighed], at: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Return for every target token its row, its place in the suffix, its id and its share of the loss."""
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    for number, one in enumerate(weighed):
        row = one.row
        first = at + len(row.ids) - len(row.target) - row.lookup
        rows += [number] * len(row.target)
        places += range(first, first + len(row.target))
        targets += row.target
        shares += [one.share / max(len(row.target), 1)] * len(row.target)
    return rows, places, targets, shares
