"""Causal tracing: what is put back comes back, whatever shares a forward with it."""

import pytest
import torch
from attrs import evolve

from kedit_core import EditRequest, KeditError, layout_of
from kedit_core.digests import state_digest
from kedit_core.errors import ModelError, RequestError
from kedit_core.progress import Progress
from kedit_core.untouched import attachments
from kedit_locate.effects import Effects, Trace, proposal
from kedit_locate.facts import GROUPS, Fact, known_facts
from kedit_locate.restoring import Corruption, Run, probabilities, read_clean
from kedit_locate.tracing import Tracing, trace

FIRST, MIDDLE, SUBJECT, AFTER, FURTHER, LAST = range(6)
QUICK = Tracing(samples=2, noise=1.0)
LAYERS = 3


@pytest.fixture
def facts():
    """Return requests without an answer of their own: whatever the model says is known."""
    prompts = [
        ("The mother tongue of {} is", "Danielle Darrieux"),
        ("{} plays the violin in", "Toko"),
        ("{} is the capital of", "Lima"),
    ]
    return [
        EditRequest(prompt=prompt, subject=subject, target_new="English")
        for prompt, subject in prompts
    ]


def traced(model, tokenizer, requests, settings=QUICK, progress=None, **options):
    layout = layout_of(model)
    about = (model, tokenizer, layout, requests, settings, progress or Progress())
    return trace(*about, **options)


class Prompt:
    """A prompt whose subject is corrupted at its second to fourth token."""

    ids = (5, 9, 120, 33, 64, 7, 201)
    first, subject = 1, 3

    def __init__(self, model, noise=2.0, samples=2):
        layout = layout_of(model)
        self.model, self.blocks = model, [layer.path for layer in layout.layers]
        self.downs = [layout.down_of(layer).path for layer in range(LAYERS)]
        self.clean = read_clean(model, self.ids, [*self.blocks, *self.downs])
        generator = torch.Generator().manual_seed(1)
        shape = (samples, self.subject, model.config.get_text_config().hidden_size)
        drawn = noise * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.corruption = Corruption(embedding=layout.embedding, first=self.first, noise=drawn)

    def said(self, *runs, **options):
        found = probabilities(self.model, self.clean, self.corruption, runs, **options)
        return torch.cat(list(found))


def test_the_clean_run_says_what_the_model_says(model):
    prompt = Prompt(model)
    said = model(torch.tensor([prompt.ids])).logits[0, -1].softmax(-1)
    assert prompt.clean.answer == int(said.argmax())
    assert prompt.clean.probability == pytest.approx(float(said.max()), rel=1e-12)


def test_a_corrupted_run_is_the_model_with_noisy_embeddings(model):
    prompt = Prompt(model)
    embedded = model.get_input_embeddings()(torch.tensor([prompt.ids])).clone()
    embedded[:, 1:4] += prompt.corruption.noise[1]
    expected = model(inputs_embeds=embedded).logits[0, -1].softmax(-1)[prompt.clean.answer]
    (found,) = prompt.said(Run(sample=1)).tolist()
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert abs(found - prompt.clean.probability) > 1e-3


@pytest.mark.parametrize("layer", range(LAYERS))
def test_restoring_a_layer_at_every_token_gives_the_clean_run(model, layer):
    prompt = Prompt(model)
    places = tuple(range(len(prompt.ids)))
    (found,) = prompt.said(Run(sample=0, paths=(prompt.blocks[layer],), places=places)).tolist()
    assert found == pytest.approx(prompt.clean.probability, rel=1e-12)


def test_restoring_the_last_layer_counts_at_the_last_token_alone(model):
    prompt = Prompt(model)
    at = [Run(sample=0, paths=(prompt.blocks[-1],), places=(place,)) for place in (1, 5, 6)]
    first, before, last = prompt.said(*at).tolist()
    (corrupted,) = prompt.said(Run(sample=0)).tolist()
    assert last == pytest.approx(prompt.clean.probability, rel=1e-12)
    assert first == pytest.approx(corrupted, rel=1e-12)
    assert before == pytest.approx(corrupted, rel=1e-12)


def test_runs_that_share_forwards_are_the_runs_one_by_one(model):
    prompt = Prompt(model)
    sites = [(path,) for path in (*prompt.blocks, *prompt.downs)] + [tuple(prompt.downs)]
    runs = [
        Run(sample=sample, paths=paths, places=(place,))
        for paths in sites
        for place in (1, 3, 6)
        for sample in (0, 1)
    ]
    together = prompt.said(*runs)
    alone = torch.cat([prompt.said(run) for run in runs])
    few = prompt.said(*runs, tokens=len(prompt.ids) * 5)  # five runs a forward
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(few, alone, rtol=1e-10, atol=1e-13)
    assert len(together.unique()) > len(runs) // 2


def test_layers_below_need_not_run_again(model):
    prompt = Prompt(model)
    runs = [
        Run(sample=sample, paths=(prompt.downs[2],), places=(place,))
        for place in (1, 3, 6)
        for sample in (1, 0)
    ]
    calls = []
    handle = model.get_submodule(prompt.downs[0]).register_forward_hook(lambda *_: calls.append(1))
    below = prompt.said(*runs, below=prompt.blocks[:2], tokens=len(prompt.ids))
    handle.remove()
    assert len(calls) == 1
    torch.testing.assert_close(below, prompt.said(*runs), rtol=1e-10, atol=1e-13)


def test_effects_are_the_plain_averages(model, tokenizer, facts):
    found = traced(model, tokenizer, facts[:1], Tracing(samples=2, noise=1.0, window=2))
    (fact,) = known_facts(model, tokenizer, facts[:1])
    layout = layout_of(model)
    embedding = model.get_input_embeddings()
    deviation = float(
        embedding(torch.tensor([fact.ids[s] for s in fact.subject])).std(correction=0)
    )
    assert found.deviation == pytest.approx(deviation)
    assert found.clean == pytest.approx(read_clean(model, fact.ids, []).probability)
    # A window of two around layer 1 is layers 0 and 1; around layer 0 it is layer 0 alone.
    single = traced(model, tokenizer, facts[:1], Tracing(samples=2, noise=1.0, window=1))
    mlp, one = found.of("mlp"), single.of("mlp")
    assert (mlp.window, one.window, found.of("hidden").window) == (2, 1, 1)
    torch.testing.assert_close(
        mlp.values[:, 0], one.values[:, 0], rtol=1e-9, atol=1e-12, equal_nan=True
    )
    assert not torch.allclose(mlp.values[SUBJECT, 1], one.values[SUBJECT, 1])
    assert mlp.values.shape == (len(GROUPS), len(layout.layers))
    # Nothing is left to bring back but what the corruption took.
    gap = found.clean - found.corrupted
    assert float(found.of("hidden").values[LAST, -1]) == pytest.approx(gap, rel=1e-9)


def test_several_facts_are_the_average_of_the_facts_one_by_one(model, tokenizer):
    # Of one subject, and so of one deviation; the first has no token before its last one.
    prompts = ["{} is", "{} plays the violin in", "The home of {} is"]
    requests = [EditRequest(prompt=one, subject="Lima", target_new="x") for one in prompts]
    together = traced(model, tokenizer, requests, states=["mlp"])
    alone = [traced(model, tokenizer, [one], states=["mlp"]) for one in requests]
    assert together.counts == tuple(map(sum, zip(*(one.counts for one in alone), strict=True)))
    assert 0 < together.counts[FURTHER] < 3
    assert together.clean == pytest.approx(sum(one.clean for one in alone) / 3)
    assert together.corrupted == pytest.approx(sum(one.corrupted for one in alone) / 3)
    mean = torch.stack([one.of("mlp").values for one in alone]).nanmean(0)
    torch.testing.assert_close(
        together.of("mlp").values, mean, rtol=1e-9, atol=1e-13, equal_nan=True
    )


def test_without_noise_there_is_nothing_to_bring_back(model, tokenizer, facts):
    found = traced(model, tokenizer, facts, Tracing(samples=1, noise=0.0))
    assert found.corrupted == pytest.approx(found.clean, rel=1e-12)
    for effects in found.effects:
        assert float(effects.values.nan_to_num(nan=0.0).abs().max()) < 1e-12
    assert not all(effects.values.isnan().all() for effects in found.effects)


def test_equal_seeds_give_equal_traces_and_others_do_not(model, tokenizer, facts):
    first, again = (traced(model, tokenizer, facts[1:]) for _ in range(2))
    other = traced(model, tokenizer, facts[1:], Tracing(samples=2, noise=1.0, seed=1))
    assert torch.equal(first.of("mlp").values.nan_to_num(), again.of("mlp").values.nan_to_num())
    assert first.corrupted == again.corrupted != other.corrupted


@pytest.mark.parametrize(
    ("tokens", "subject", "groups"),
    [
        (7, range(1, 4), {1: FIRST, 2: MIDDLE, 3: SUBJECT, 4: AFTER, 5: FURTHER, 6: LAST}),
        (4, range(1, 2), {1: SUBJECT, 2: AFTER, 3: LAST}),
        (4, range(1, 3), {1: FIRST, 2: SUBJECT, 3: LAST}),
        (4, range(1, 4), {1: FIRST, 2: MIDDLE, 3: LAST}),
        (1, range(1), {0: LAST}),
    ],
)
def test_every_token_from_the_subject_on_belongs_to_one_group(tokens, subject, groups):
    fact = Fact(name="one", ids=tuple(range(tokens)), subject=subject, answer=None)
    assert fact.groups == groups


def test_the_subjects_tokens_are_found_with_and_without_a_token_before_every_text(
    model, tokenizer, bos_tokenizer, facts
):
    for reader, more in ((tokenizer, 0), (bos_tokenizer, 1)):
        for fact, request in zip(known_facts(model, reader, facts), facts, strict=True):
            shown = reader.decode([fact.ids[place] for place in fact.subject])
            assert shown.strip() == request.subject
            assert len(fact.ids) == len(tokenizer(request.prompt)["input_ids"]) + more


def test_facts_that_the_model_does_not_know_are_left_out_and_counted(model, tokenizer, facts):
    prompts = [f"{{}} is{' so' * more}" for more in range(20)]
    said = (
        tokenizer.decode(
            model(tokenizer(one.format("Lima"), return_tensors="pt")["input_ids"])
            .logits[0, -1]
            .argmax()
        )
        for one in prompts
    )
    prompt, said = next(
        (one, word)
        for one, word in zip(prompts, said, strict=True)
        if word.strip().isascii() and word.strip()
    )
    options = {"prompt": prompt, "subject": "Lima", "target_new": "English"}
    known = EditRequest(**options, target_true=said, joiner="")
    wrong = EditRequest(**options, target_true="zzz", joiner="")
    found = traced(model, tokenizer, [wrong, known, wrong], states=["hidden"])
    assert (found.facts, found.unknown) == (1, 2)
    with pytest.raises(KeditError, match="none of the 2 requests"):
        traced(model, tokenizer, [wrong, wrong])


def test_a_request_without_a_subject_is_refused(model, tokenizer):
    with pytest.raises(RequestError, match="subject"):
        traced(model, tokenizer, [EditRequest(prompt="The capital is", target_new="Oslo")])


class Ctrl(Progress):
    """Interrupts when some runs are done."""

    def task(self, *_):
        return self

    def __enter__(self):
        return self.advance

    def __exit__(self, *_):
        return None

    def advance(self, _):
        raise KeyboardInterrupt


def test_tracing_leaves_the_model_as_it_was_also_when_it_is_interrupted(model, tokenizer, facts):
    model.train().requires_grad_(True)
    before, hung = state_digest(model), attachments(model)
    traced(model, tokenizer, facts[1:2])
    with pytest.raises(KeyboardInterrupt):
        traced(model, tokenizer, facts, progress=Ctrl())
    assert state_digest(model) == before
    assert attachments(model) == hung
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_state_that_no_layer_has_is_left_out(model, tokenizer, facts):
    layout = layout_of(model)
    bare = evolve(layout, layers=tuple(evolve(one, attention_out=None) for one in layout.layers))
    about = (model, tokenizer, bare, facts[1:2], QUICK, Progress())
    assert [one.state for one in trace(*about).effects] == ["hidden", "mlp"]
    with pytest.raises(ModelError, match="no layer has attention"):
        trace(*about, states=["attention"])


def trace_of(subject):
    values = torch.zeros(6, len(subject), dtype=torch.float64)
    values[SUBJECT] = torch.tensor(subject)
    effects = (Effects(state="mlp", window=1, values=values),)
    return Trace(
        effects=effects,
        counts=(1,) * 6,
        facts=1,
        unknown=0,
        clean=1.0,
        corrupted=0.0,
        deviation=1.0,
    )


@pytest.mark.parametrize(
    ("effect", "peak", "layers"),
    [
        ([0.125, 0.5, 0.25], 1, (1, 2)),
        ([0.375, 0.5, 0.25], 1, (0, 1)),
        ([0.5, 0.375, 0.125], 0, (0, 1)),
        ([0.0, 0.125, 0.75], 2, (1, 2)),
    ],
)
def test_as_many_layers_are_proposed_as_methods_take_about_the_peak(tiny, effect, peak, layers):
    deep = [*effect, *[0.0] * 9]  # of twelve layers methods take two
    found = proposal(trace_of(deep), layout_of(tiny("gpt2", layers=12)))
    assert (found.layer, found.layers, found.effect) == (peak, layers, max(effect))


@pytest.mark.parametrize("effect", [[0.0, 0.0, 0.0], [-0.1, -0.2, -0.1], [float("nan")] * 3])
def test_where_nothing_comes_back_no_layers_are_proposed(model, effect):
    assert proposal(trace_of(effect), layout_of(model)) is None
