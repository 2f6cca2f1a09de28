"""Text encoders: what they make of a text whatever stands beside it, and that another one is noticed."""

import json

import pytest
import torch
from attrs import evolve
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from kedit_core.errors import KeditError, ModelError
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_core.tokens import encode
from kedit_memory.encoders import described, encoder_from, opened
from kedit_memory.pooling import Sites
from kedit_memory.readers import reader_of
from kedit_memory.routing import Routing

TEXTS = [
    "The capital of Peru is",
    "Mali",
    "Where lies the capital of Chile? It is called",
    "The capital of Peru is",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LONGEST = 24


def word_tokenizer(texts):
    """Return a WordPiece tokenizer that was trained on texts."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def write(folder, kind=BertModel, seed=0, tokenizer=None):
    """Write an encoder with random weights into a folder."""
    tokenizer = tokenizer or word_tokenizer(TEXTS)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LONGEST,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "encoder")


def alone(folder, text):
    """Return the last hidden states of one text, by nothing but transformers."""
    model = BertModel.from_pretrained(folder).eval()
    read = PreTrainedTokenizerFast.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        said = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
    return said.last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_states_are_pooled_over_the_text_and_not_its_pads(folder, pooling):
    found = opened(described(folder, pooling)).states(TEXTS, alone=False)
    for text, state in zip(TEXTS, found, strict=True):
        hidden = alone(folder, text)
        wanted = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}
        torch.testing.assert_close(state, wanted[pooling], rtol=1e-4, atol=1e-5)


def test_a_text_read_alone_has_the_same_bits_whatever_else_is_asked(folder):
    encoder = opened(described(folder))
    together = encoder.states(TEXTS, alone=True)
    for text, state in zip(TEXTS, together, strict=True):
        assert torch.equal(encoder.states([text], alone=True)[0], state)


def test_a_text_that_is_too_long_keeps_its_end(folder):
    encoder = opened(described(folder))
    end = "capital of Chile is " * 20
    found = encoder.states(["Peru " + end, "Mali " + end], alone=True)
    assert torch.equal(found[0], found[1])


def test_a_text_without_tokens_is_all_zeros(tmp_path):
    folder = write(tmp_path / "encoder")
    rules = tmp_path / "encoder" / "tokenizer.json"
    said = json.loads(rules.read_text())
    rules.write_text(json.dumps({**said, "post_processor": None}))
    found = opened(described(folder)).states(["", "Peru"], alone=False)
    assert not found[0].any()
    assert found[1].any()


def test_a_folder_says_itself_how_it_is_pooled(folder, tmp_path):
    assert described(folder).pooling == "mean"
    (tmp_path / "encoder" / "1_Pooling").mkdir()
    said = tmp_path / "encoder" / "1_Pooling" / "config.json"
    said.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert described(folder).pooling == "first"
    assert described(folder, "last").pooling == "last"


def test_weights_that_a_file_lacks_and_nobody_reads_change_no_digest(tmp_path):
    folder = write(tmp_path / "masked", BertForMaskedLM)  # it has no pooler
    first = described(folder)
    (tmp_path / "masked" / "touched").write_text("so that it is opened anew")
    assert described(folder) == first
    assert opened(encoder_from(first.as_json())).known_by == first


def test_an_encoder_that_is_missing_or_another_one_is_refused(folder, tmp_path):
    known = described(folder)
    with pytest.raises(KeditError, match="is not on this machine"):
        opened(evolve(known, name=str(tmp_path / "nowhere")))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    write(tmp_path / "encoder", seed=1, tokenizer=tokenizer)
    with pytest.raises(KeditError, match="has other weights than the one"):
        opened(known)
    write(tmp_path / "encoder", tokenizer=word_tokenizer(["some other words"] * 3))
    with pytest.raises(KeditError, match="has other weights and tokenizer than the one"):
        opened(known)


def test_opening_is_silent(folder, capfd, caplog):
    capfd.readouterr()
    described(folder)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_is_no_encoder_is_refused_with_its_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(KeditError, match="cannot be opened; name a folder"):
        described(str(tmp_path))


def test_a_damaged_encoder_is_refused(folder, tmp_path):
    weights = tmp_path / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:400])
    with pytest.raises(KeditError, match="cannot be opened; name a folder"):
        described(folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pass_reads_the_texts_of_its_rows_without_pads_and_special_tokens(folder, side):
    base, tokenizer = tiny_model("llama", dtype=torch.float32), byte_level_tokenizer(bos=True)
    encoder = described(folder)
    reader = reader_of(base, tokenizer, encoder)
    ids = [one.ids for one in encode(tokenizer, TEXTS)]
    width = max(map(len, ids))
    pads = [[0] * (width - len(row)) for row in ids]
    both = list(zip(pads, ids, strict=True))
    rows = [[*pad, *row] if side == "left" else [*row, *pad] for pad, row in both]
    mask = [[0] * len(pad) + [1] * len(row) for pad, row in both]
    mask = mask if side == "left" else [row[::-1] for row in mask]
    seen, routing = [], Routing(base)

    def answer(passage, output):
        seen.append(reader.noted(passage))
        return output

    with routing.attach(reader.watch(routing), answer), torch.no_grad():
        base(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask))
    torch.testing.assert_close(seen[0], opened(encoder).states(TEXTS, alone=True))
    torch.testing.assert_close(seen[0], reader.states(ids, alone=True))


def test_embeddings_have_no_text_to_read(folder):
    base, tokenizer = tiny_model("llama", dtype=torch.float32), byte_level_tokenizer(bos=True)
    reader, routing = reader_of(base, tokenizer, described(folder)), Routing(base)

    def answer(passage, _):
        return reader.noted(passage)

    with routing.attach(answer=answer), pytest.raises(ModelError, match="inputs_embeds"):
        base(inputs_embeds=torch.zeros(1, 3, base.config.hidden_size))


def test_blocks_of_the_base_are_read_by_the_base(folder):
    base, tokenizer = tiny_model("llama", dtype=torch.float32), byte_level_tokenizer(bos=True)
    path = "model.layers.0"
    reader = reader_of(base, tokenizer, Sites(means=(path,), lasts=(path,)))
    assert reader.states([(5, 9)], alone=True).shape == (1, 2 * base.config.hidden_size)
