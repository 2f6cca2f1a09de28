"""A re-ranker: what it reads, that it decides where a classifier cannot, that nothing else in a batch shows."""

import pytest
import torch
from attrs import evolve
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from kedit_core.errors import DeltaError, KeditError
from kedit_core.progress import Progress
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_memory.cross_encoders import Near, Pair, new_cross_encoder
from kedit_memory.decoders import shape_for
from kedit_memory.encoders import described
from kedit_memory.kept import OUTSIDE
from kedit_memory.pooling import Sites
from kedit_memory.reranker_calibration import calibrated_reranker
from kedit_memory.reranker_training import RerankingLesson, train_reranker
from kedit_memory.rerankers import Reranker, Reranking, reranker_from, top_k
from kedit_memory.scope import ScopeClassifier, top_one
from kedit_memory.scope_calibration import auc_of
from kedit_memory.scope_examples import Examples

FACTS, WORDINGS, RELATIONS = 48, 4, 3
WORDS = 256
LESSON = RerankingLesson(candidates=6, blocks=1, steps=300, queries=16, lr=1e-2)


@pytest.fixture(scope="module")
def base():
    return tiny_model("llama", dtype=torch.float32)


@pytest.fixture(scope="module")
def blind():
    """Return a classifier whose directions say nothing, so that it goes by words alone."""
    return ScopeClassifier(
        projection=torch.eye(16),
        offset=torch.zeros(16),
        leaning=torch.zeros(17),
        sites=Sites(means=("a",), lasts=()),
        threshold=1.0,
        temperature=1.0,
        words=2.0,
    )


def words_of(rows):
    """Return what stands in rows of tokens, (rows, words): a vector of ±1/√words for each token."""
    chance = torch.Generator().manual_seed(9)
    signs = torch.randint(0, 2, (256, WORDS), generator=chance).float() * 2 - 1
    return torch.stack([signs[list(row)].sum(0) for row in rows]) / WORDS**0.5


def examples(seed):
    """Return prompts of tokens, a subject of two within a wording of three, with states that say nothing."""
    chance = torch.Generator().manual_seed(seed)
    subjects = (100 + torch.randperm(150, generator=chance)[: 2 * FACTS]).reshape(FACTS, 2).tolist()
    wordings = (
        (10 + torch.arange(3 * RELATIONS * WORDINGS)).reshape(RELATIONS, WORDINGS, 3).tolist()
    )
    prompts, tables = [], {kind: [] for kind in ("wordings", "garbled", "others", "neighbours")}

    def told(subject, words):
        first, *rest = words
        prompts.append((first, *subject, *rest))
        return len(prompts) - 1

    def said(subject, relation, wording):
        return told(subject, wordings[relation][wording])

    for fact, subject in enumerate(subjects):
        relation = fact % RELATIONS
        tables["wordings"].append([said(subject, relation, one) for one in range(WORDINGS)])
        made_up = (50 + torch.randint(50, (3,), generator=chance)).tolist()
        tables["garbled"].append([told(subject, made_up)])
        tables["others"].append([said(subject, (relation + 1) % RELATIONS, fact % WORDINGS)])
        strange = (100 + torch.randint(150, (2,), generator=chance)).tolist()
        tables["neighbours"].append([said(strange, relation, fact % WORDINGS)])
    return Examples(
        states=torch.cat(
            [torch.randn(len(prompts), 16, generator=chance), words_of(prompts)], dim=1
        ),
        named=words_of(subjects) / 2,
        prompts=tuple(prompts),
        subjects=tuple(map(str, subjects)),
        asked_more=torch.ones(len(subjects), dtype=torch.bool),
        **{name: torch.tensor(table) for name, table in tables.items()},
    )


@pytest.fixture(scope="module")
def trained(base, blind):
    return train_reranker(base, None, blind, examples(0), LESSON, Progress())


@pytest.fixture(scope="module")
def ready(base, blind, trained):
    shares = {"rejects": 0.9, "rejects_same_subject": 0.8, "recall": 0.99, "seed": 0}
    return calibrated_reranker(base, None, blind, trained, examples(1), examples(0), **shares)[0]


def searching(base, blind, reranker, told):
    """Return a search over the edits of facts, and queries in other wordings with their own edits."""
    own = told.wordings[:, 0]
    memory = blind.embed_edits(told.states[own], told.named)
    search = Reranking(
        base, None, reranker, memory, [told.prompts[place] for place in own.tolist()]
    )
    places = told.wordings[:, 1].tolist()
    return search, blind.embed(told.states[places]), [told.prompts[place] for place in places]


def test_it_tells_questions_apart_where_the_classifier_cannot(base, blind, ready):
    told = examples(2)
    search, queries, prompts = searching(base, blind, ready, told)
    own = torch.arange(FACTS)
    memory = blind.embed_edits(told.states[told.wordings[:, 0]], told.named)
    inside, found = top_one(queries, memory)
    outside, _ = top_one(blind.embed(told.states[told.others[:, 0]]), memory)
    assert float((found == own).float().mean()) > 0.9  # by the subject, which both ask about
    assert 0.3 < auc_of(inside, outside) < 0.7
    match = search.match(queries, prompts, alone=False)
    assert float((match.edit == own).float().mean()) > 0.8
    assert bool(((match.probability >= 0.5) == (match.edit != OUTSIDE)).all())
    for kind, most in (("neighbours", 0.2), ("others", 0.4)):
        places = getattr(told, kind)[:, 0].tolist()
        asked = [told.prompts[place] for place in places]
        met = search.match(blind.embed(told.states[places]), asked, alone=False).edit
        assert float((met != OUTSIDE).float().mean()) < most


def test_a_query_gets_the_same_answer_alone_and_among_others(base, blind, ready):
    search, queries, prompts = searching(base, blind, ready, examples(2))
    together = search.match(queries, prompts, alone=False)
    for row in range(0, FACTS, 8):
        one = search.match(queries[row : row + 1], prompts[row : row + 1], alone=True)
        assert int(one.edit) == int(together.edit[row])
        torch.testing.assert_close(one.probability, together.probability[row : row + 1])
    alone = search.match(queries, prompts, alone=True)
    again = search.match(queries[3:5], prompts[3:5], alone=True)
    assert torch.equal(alone.probability[3:5], again.probability)


def test_an_edits_own_prompt_is_in_its_scope_whatever_the_threshold(base, blind, ready):
    told = examples(2)
    search, *_ = searching(base, blind, evolve(ready, threshold=1e9), told)
    own = told.wordings[:, 0].tolist()
    prompts = [told.prompts[place] for place in own]
    match = search.match(blind.embed(told.states[own]), prompts, alone=False)
    assert match.edit.tolist() == list(range(FACTS))
    assert match.probability.tolist() == [1.0] * FACTS


def test_only_prompts_that_come_near_are_read(base, blind, ready):
    told = examples(2)
    closed = evolve(ready, gate=1e9)
    search, queries, prompts = searching(base, blind, closed, told)
    assert not any(search.candidates(queries, prompts))
    match = search.match(queries, prompts, alone=False)
    assert set(match.edit.tolist()) == {OUTSIDE}
    assert not match.probability.any()
    opened = evolve(ready, gate=None)
    search, *_ = searching(base, blind, opened, told)
    assert {len(one) for one in search.candidates(queries, prompts)} == {opened.candidates}


def test_an_empty_memory_is_met_by_nobody(base, blind, ready):
    search = Reranking(base, None, ready, torch.empty(0, 16 + WORDS), [])
    match = search.match(torch.randn(2, 16 + WORDS), [(1, 2), (3,)], alone=False)
    assert match.edit.tolist() == [OUTSIDE, OUTSIDE]
    assert match.probability.tolist() == [0, 0]


@pytest.mark.parametrize("edits", [1, 7, 8192, 20_000])
def test_the_search_finds_what_the_whole_matrix_shows(edits):
    chance = torch.Generator().manual_seed(0)
    queries, memory = (torch.randn(n, 8, generator=chance) for n in (5, edits))
    best, places = top_k(queries, memory, 8)
    wanted = (queries @ memory.T).topk(min(8, edits), dim=1)
    torch.testing.assert_close(best, wanted.values)
    assert torch.equal(places, wanted.indices)


def test_it_comes_back_from_its_tensors_and_settings(base, blind, ready):
    again = reranker_from(ready.tensors(), ready.settings(), "here")
    assert again.settings() == ready.settings()
    search, queries, prompts = searching(base, blind, ready, examples(2))
    other, *_ = searching(base, blind, again, examples(2))
    assert torch.equal(
        search.best(queries, prompts, alone=False)[0], other.best(queries, prompts, alone=False)[0]
    )
    assert reranker_from({}, None, "here") is None
    with pytest.raises(DeltaError, match="no whole re-ranker"):
        reranker_from({}, ready.settings(), "here")


def test_equal_seeds_give_equal_bits_and_nobody_elses_draws_move(base, blind):
    state, lesson = torch.get_rng_state(), evolve(LESSON, steps=3)
    first, again, other = (
        train_reranker(base, None, blind, examples(0), evolve(lesson, seed=seed), Progress())
        for seed in (3, 3, 4)
    )
    same = [torch.equal(one, again.weights[name]) for name, one in first.weights.items()]
    assert all(same)
    assert not all(torch.equal(one, other.weights[name]) for name, one in first.weights.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pair_says_which_tokens_both_hold(base):
    text = Pair(edit=(5, 6, 7), query=(7, 9)).text()
    assert text.codes == (5, 6, 7, -1, 7, 9)
    assert text.kinds == (1, 1, 2, 0, 3, 0)


PAIRS = [Pair(edit=(5, 6, 7), query=(7, 9)), Pair(edit=(5,), query=(7,))]
NEAR = Near(threshold=0.2, temperature=0.3)


def directions(number=2):
    chance = torch.Generator().manual_seed(5)
    return [normalize(torch.randn(number, 8, generator=chance), dim=1) for _ in range(2)]


def test_training_begins_at_what_the_classifier_says(base):
    model = new_cross_encoder(base, None, shape_for(base, 1, None), 5, NEAR)
    queries, edits = directions()  # 5 of the map, 3 of words
    wanted = 4 * torch.tanh(((queries * edits).sum(1) - 0.2) / 0.3 / 4)
    torch.testing.assert_close(model.logits(PAIRS, queries, edits), wanted)


def test_words_count_in_the_score_alone_and_the_map_in_the_head_too(base):
    model = new_cross_encoder(base, None, shape_for(base, 1, None), 5, NEAR)
    torch.nn.init.ones_(model.outer.weight)
    queries, edits = directions()
    before = model.logits(PAIRS, queries, edits)
    for first, same in ((5, True), (3, False)):
        moved = queries.clone()  # and each product with its edit stays what it is
        moved[:, first] += edits[:, first + 1]
        moved[:, first + 1] -= edits[:, first]
        assert torch.allclose(model.logits(PAIRS, moved, edits), before, atol=1e-5) == same


@pytest.fixture(params=["decoder", "encoder"])
def cross_encoder(request, base, tmp_path):
    """Return an untrained one of either kind whose reading counts."""
    reads = shape_for(base, 1, None)
    if request.param == "encoder":
        write_encoder(tmp_path / "encoder")
        reads = described(str(tmp_path / "encoder"))
    model = new_cross_encoder(base, byte_level_tokenizer(bos=True), reads, 8, NEAR)
    torch.nn.init.ones_(model.outer.weight)
    return model


def test_a_pair_is_read_the_same_alone_and_among_others(cross_encoder):
    queries, edits = directions(3)
    pairs = [*PAIRS, Pair(edit=tuple(range(40, 60)), query=tuple(range(70, 90)))]
    together = cross_encoder.logits(pairs, queries, edits)
    for row, pair in enumerate(pairs):
        alone = cross_encoder.logits([pair], queries[row : row + 1], edits[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    swapped = [Pair(edit=pair.query, query=pair.edit) for pair in pairs]
    assert not torch.allclose(cross_encoder.logits(swapped, queries, edits), together, atol=1e-3)


def write_encoder(folder):
    """Write a BERT with random weights, and the byte-level tokenizer, which reads pairs too."""
    tokenizer = byte_level_tokenizer(bos=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_encoder_reads_pairs_and_is_kept_by_name_alone(base, blind, tmp_path):
    encoder = described(str(write_encoder(tmp_path / "encoder")))
    tokenizer = byte_level_tokenizer(bos=True)
    lesson = evolve(LESSON, steps=5)
    beside = (base, tokenizer, blind, examples(0), lesson, Progress())
    made = train_reranker(*beside, encoder=encoder)
    assert made.reads == encoder
    assert {name.split(".")[0] for name in made.weights} == {"norm", "inner", "outer"}
    again = reranker_from(made.tensors(), made.settings(), "here")
    told = examples(2)
    own = told.wordings[:, 0]
    memory = blind.embed_edits(told.states[own], told.named)
    prompts = [told.prompts[place] for place in own.tolist()]
    asked = [told.prompts[place] for place in told.wordings[:, 1].tolist()][:4]
    queries = blind.embed(told.states[told.wordings[:4, 1]])
    first, other = (
        Reranking(base, tokenizer, one, memory, prompts).best(queries, asked, alone=True)[0]
        for one in (made, again)
    )
    assert torch.equal(first, other)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with pytest.raises(KeditError, match="is not on this machine"):
        Reranking(base, tokenizer, again, memory, prompts)


def test_calibration_keeps_enough_out(base, blind, trained):
    held, crowd = examples(1), examples(0)
    wanted = {"rejects": 0.9, "rejects_same_subject": 0.8}
    made, found = calibrated_reranker(
        base, None, blind, trained, held, crowd, **wanted, recall=0.95, seed=0
    )
    assert isinstance(made, Reranker)
    assert found.edits == 2 * FACTS
    assert found.rejected["neighbours"] >= 0.9 - 1 / FACTS
    assert found.rejected["others"] >= 0.8 - 1 / FACTS
    assert found.accepted > 0.7
    assert min(found.auc.values()) > 0.8
