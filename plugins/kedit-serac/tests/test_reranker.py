"""A re-ranker in force: a forward decides what scope says, and memories keep it."""

import pytest
import torch
from attrs import evolve

from kedit_core import Editor
from kedit_core.config import load_config
from kedit_core.errors import ConfigError
from kedit_core.testing import trained_model
from kedit_core.testing.facts import facts
from kedit_core.tokens import encode
from kedit_memory.members import merge
from kedit_serac.checkpoints import read
from kedit_serac.config import RerankerTraining, ScopeTraining
from kedit_serac.plans import TrainingPlan
from kedit_serac.shards import Source
from kedit_serac.training import Training

RERANKER = RerankerTraining(blocks=1, steps=150, queries=16, lr=3e-3, candidates=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory, plans, learned, edited, models):
    """Return a folder with a checkpoint that holds a re-ranker."""
    folder = tmp_path_factory.mktemp("reranked")
    model, tokenizer = trained_model("llama", cache_folder=models)
    plan = evolve(
        plans(folder, steps=2, validate=2),
        scope=ScopeTraining(width=64, steps=200, lr=3e-3, reranker=RERANKER),
    )
    source = Source(name="facts", requests=learned)
    Training(model, tokenizer, plan, [source], judged=edited).run()
    return folder


@pytest.fixture
def editor(made, models):
    model, tokenizer = trained_model("llama", cache_folder=models)
    return Editor(model, tokenizer, "serac", {"checkpoint": str(made)})


def decided(editor, prompts, side, caplog):
    """Return the entry and the probability that a forward on padded prompts finds, None for outside."""
    rows = [encode(editor.tokenizer, [prompt])[0].ids for prompt in prompts]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    both = list(zip(pads, rows, strict=True))
    ids = [[*pad, *row] if side == "left" else [*row, *pad] for pad, row in both]
    mask = [[0] * len(pad) + [1] * len(row) for pad, row in both]
    mask = mask if side == "left" else [row[::-1] for row in mask]
    caplog.clear()
    with caplog.at_level("DEBUG", logger="kedit_memory"), torch.no_grad():
        editor.model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    said = [one.getMessage().split(": ")[1].split(", p ") for one in caplog.records]
    entries = [None if one == "outside" else int(one.removeprefix("entry ")) for one, _ in said]
    return entries, [float(likely) for _, likely in said]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_forward_decides_what_scope_says_in_a_batch_and_alone(editor, edited, side, caplog):
    editor.edit(edited)
    ids = [one.id for one in edited]
    prompts = [prompt for fact in facts() for prompt in fact.prompts[:2]]
    found = editor.scope(prompts)
    wanted = [None if one is None else ids.index(one) for one in found.requests]
    assert wanted.count(None) > len(facts()) // 2
    assert len(set(wanted)) > len(edited) // 2
    entries, likely = decided(editor, prompts, side, caplog)
    assert entries == wanted
    assert likely == pytest.approx(found.probability.tolist(), abs=2e-3)
    for row in range(0, len(prompts), 9):
        assert decided(editor, [prompts[row]], side, caplog)[0] == [wanted[row]]
        alone = editor.scope([prompts[row]])
        assert alone.requests == found.requests[row : row + 1]
        torch.testing.assert_close(alone.probability, found.probability[row : row + 1])
    assert editor.scope([one.prompt for one in edited]).requests == tuple(ids)


def test_edits_come_and_go_without_a_trace(editor, edited):
    editor.edit(edited[:4])
    editor.remove(edited[1].id)
    (removed,) = editor.deltas
    editor.undo()
    one = editor.edit([edited[0], edited[2], edited[3]])
    assert one.id == removed.id
    editor.undo()
    parts = []
    for some in (edited[:1], edited[2:4]):
        parts.append(editor.edit(some))
        editor.undo()
    assert merge(parts).id == one.id


def test_a_saved_memory_decides_as_before(editor, edited, models, tmp_path):
    editor.edit(edited[:3])
    asked = [prompt for fact in facts()[:6] for prompt in fact.prompts[:2]]
    found = editor.scope(asked)
    editor.save(tmp_path / "memory.safetensors")
    fresh = Editor(*trained_model("llama", cache_folder=models), "serac")
    fresh.load(tmp_path / "memory.safetensors")
    again = fresh.scope(asked)
    assert again.requests == found.requests
    assert torch.equal(again.probability, found.probability)
    fresh.edit(edited[3])
    assert fresh.scope([edited[3].prompt]).requests == (edited[3].id,)


def test_a_threshold_set_by_hand_is_the_rerankers(made, edited, models):
    model, tokenizer = trained_model("llama", cache_folder=models)
    strict = Editor(model, tokenizer, "serac", {"checkpoint": str(made), "threshold": 1e6})
    strict.edit(edited[:3])
    asked = [fact.prompts[1] for fact in facts()[:9]] + [edited[0].prompt]
    assert strict.scope(asked).requests == (None,) * 9 + (edited[0].id,)


def test_a_checkpoint_holds_it_only_where_it_was_asked_for(made, plans):
    found = read(made)
    assert found.reranker is not None
    assert found.reranker.candidates == 4
    assert plans(made).scope.reranker is None


def test_a_plan_asks_for_it_by_name():
    plan = load_config(TrainingPlan, {"scope": {"reranker": {"steps": 7}}}, where="plan")
    assert plan.scope.reranker == RerankerTraining(steps=7)
    with pytest.raises(ConfigError, match="stepz"):
        load_config(TrainingPlan, {"scope": {"reranker": {"stepz": 7}}}, where="plan")
