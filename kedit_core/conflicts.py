"""Conflicts: requests that cannot all hold, found before the first edit.

Two requests ask the same question when their prompts are equal but for case, blanks, the form of
their characters and the punctuation at the end, or when one lists the other's prompt as a
paraphrase. Requests that share a paraphrase, or are linked through a third one, are one question
too. Nothing fuzzier counts.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

from attrs import field, frozen

from kedit_core.errors import ConfigError, ConflictError
from kedit_core.readonly import read_only
from kedit_core.requests import EditRequest, as_requests

Policy = Literal["error", "first", "last", "newest"]
Kind = Literal["duplicate", "contradiction", "reversal"]

_ENDS = " .,:;!?\u00b7\u3001\u3002\u0589\u060c\u061b\u061f\u06d4\u0964\u0965\u1362"
"""What may end a sentence, in many scripts. Other punctuation may be part of a name: C# is not C."""


@frozen(kw_only=True)
class Decision:
    """How one conflict was settled.

    Attributes:
        kind: ``duplicate`` (the same edit again), ``contradiction`` (another target for the same question) or
            ``reversal`` (the later asks for what the earlier one replaced).
        request: id of the later request.
        other: id of the earlier one, in force or asked for.
        kept: id of the one that holds in the end; empty where nothing was settled (policy ``error``).
        why: the sentence that a person reads.
    """

    kind: Kind
    request: str
    other: str
    kept: str
    why: str


def _decisions(values: Iterable[Decision]) -> tuple[Decision, ...]:
    return tuple(values)


def _read_only(values: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return read_only(values)


@frozen(kw_only=True)
class Settled:
    """What is left to do once all conflicts are settled.

    Attributes:
        requests: to make, in the order in which they were asked for.
        take_out: by the id of one of them, the ids in force to take out before it is made; read-only.
            Under ``newest`` all that it conflicts with, under ``last`` only the very same request where
            a later edit lies above it.
        decisions: one for every conflict, in the order of the later requests.
    """

    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    take_out: Mapping[str, tuple[str, ...]] = field(factory=dict, converter=_read_only, hash=False)
    decisions: tuple[Decision, ...] = field(default=(), converter=_decisions)


def settled(
    requests: Sequence[EditRequest], in_force: Sequence[EditRequest], policy: Policy
) -> Settled:
    """Return the requests that are left to make when every question has one answer.

    Of requests on one question, ``first`` keeps the first and ``last`` the last. An edit in force
    counts as the earliest: under ``first`` it stays and the new one is dropped, under ``last`` the new
    one is made on top of it, under ``newest`` it is taken out first. What says the same as the edit in
    force is never made again.

    Args:
        requests: asked for, in order.
        in_force: of the edits in the model, oldest first; they list no paraphrases.
        policy: what to do about conflicts.

    Raises:
        ConflictError: there is a conflict, and the policy is ``error``.
        ConfigError: there is no such policy.
    """
    if policy not in get_args(Policy):
        known = ", ".join(map(repr, get_args(Policy)))
        raise ConfigError("conflicts", [f"the policies are {known}, not {policy!r}"])
    everyone = [
        _Asked(place=place, request=request, held=place < len(in_force))
        for place, request in enumerate([*in_force, *requests])
    ]
    outcomes = [_outcome(same, policy) for same in _same_questions(everyone)]
    found = [conflict for outcome in outcomes for conflict in outcome.conflicts]
    found.sort(key=lambda one: (one.later.place, one.earlier.place))
    decisions = [conflict.decision(policy) for conflict in found]
    if decisions and policy == "error":
        raise ConflictError(decisions)
    dropped = {one.place for outcome in outcomes for one in outcome.dropped}
    return Settled(
        requests=[one.request for one in everyone if not one.held and one.place not in dropped],
        take_out={one.kept.request.id: one.take_out for one in outcomes if one.take_out},
        decisions=decisions,
    )


def normalised(text: str) -> str:
    """Return a text as it is compared: case, blanks, forms of characters and ends of sentences do not count."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(plain.split())
    return words.rstrip(_ENDS) or words


@frozen(kw_only=True)
class _Asked:
    """A request, in force or asked for, and its place among all of them."""

    place: int
    request: EditRequest
    held: bool

    @property
    def target(self) -> str:
        return normalised(self.request.target_new)


@frozen(kw_only=True)
class _Conflict:
    """Two requests on one question, and the one that holds in the end."""

    later: _Asked
    earlier: _Asked
    kept: _Asked

    @property
    def kind(self) -> Kind:
        if self.later.target == self.earlier.target:
            return "duplicate"
        replaced = self.earlier.request.target_true
        back = replaced is not None and normalised(replaced) == self.later.target
        return "reversal" if back else "contradiction"

    def decision(self, policy: Policy) -> Decision:
        unsettled = policy == "error"
        return Decision(
            kind=self.kind,
            request=self.later.request.id,
            other=self.earlier.request.id,
            kept="" if unsettled else self.kept.request.id,
            why=self._what() if unsettled else f"{self._what()}; {self._how(policy)}",
        )

    def _what(self) -> str:
        """Say what is wrong."""
        new, old = self.later.request, self.earlier.request
        asked = repr(new.prompt)
        if normalised(new.prompt) != normalised(old.prompt):
            asked += f" (a paraphrase of {old.prompt!r})"
        before = "an edit in force" if self.earlier.held else "an earlier request"
        if self.kind == "duplicate":
            return f"{asked} is to be answered {new.target_new!r}, as {before} has it already"
        if self.kind == "reversal":
            return (
                f"{asked} is to be answered {new.target_new!r} again, which {before} replaced by "
                f"{old.target_new!r}"
            )
        return f"{asked} is to be answered {new.target_new!r}, and {before} has {old.target_new!r}"

    def _how(self, policy: Policy) -> str:
        """Say what is done about it."""
        if self.kept.held:
            return "the edit in force stays, and nothing is made"
        if self.kept == self.earlier:
            return "only the earlier one is made"
        last = "the later one is made" if self.kept == self.later else "one still later is made"
        if not self.earlier.held:
            return last
        taken_out = policy == "newest" or self.earlier.request.id == self.kept.request.id
        return f"{last}, and the edit in force {'is taken out' if taken_out else 'stays below it'}"


@frozen(kw_only=True)
class _Outcome:
    """What becomes of all that is asked on one question."""

    kept: _Asked
    dropped: Sequence[_Asked]
    conflicts: Sequence[_Conflict]
    take_out: tuple[str, ...] = ()


def _outcome(same: Sequence[_Asked], policy: Policy) -> _Outcome:
    """Settle one question; ``same`` asks it, oldest first."""
    held, new = [one for one in same if one.held], [one for one in same if not one.held]
    if policy in ("error", "first"):
        kept = [*held[-1:], *new][0]
        pairs = [(kept, one) for one in new if one != kept]
    else:
        kept = new[-1]
        pairs = list(pairwise([*held[-1:], *new]))
        if held and held[-1].target == kept.target:  # however it got there, it says so already
            kept = held[-1]
            pairs += [(kept, new[-1])] if len(new) > 1 else []
    below = [] if kept.held or policy in ("error", "first") else held
    if policy == "last":
        below = [one for one in below if one.request.id == kept.request.id]
    pairs += [(one, kept) for one in below if one != held[-1]]
    return _Outcome(
        kept=kept,
        dropped=[one for one in new if one != kept],
        conflicts=[_Conflict(earlier=old, later=late, kept=kept) for old, late in pairs],
        take_out=tuple(one.request.id for one in below),
    )


def _same_questions(everyone: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Yield the requests of every question that a new one shares with others, in order."""
    wordings = _Wordings()
    for one in everyone:
        for text in one.request.paraphrases:
            wordings.unite(normalised(one.request.prompt), normalised(text))
    groups: dict[str, list[_Asked]] = {}
    for one in everyone:
        groups.setdefault(wordings.question_of(normalised(one.request.prompt)), []).append(one)
    for same in groups.values():
        if len(same) > 1 and not same[-1].held:
            yield same


class _Wordings:
    """Which texts word the same question, as a forest: each points towards the one that names it."""

    def __init__(self) -> None:
        self._towards: dict[str, str] = {}

    def question_of(self, text: str) -> str:
        above = self._towards.get(text, text)
        while above != text:
            further = self._towards.get(above, above)
            self._towards[text] = further  # halves the way for whoever comes next
            text, above = further, self._towards.get(further, further)
        return text

    def unite(self, one: str, other: str) -> None:
        self._towards[self.question_of(other)] = self.question_of(one)
