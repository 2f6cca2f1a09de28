"""Corpora: a file cut into passages, or text that the model samples itself."""

import pytest
import torch

from kedit_core import KeditError, TensorCache, Weights, layout_of
from kedit_core.progress import Progress
from kedit_locate.config import Statistics
from kedit_locate.corpus import corpus_name, read_corpus
from kedit_locate.moments import moments
from kedit_locate.sampling import start_token

TEXT = "The capital of Norway is Oslo. Zoë plays the violin in the city of Rome. " * 20


def read(model, tokenizer, corpus=None, tokens=100, length=16):
    return read_corpus(model, tokenizer, corpus, tokens, length, Progress())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_a_file_is_cut_into_passages_that_hold_its_tokens_in_order(model, tokenizer, file):
    found = read(model, tokenizer, file)
    assert found.tokens == 100
    assert [len(passage) for passage in found.passages] == [16] * 6 + [4]
    assert torch.cat(found.passages).tolist() == tokenizer(TEXT)["input_ids"][:100]


def test_a_passage_begins_as_the_tokenizer_begins_texts(model, bos_tokenizer, file):
    found = read(model, bos_tokenizer, file)
    assert all(passage[0] == bos_tokenizer.bos_token_id for passage in found.passages)
    assert all(len(passage) == 16 for passage in found.passages[:-1])
    rest = torch.cat([passage[1:] for passage in found.passages])
    assert rest.tolist() == bos_tokenizer(TEXT)["input_ids"][1:101]


def test_a_short_file_gives_what_it_has(model, tokenizer, file):
    everything = len(tokenizer(TEXT)["input_ids"])
    assert read(model, tokenizer, file, tokens=10**6).tokens == everything


def test_passages_are_no_longer_than_the_model_reads(model, tokenizer, file):
    for corpus in (file, None):
        found = read(model, tokenizer, corpus, tokens=300, length=5000)
        assert max(map(len, found.passages)) == 128


def test_sampled_text_is_the_same_every_time_and_begins_as_texts_do(model, tokenizer):
    first, again = read(model, tokenizer), read(model, tokenizer)
    assert all(map(torch.equal, first.passages, again.passages))
    assert first.tokens >= 100
    assert {int(passage[0]) for passage in first.passages} == {start_token(tokenizer)}
    assert len({tuple(passage.tolist()) for passage in first.passages}) == len(first.passages)


def test_a_corpus_is_named_after_its_content_not_its_path(file, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_text(TEXT, encoding="utf-8")
    assert corpus_name(str(copy), 100, 16) == corpus_name(file, 100, 16)
    copy.write_text(TEXT + "!", encoding="utf-8")
    assert corpus_name(str(copy), 100, 16) != corpus_name(file, 100, 16)
    assert corpus_name(None, 100, 16) != corpus_name(file, 100, 16)


def test_statistics_of_a_file_are_not_those_of_sampled_text(model, tokenizer, file):
    downs, weights = [layout_of(model).down_of(1)], Weights(model)
    (sampled,), (own,) = (
        moments(model, tokenizer, downs, wanted, weights, TensorCache(), Progress())
        for wanted in (Statistics(tokens=100), Statistics(corpus=file, tokens=100))
    )
    assert own.count == 100
    assert not torch.allclose(own.matrix, sampled.matrix)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot be read"), (b"", "holds no text"), (b"\xff\xfe\xfa", "not UTF-8")],
    ids=["missing", "empty", "binary"],
)
def test_a_corpus_that_cannot_be_read_is_refused_in_one_sentence(
    model, tokenizer, tmp_path, content, complaint
):
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeditError, match=complaint):
        read(model, tokenizer, str(path))


def test_a_byte_order_mark_is_no_text(model, tokenizer, tmp_path, file):
    marked = tmp_path / "marked.txt"
    marked.write_text("\ufeff" + TEXT, encoding="utf-8")
    found, plain = read(model, tokenizer, str(marked)), read(model, tokenizer, file)
    assert all(map(torch.equal, found.passages, plain.passages))


def test_half_of_the_tokens_can_come_in_short_passages(model, tokenizer, file):
    found = read_corpus(model, tokenizer, file, 100, 32, Progress(), 5)
    assert found.tokens == 100
    assert [len(passage) for passage in found.passages] == [32, 18, *[5] * 10]
    assert torch.cat(found.passages).tolist() == tokenizer(TEXT)["input_ids"][:100]
    assert found.name != read(model, tokenizer, file, length=32).name


@pytest.mark.parametrize("starts", [False, True])
def test_short_passages_that_are_sampled_begin_as_prompts_do(
    model, tokenizer, bos_tokenizer, starts
):
    reader = bos_tokenizer if starts else tokenizer
    found = read_corpus(model, reader, None, 200, 32, Progress(), 8)
    long, short = ([p for p in found.passages if (len(p) == 32) is kind] for kind in (True, False))
    assert sum(map(len, long)) >= 100
    first = {int(passage[0]) for passage in short}
    assert (first == {start_token(reader)}) is starts
    assert {len(passage) for passage in short} == {8 if starts else 7}
