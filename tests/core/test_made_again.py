"""What a method noted comes back to it when just that edit is made again, and its warnings are logged."""

import logging
from types import ModuleType

import pytest
import torch
from attrs import frozen

from kedit_core import Delta, Dense, EditBatch, MethodInfo, Provenance, hookimpl


@frozen
class NoSettings:
    """Settings of a method that has none."""


@pytest.fixture
def noting(plugins):
    """Return a method that notes how often it was called, and remembers what it was told."""
    module = ModuleType("noting")
    module.told = []

    @hookimpl
    def method_info():
        return MethodInfo(
            name="noting", summary="fake", kind="weights", batched=True, config=NoSettings
        )

    @hookimpl
    def compute_delta(batch, weights):
        module.told.append(batch.notes)
        down = weights.layout.down_of(0)
        update = torch.full((down.out_features, down.in_features), 1e-3 * len(batch.requests))
        notes = {"call": len(module.told), "lots": [[2, 1]]}
        if any(request.target_new == "Riga" for request in batch.requests):
            notes["warnings"] = ["Riga is far away", "and it is cold there"]
        return Delta(
            method="noting",
            requests=batch.requests,
            parts=[Dense(weight=down.weight, update=update)],
            provenance=Provenance(notes=notes),
        )

    module.method_info, module.compute_delta = method_info, compute_delta
    plugins.register(module)
    return module


def test_a_new_edit_comes_without_notes(edit_with, noting, facts):
    edit_with("noting").edit(facts(2))
    assert noting.told == [{}]


def test_an_edit_that_is_made_again_comes_with_its_own_notes(edit_with, noting, facts):
    editor = edit_with("noting")
    first = editor.edit(facts(2))
    editor.edit(facts(3, start=2))
    editor.undo(first.id, recompute=True)
    assert noting.told[2] == {"call": 2, "lots": [[2, 1]]}
    assert [delta.provenance.notes["call"] for delta in editor.deltas] == [3]


def test_notes_of_a_batch_say_nothing_of_fewer_requests(edit_with, noting, facts):
    editor = edit_with("noting")
    delta = editor.edit(facts(3))
    editor.remove(delta.requests[0].id)
    assert noting.told == [{}, {}]


def test_notes_cannot_be_written_to():
    batch = EditBatch(requests=(), notes={"lots": [[1, 2]]})
    with pytest.raises(TypeError, match="read-only"):
        batch.notes["lots"][0][0] = 7
    with pytest.raises(TypeError, match="read-only"):
        batch.notes["more"] = 1


def test_what_a_method_warns_of_in_its_notes_is_logged_when_it_computed(
    edit_with, noting, facts, caplog
):
    editor = edit_with("noting")
    with caplog.at_level(logging.WARNING):
        editor.edit(facts(2))
        assert not caplog.messages
        editor.edit(facts(1, start=7))  # Riga
    assert caplog.messages == ["noting: Riga is far away", "noting: and it is cold there"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        editor.undo()
    assert not caplog.messages
