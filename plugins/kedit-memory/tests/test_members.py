"""The edits of a memory: added by appending, taken out as if they had never been there, merged."""

import pytest
import torch
from attrs import evolve

from kedit_core import Delta, EditRequest, SideMemory
from kedit_core.errors import DeltaError
from kedit_memory.members import Members, members_of, memory_of, merge, shared_of

REQUESTS = [
    EditRequest(prompt=f"The capital of {one} is", target_new="Lima")
    for one in ("Norway", "Peru", "Cuba")
]


def delta(*places, method="toy", **shared):
    rows = {"edits.key": torch.tensor([[float(n), 1.0] for n in places])}
    tensors = {"map": torch.eye(2), **shared, **rows}
    part = SideMemory(at="", tensors=tensors, settings={"threshold": 0.5})
    return Delta(method=method, requests=[REQUESTS[n] for n in places], parts=[part])


def test_an_edit_that_is_taken_out_was_never_there():
    left = members_of(delta(0, 1, 2)).without([REQUESTS[1].id])
    never = members_of(delta(0, 2))
    assert left.ids == never.ids
    assert torch.equal(left.rows["key"], never.rows["key"])


def test_edits_are_appended_and_come_once():
    both = members_of(delta(0, 1)).plus(members_of(delta(1, 2)))
    assert both.ids == tuple(one.id for one in REQUESTS)
    assert torch.equal(both.rows["key"], members_of(delta(0, 1, 2)).rows["key"])
    empty = Members(requests=(), rows={})
    assert empty.plus(members_of(delta(1))).ids == (REQUESTS[1].id,)


def test_merged_memories_are_the_memory_of_all_edits():
    assert merge([delta(0), delta(1, 2)]).id == delta(0, 1, 2).id


@pytest.mark.parametrize(
    "other",
    [delta(1, method="other"), delta(1, map=2 * torch.eye(2)), delta(1, more=torch.ones(1))],
)
def test_memories_of_different_making_are_not_merged(other):
    with pytest.raises(DeltaError, match="differ in more than the edits"):
        merge([delta(0), other])


def test_what_belongs_to_no_edit_is_told_apart():
    assert list(shared_of(delta(0))) == ["map"]


def test_rows_that_belong_to_no_request_are_refused():
    broken = evolve(delta(0, 1), requests=REQUESTS[:1])
    with pytest.raises(DeltaError, match="2 rows for 1 requests"):
        members_of(broken)
    with pytest.raises(DeltaError, match="no side memory"):
        memory_of(evolve(broken, parts=[]))
