"""A scope classifier that a text encoder reads for: what it decides, keeps, and refuses."""

import shutil

import pytest
import torch
from attrs import evolve
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from kedit_core import Editor
from kedit_core.errors import KeditError
from kedit_core.testing import trained_model
from kedit_core.testing.facts import facts
from kedit_core.tokens import encode
from kedit_serac.config import ScopeTraining
from kedit_serac.shards import Source
from kedit_serac.training import Training

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_encoder(folder, seed=0):
    """Write a BERT with random weights and a tokenizer that knows the contract's words."""
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [prompt for fact in facts() for prompt in fact.prompts]
    raw.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, **{f"{one.strip('[]').lower()}_token": one for one in SPECIAL}
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory, plans, learned, edited, models):
    """Return a folder with an encoder and a checkpoint whose scope it reads for."""
    folder = tmp_path_factory.mktemp("encoded")
    write_encoder(folder / "encoder")
    model, tokenizer = trained_model("llama", cache_folder=models)
    plan = evolve(
        plans(folder / "trained", steps=2, validate=2),
        scope=ScopeTraining(encoder=str(folder / "encoder"), width=64, steps=300, lr=3e-3),
    )
    source = Source(name="facts", requests=learned)
    Training(model, tokenizer, plan, [source], judged=edited).run()
    return folder


@pytest.fixture
def editor(made, models):
    model, tokenizer = trained_model("llama", cache_folder=models)
    return Editor(model, tokenizer, "serac", {"checkpoint": str(made / "trained")})


def decided(editor, prompts, side, caplog):
    """Return the entry that a forward on padded prompts decides on for each, None for outside."""
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
    said = [one.getMessage().split(": ")[1].split(",")[0] for one in caplog.records]
    return [None if one == "outside" else int(one.removeprefix("entry ")) for one in said]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_forward_decides_what_scope_says_in_a_batch_and_alone(editor, edited, side, caplog):
    editor.edit(edited)
    prompts = [prompt for fact in facts() for prompt in fact.prompts[:2]]
    found = editor.scope(prompts)
    ids = [one.id for one in edited]
    wanted = [None if one is None else ids.index(one) for one in found.requests]
    assert wanted.count(None) > len(facts())
    assert len(set(wanted)) > len(edited) // 2
    assert decided(editor, prompts, side, caplog) == wanted
    assert [decided(editor, [one], side, caplog)[0] for one in prompts[:6]] == wanted[:6]
    assert [editor.scope([one]).requests[0] for one in prompts[:6]] == list(found.requests[:6])
    assert [editor.scope([one.prompt]).requests[0] for one in edited] == ids


def test_a_saved_memory_names_its_encoder_and_refuses_another(editor, edited, made, models):
    editor.edit(edited[:3])
    path = made / "memory.safetensors"
    editor.save(path)
    asked = [one.prompt for one in edited[:4]]
    found = editor.scope(asked)
    model, tokenizer = trained_model("llama", cache_folder=models)
    fresh = Editor(model, tokenizer, "serac")
    fresh.load(path)
    assert fresh.scope(asked).requests == found.requests
    assert torch.equal(fresh.scope(asked).probability, found.probability)
    fresh.edit(edited[3])
    assert fresh.scope(asked).requests[3] == edited[3].id
    kept = shutil.move(made / "encoder", made / "away")
    try:
        with pytest.raises(KeditError, match="is not on this machine"):
            fresh.scope(asked)
        write_encoder(made / "encoder", seed=1)
        with pytest.raises(KeditError, match="has other weights than the one"):
            Editor(*trained_model("llama", cache_folder=models), "serac").load(path)
    finally:
        shutil.rmtree(made / "encoder", ignore_errors=True)
        shutil.move(kept, made / "encoder")


def test_removing_is_exact(editor, edited):
    editor.edit(edited[:4])
    editor.remove(edited[1].id)
    (removed,) = editor.deltas
    editor.undo()
    editor.edit([edited[0], edited[2], edited[3]])
    assert editor.deltas[0].id == removed.id


def test_training_goes_on_only_with_the_same_encoder(made, plans, learned, tmp_path, models):
    model, tokenizer = trained_model("llama", cache_folder=models)
    plan = evolve(plans(tmp_path, steps=2, validate=2), start=str(made / "trained"))
    source = Source(name="facts", requests=learned)
    with pytest.raises(KeditError, match=r"say the same scope\.encoder"):
        Training(model, tokenizer, plan, [source]).run()
    nowhere = ScopeTraining(encoder=str(tmp_path / "nowhere"))
    with pytest.raises(KeditError, match="cannot be opened"):
        Training(model, tokenizer, evolve(plan, scope=nowhere), [source])
