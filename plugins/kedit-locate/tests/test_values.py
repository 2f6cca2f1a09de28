"""The search for values, against torch's own Adam on plain whole forwards."""

from contextlib import contextmanager
from functools import wraps

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from kedit_core import EditRequest, KeditError, encode, layout_of
from kedit_core.digests import state_digest
from kedit_core.progress import Progress
from kedit_core.untouched import attachments
from kedit_locate.config import Search
from kedit_locate.parts import Part
from kedit_locate.rows import EditRows, Row, edit_rows
from kedit_locate.sizes import MEMORY, sizes_for
from kedit_locate.values import Site, Sizes, search_shifts, search_values

PREFIXES = ("", "She was. ", "The Space Needle is in Seattle. ")
FACTS = (
    EditRequest(
        prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
    ),
    EditRequest(
        prompt="{} is in the city of", subject="The Eiffel Tower", target_new="Oslo, Norway"
    ),
    EditRequest(prompt="{} plays", subject="Zoë", target_new="the"),
    EditRequest(prompt="We hear that {}", subject="Toko Yasuda", target_new="plays the guitar"),
)
FREE = Search(steps=5, lr=0.05, clamp=1e6, decay=0.0, kl=0.0, stop=0.0)


@contextmanager
def shifted(model, site, place, shift):
    """Add ``shift`` at one place of what a module writes, in the plainest way."""

    def hook(_, __, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        change = torch.zeros_like(hidden)
        change[:, place] = 1
        hidden = hidden + change * shift
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    handle = model.get_submodule(site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def whole_forward(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


def plain_nll(model, site, rows, shift):
    """Return mean_i -(1/T) Σ log P(target_t), one whole forward a row, no cache, no padding."""
    total = 0.0
    for row in rows.rewrites:
        with shifted(model, site, row.lookup, shift):
            said = whole_forward(model, row.ids)
        count = len(row.target)
        for step, token in enumerate(row.target):
            total = total - said[len(row.ids) - count + step, token] / count
    return total / len(rows.rewrites)


def plain_search(model, site, tokenizer, request, rows, search):
    """Return the shift and the number of updates by the formulas of the paper's code."""
    bare = rows.rewrites[0]
    seen = []
    handle = model.get_submodule(site).register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    whole_forward(model, bare.ids)
    handle.remove()
    base = seen[0][0, bare.lookup].detach()
    # The whole anchor text, not cut at the subject.
    anchor = encode(tokenizer, [f"{request.subject} is a"])[0]
    place = anchor.last_token_of((0, len(request.subject)))
    before = whole_forward(model, anchor.ids)[place].detach()
    shift = torch.zeros_like(base, requires_grad=True)
    adam = torch.optim.Adam([shift], lr=search.lr)
    for step in range(search.steps):
        nll = plain_nll(model, site, rows, shift)
        with shifted(model, site, place, shift):
            now = whole_forward(model, anchor.ids)[place]
        divergence = torch.nn.functional.kl_div(before, now, log_target=True, reduction="sum")
        loss = nll + search.kl * divergence + search.decay * shift.norm() / base.norm() ** 2
        if loss.item() < search.stop or step == search.steps - 1:
            return base, shift.detach(), nll.item(), step
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            radius = search.clamp * base.norm()
            if shift.norm() > radius:
                shift *= radius / shift.norm()
    raise AssertionError("not reached")


def site_of(model, layer=1):
    return layout_of(model).down_of(layer).path


def search_one(model, rows, search, site=None):
    return search_values(model, [rows], site or site_of(model), search, Progress())


@pytest.mark.parametrize("prefixes", [PREFIXES[:1], PREFIXES], ids=["bare", "prefixes"])
@pytest.mark.parametrize("request_", FACTS, ids=["middle", "start", "one token", "end"])
def test_the_search_is_torchs_adam_on_plain_whole_forwards(model, tokenizer, request_, prefixes):
    rows = edit_rows(tokenizer, request_, prefixes)
    search = Search(steps=6, lr=0.1, clamp=0.6, decay=0.3, kl=0.5, stop=0.0)
    base, shift, nll, updates = plain_search(
        model, site_of(model), tokenizer, request_, rows, search
    )
    found = search_one(model, rows, search)
    # Llama's norm computes in float32, and one row stands for both the bare prompt and the anchor.
    close = 1e-10 if model.config.model_type == "gpt2" else 1e-7
    torch.testing.assert_close(found.base[0], base, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.shift[0], shift, rtol=100 * close, atol=close)
    torch.testing.assert_close(found.value[0], base + shift, rtol=100 * close, atol=close)
    assert found.nll[0] == pytest.approx(nll, rel=close)
    assert found.steps == (updates,) == (5,)


@pytest.mark.parametrize("layer", [0, 2], ids=["first layer", "last layer"])
def test_the_search_fits_plain_forwards_on_the_outermost_layers(model, bos_tokenizer, layer):
    # What the last layer writes is heard only where the subject ends the prompt.
    fact = FACTS[3]
    rows = edit_rows(bos_tokenizer, fact, PREFIXES)
    search = Search(steps=4, lr=0.1, clamp=4.0, decay=0.3, kl=0.5, stop=0.0)
    site = site_of(model, layer)
    _, shift, nll, _ = plain_search(model, site, bos_tokenizer, fact, rows, search)
    found = search_one(model, rows, search, site)
    torch.testing.assert_close(found.shift[0], shift, rtol=1e-8, atol=1e-10)
    assert found.nll[0] == pytest.approx(nll, rel=1e-10)


def test_the_facts_above_cover_the_cases_they_are_named_after(tokenizer):
    middle, start, single, end = (edit_rows(tokenizer, fact, PREFIXES) for fact in FACTS)
    assert middle.rewrites[0].lookup > 0
    assert len(start.rewrites[0].target) > 2
    assert len(single.rewrites[0].target) == 1
    assert end.rewrites[0].lookup == len(end.rewrites[0].ids) - len(end.rewrites[0].target)


def test_a_subject_of_one_token_at_position_zero_needs_no_prefix(model, tokenizer):
    token, target = encode(tokenizer, ["The"])[0].ids, encode(tokenizer, [" city of Rome"])[0].ids
    row = Row(ids=(*token, *target[:-1]), lookup=0, target=target)
    rows = EditRows(rewrites=(row,), anchor=Row(ids=token, lookup=0))
    found = search_one(model, rows, FREE)
    assert found.nll[0] == pytest.approx(
        float(plain_nll(model, site_of(model), rows, found.shift[0])), rel=1e-11
    )
    longer = Row(ids=(*target, *row.ids), lookup=len(target), target=row.target)
    mixed = EditRows(rewrites=(row, longer), anchor=rows.anchor)
    found = search_one(model, mixed, FREE)
    assert found.nll[0] == pytest.approx(
        float(plain_nll(model, site_of(model), mixed, found.shift[0])), rel=1e-11
    )


def test_several_edits_at_once_are_the_edits_one_by_one(model, tokenizer):
    edits = [edit_rows(tokenizer, fact, PREFIXES[: n + 1]) for n, fact in enumerate(FACTS[:3])]
    edits.append(edit_rows(tokenizer, FACTS[3], PREFIXES))
    alone = [search_one(model, rows, FREE) for rows in edits]
    # The first edit is done at some time in the middle, the others go on.
    losses = sorted(found.nll[0] for found in alone)
    search = Search(steps=12, lr=0.1, clamp=0.5, decay=0.3, kl=0.5, stop=losses[1])
    alone = [search_one(model, rows, search) for rows in edits]
    together = search_values(model, edits, site_of(model), search, Progress())
    assert len(set(together.steps)) > 1
    assert together.steps == tuple(found.steps[0] for found in alone)
    for number, found in enumerate(alone):
        torch.testing.assert_close(together.shift[number], found.shift[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(together.base[number], found.base[0], rtol=0, atol=1e-10)
        assert together.nll[number] == pytest.approx(found.nll[0], abs=1e-10)


def test_an_edit_that_is_done_does_not_move_while_others_go_on(model, tokenizer):
    edits = [edit_rows(tokenizer, fact, PREFIXES[:1]) for fact in FACTS]

    def found_after(steps, stop):
        search = Search(steps=steps, lr=0.1, kl=0.0, decay=0.0, stop=stop)
        return search_values(model, edits, site_of(model), search, Progress())

    after = found_after(4, 0.0).nll
    first = after.index(min(after))
    bound = after[first] * (1 + 1e-9)
    short, long = found_after(4, bound), found_after(9, bound)
    assert short.steps[first] == long.steps[first] == 3
    assert max(long.steps) > 3
    assert torch.equal(short.shift[first], long.shift[first])
    assert not torch.equal(short.shift, long.shift)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_there_is_one_update_less_than_steps(model, tokenizer, fact, steps):
    rows = edit_rows(tokenizer, fact, PREFIXES[:1])
    found = search_one(model, rows, Search(steps=steps, stop=0.0))
    assert found.steps == (steps - 1,)
    assert bool(found.shift.any()) == (steps > 1)


def test_an_edit_that_holds_already_is_not_touched(model, tokenizer, fact):
    found = search_one(model, edit_rows(tokenizer, fact, PREFIXES), Search(stop=1e9))
    assert found.steps == (0,)
    assert not found.shift.any()
    assert torch.equal(found.value, found.base)


def test_the_search_stops_at_the_first_loss_below_the_bound(model, tokenizer, fact):
    rows = edit_rows(tokenizer, fact, PREFIXES[:1])
    options = {"lr": 0.1, "kl": 0.0, "decay": 0.0}
    trail = [
        search_one(model, rows, Search(steps=n, stop=0.0, **options)).nll[0] for n in range(1, 9)
    ]
    assert trail == sorted(trail, reverse=True)
    bound = (trail[4] + trail[5]) / 2
    found = search_one(model, rows, Search(steps=50, stop=bound, **options))
    assert found.steps == (5,)
    assert found.nll[0] == pytest.approx(trail[5], rel=1e-12)


@pytest.mark.parametrize("clamp", [0.01, 0.3])
def test_the_clamp_is_never_violated_and_does_bind(model, tokenizer, clamp):
    edits = [edit_rows(tokenizer, fact, PREFIXES[:2]) for fact in FACTS]
    for steps in range(2, 8):
        search = Search(steps=steps, lr=0.5, clamp=clamp, stop=0.0)
        found = search_values(model, edits, site_of(model), search, Progress())
        reach = found.shift.norm(dim=1) / found.base.norm(dim=1)
        assert bool((reach <= clamp * (1 + 1e-12)).all())
    assert bool((reach > clamp * (1 - 1e-12)).any())


def test_the_first_update_goes_down(model, tokenizer, fact):
    rows = edit_rows(tokenizer, fact, PREFIXES)
    before = search_one(model, rows, Search(steps=1)).nll[0]
    after = search_one(model, rows, Search(steps=2, lr=1e-4, kl=0.0, decay=0.0)).nll[0]
    assert after < before


def test_the_divergence_and_the_decay_hold_the_shift_back(model, tokenizer, fact):
    rows = edit_rows(tokenizer, fact, PREFIXES[:1])
    options = {"steps": 30, "lr": 0.05, "stop": 0.0, "clamp": 100.0}
    free = search_one(model, rows, Search(kl=0.0, decay=0.0, **options)).shift.norm()
    for held in (Search(kl=50.0, decay=0.0, **options), Search(kl=0.0, decay=50.0, **options)):
        assert search_one(model, rows, held).shift.norm() < 0.8 * free


def test_in_a_pre_norm_model_the_mlp_and_its_block_are_the_same_site(model, tokenizer, fact):
    rows = edit_rows(tokenizer, fact, PREFIXES)
    layer = layout_of(model).layer(1)
    mlp = search_one(model, rows, FREE, layer.down.path)
    block = search_one(model, rows, FREE, layer.path)
    torch.testing.assert_close(mlp.shift, block.shift, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(mlp.base, block.base)


def test_a_bfloat16_model_is_searched_in_float32(tiny, tokenizer, fact):
    model = tiny("llama", dtype=torch.bfloat16)
    rows = edit_rows(tokenizer, fact, PREFIXES)
    found = search_one(model, rows, Search(steps=8, lr=0.1, stop=0.0))
    assert found.shift.dtype == found.base.dtype == torch.float32
    assert found.nll[0] < search_one(model, rows, Search(steps=1)).nll[0]


def test_two_searches_give_the_same_bits(model, tokenizer, fact):
    rows = edit_rows(tokenizer, fact, PREFIXES)
    first, second = search_one(model, rows, FREE), search_one(model, rows, FREE)
    assert torch.equal(first.shift, second.shift)
    assert first.nll == second.nll


class StopError(Exception):
    pass


class Impatient(Progress):
    """Breaks off at the first step."""

    def task(self, description, total, unit=""):
        return _Refusing()


class _Refusing:
    def __enter__(self):
        return self._advance

    def __exit__(self, *_):
        return None

    @staticmethod
    def _advance(_):
        raise StopError


def test_a_search_that_is_broken_off_leaves_no_hook_behind(model, tokenizer, fact):
    rows, before = edit_rows(tokenizer, fact, PREFIXES), state_digest(model)
    with pytest.raises(StopError):
        search_values(model, [rows], site_of(model), Search(), Impatient())
    assert state_digest(model) == before
    assert not attachments(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_no_number_is_refused_instead_of_called_done(model, tokenizer, fact):
    site = site_of(model)
    with torch.no_grad():
        model.get_parameter(f"{site_of(model, 2)}.weight").fill_(float("nan"))
    with pytest.raises(KeditError, match="not finite"):
        search_one(model, edit_rows(tokenizer, fact, PREFIXES), Search(), site)


# Models that pads between prefix and suffix would mislead.


def misled(family):
    """Return a float64 model for which a pad is not nothing, its window shorter than the rows below."""
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    usual = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    match family:
        case "a sliding window":
            heads = {"num_key_value_heads": 1, "intermediate_size": 24, "sliding_window": 6}
            model = MistralForCausalLM(MistralConfig(**shape, **usual, **heads))
        case "every other layer sliding":
            heads = {"num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8}
            model = Gemma2ForCausalLM(Gemma2Config(**shape, **usual, **heads, sliding_window=6))
        case "a window that its cache does not know":
            kinds = {"attention_types": [[["local", "global", "local"], 1]], "window_size": 6}
            config = GPTNeoConfig(
                **shape, **kinds, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24
            )
            model = GPTNeoForCausalLM(config)
        case "distances counted in places":
            config = MptConfig(d_model=16, n_layers=3, n_heads=2, vocab_size=300, max_seq_len=128)
            model = MptForCausalLM(config)
        case "a recurrent state":
            kinds = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
            state = {"mamba_d_state": 4, "mamba_dt_rank": 4, "num_key_value_heads": 1}
            config = JambaConfig(**shape, **usual, **kinds, **state, intermediate_size=24)
            model = JambaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3 / parameter.std())
    return model.double().eval().requires_grad_(False)


# The last ones compute in float32 somewhere, whatever the model's dtype.
MISLED = {
    "a sliding window": 1e-9,
    "every other layer sliding": 1e-4,
    "a window that its cache does not know": 1e-4,
    "distances counted in places": 1e-4,
    "a recurrent state": 1e-4,
}


@pytest.mark.parametrize("kind", MISLED)
def test_where_pads_would_mislead_the_search_is_that_of_plain_whole_forwards(kind, tokenizer):
    model, close = misled(kind), MISLED[kind]
    rows = edit_rows(tokenizer, FACTS[0], PREFIXES)
    assert len({row.lookup for row in rows.rewrites}) > 1
    assert max(len(row.ids) for row in rows.rewrites) > 6
    search = Search(steps=5, lr=0.05, clamp=0.6, decay=0.3, kl=0.5, stop=0.0)
    base, shift, nll, updates = plain_search(
        model, site_of(model), tokenizer, FACTS[0], rows, search
    )
    found = search_one(model, rows, search)
    torch.testing.assert_close(found.base[0], base, rtol=0, atol=close)
    torch.testing.assert_close(found.shift[0], shift, rtol=0, atol=close)
    assert found.nll[0] == pytest.approx(nll, abs=close)
    assert found.steps == (updates,)
    assert found.apart


@pytest.mark.parametrize("kind", MISLED)
def test_where_pads_would_mislead_edits_together_are_the_edits_one_by_one(kind, tokenizer):
    model, close = misled(kind), MISLED[kind]
    edits = [edit_rows(tokenizer, fact, PREFIXES[: n + 1]) for n, fact in enumerate(FACTS[:3])]
    search = Search(steps=5, lr=0.05, clamp=0.6, decay=0.3, kl=0.5, stop=0.0)
    together = search_values(model, edits, site_of(model), search, Progress())
    for number, rows in enumerate(edits):
        found = search_one(model, rows, search)
        torch.testing.assert_close(together.base[number], found.base[0], rtol=0, atol=close)
        torch.testing.assert_close(together.shift[number], found.shift[0], rtol=0, atol=close)
        assert together.nll[number] == pytest.approx(found.nll[0], abs=close)


def test_a_window_longer_than_every_row_misleads_nobody(tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 100}
    model = MistralForCausalLM(MistralConfig(**shape, **heads, initializer_range=0.3))
    model = model.double().eval().requires_grad_(False)
    rows = edit_rows(tokenizer, FACTS[0], PREFIXES)
    search = Search(steps=4, lr=0.05, stop=0.0)
    found = search_one(model, rows, search)
    assert not found.apart
    _, shift, nll, _ = plain_search(model, site_of(model), tokenizer, FACTS[0], rows, search)
    torch.testing.assert_close(found.shift[0], shift, rtol=0, atol=1e-9)
    assert found.nll[0] == pytest.approx(nll, abs=1e-9)


def test_ordinary_models_read_all_rows_together(model, tokenizer, fact):
    assert not search_one(model, edit_rows(tokenizer, fact, PREFIXES), FREE).apart


def test_a_model_that_gives_no_cache_back_is_read_whole(model, tokenizer, monkeypatch):
    rows = edit_rows(tokenizer, FACTS[0], PREFIXES)
    search = Search(steps=4, lr=0.05, stop=0.0)
    kept = search_one(model, rows, search)
    forward = model.forward

    @wraps(forward)
    def forgetful(**given):
        output = forward(**{**given, "use_cache": False})
        output.past_key_values = None
        return output

    monkeypatch.setattr(model, "forward", forgetful)
    found = search_one(model, rows, search)
    assert found.apart
    torch.testing.assert_close(found.shift, kept.shift, rtol=0, atol=1e-9)
    assert found.nll[0] == pytest.approx(kept.nll[0], abs=1e-9)


# Many edits, little memory: lots and parts, and edits that drop out.


def four_edits(tokenizer):
    return [edit_rows(tokenizer, fact, PREFIXES[: n % 3 + 1]) for n, fact in enumerate(FACTS)]


def stopping(model, edits, site, steps=12):
    """Return a search in which some edits are done in the middle and others are not."""
    options = {"lr": 0.1, "clamp": 0.5, "decay": 0.3, "kl": 0.5}
    losses = search_values(
        model, edits, site, Search(steps=steps // 2, stop=0.0, **options), Progress()
    ).nll
    return Search(steps=steps, stop=sorted(losses)[1], **options)


def assert_same(found, expected, close=1e-9):
    torch.testing.assert_close(found.shift, expected.shift, rtol=0, atol=close)
    torch.testing.assert_close(found.base, expected.base, rtol=0, atol=close)
    assert found.nll == pytest.approx(expected.nll, abs=close)
    assert found.steps == expected.steps


# Llama's norm computes in float32: sums of another shape may round to the next one there.
def closeness(model):
    return 1e-9 if model.config.model_type == "gpt2" else 1e-6


def test_with_edits_dropping_out_values_are_those_of_all_rows_to_the_end(
    model, tokenizer, monkeypatch
):
    edits, site = four_edits(tokenizer), site_of(model)
    search = stopping(model, edits, site)
    dropping = search_values(model, edits, site, search, Progress())
    assert len(set(dropping.steps)) > 1
    monkeypatch.setattr(Part, "only", lambda part, active: part)
    assert_same(dropping, search_values(model, edits, site, search, Progress()), closeness(model))


def test_rows_of_edits_that_are_done_are_in_no_later_forward(model, tokenizer):
    edits, site = four_edits(tokenizer), site_of(model)
    search, rows = stopping(model, edits, site), []
    steps = search_values(model, edits, site, search, Progress()).steps
    last = model.get_submodule(layout_of(model).layer(2).path)
    last.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append((args or (kwargs["hidden_states"],))[0].shape[0]),
        with_kwargs=True,
    )
    search_values(model, edits, site, search, Progress())
    of_edit = [len(set(edit.rewrites)) + 1 for edit in edits]
    of_edit = [
        count - (edit.rewrites[0].prompt == edit.anchor.ids)
        for count, edit in zip(of_edit, edits, strict=True)
    ]
    # The first forward of an edit is followed by one for each of its updates; the last is no update.
    ran = [
        sum(count for count, own in zip(of_edit, steps, strict=True) if own >= step)
        for step in range(search.steps)
    ]
    total, all_rows = sum(rows), sum(of_edit)
    assert sum(ran) < search.steps * all_rows
    # Reading prefixes, one forward of all layers, and the one that verifies the first part.
    assert sum(ran) <= total <= sum(ran) + 3 * all_rows


@pytest.mark.parametrize("memory", [1, 200_000])
def test_in_little_memory_values_are_those_of_all_edits_together(model, tokenizer, memory):
    edits, site = four_edits(tokenizer), site_of(model)
    search = stopping(model, edits, site)
    together = search_values(model, edits, site, search, Progress())
    assert [size.edits for size in together.sizes] == [4]
    cut = search_values(model, edits, site, search, Progress(), memory=memory)
    assert sum(size.edits for size in cut.sizes) == 4
    if memory == 1:
        assert cut.sizes == (Sizes(edits=1, rows=1),) * 4
    assert_same(cut, together, closeness(model))


def test_a_search_that_is_given_the_sizes_of_another_does_the_same_sums(model, tokenizer):
    edits, site = four_edits(tokenizer), site_of(model)
    search = stopping(model, edits, site)
    sizes = (Sizes(edits=3, rows=2), Sizes(edits=1, rows=5))
    first = search_values(model, edits, site, search, Progress(), sizes=sizes)
    assert first.sizes == sizes
    again = search_values(model, edits, site, search, Progress(), sizes=first.sizes)
    assert torch.equal(first.shift, again.shift)
    assert first.nll == again.nll


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["on a GPU", "on a CPU", "on Linux"],
)
def test_where_memory_does_not_suffice_lots_are_halved_and_values_stay(model, tokenizer, error):
    edits, site = four_edits(tokenizer), site_of(model)
    search = stopping(model, edits, site)
    together = search_values(model, edits, site, search, Progress())

    def full(_, args, kwargs):
        if kwargs["input_ids"].shape[0] > 2:
            raise error

    before = attachments(model)
    handle = model.register_forward_pre_hook(full, with_kwargs=True)
    cut = search_values(model, edits, site, search, Progress())
    assert all(size.rows < together.sizes[0].rows for size in cut.sizes)
    assert sum(size.edits for size in cut.sizes) == 4
    again = search_values(model, edits, site, search, Progress(), sizes=cut.sizes)
    handle.remove()
    assert_same(cut, together, closeness(model))
    assert torch.equal(cut.shift, again.shift)
    assert attachments(model) == before


def test_an_edit_for_which_no_memory_suffices_says_so(model, tokenizer, fact):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        search_one(model, edit_rows(tokenizer, fact, PREFIXES), FREE)


def test_many_rows_of_many_edits_are_cut_to_the_memory(model, tokenizer, fact):
    prefixes = [f"{'so ' * number}then. " for number in range(22)]
    edits = [edit_rows(tokenizer, fact, prefixes)] * 256
    sizes = [sizes_for(model, edits, 1, memory) for memory in (10**5, 10**6, 10**7, MEMORY)]
    assert [size.edits for size in sizes] == sorted(size.edits for size in sizes)
    assert [size.rows for size in sizes] == sorted(size.rows for size in sizes)
    assert sizes[0].edits < sizes[-1].edits == 256
    assert sizes_for(model, edits[:1], 1, MEMORY).rows == 23


# Two sites at once.


def plain_two(model, paths, tokenizer, request, rows, search, clamps, decays):
    """Return both shifts by the formulas of PMET's code, without its own stop rule."""
    seen = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _, __, out, path=path: seen.setdefault(path, out[0, rows.rewrites[0].lookup])
        )
        for path in paths
    ]
    whole_forward(model, rows.rewrites[0].ids)
    for handle in handles:
        handle.remove()
    bases = [seen[path] for path in paths]
    shifts = [torch.zeros_like(base, requires_grad=True) for base in bases]
    before = whole_forward(model, rows.anchor.ids)[rows.anchor.lookup].detach()
    adam = torch.optim.Adam(shifts, lr=search.lr)
    for step in range(search.steps):
        loss = 0.0
        for row in rows.rewrites:
            with shifted(model, paths[0], row.lookup, shifts[0]):
                own = plain_nll(model, paths[1], EditRows(rewrites=(row,), anchor=None), shifts[1])
            loss = loss + own / len(rows.rewrites)
        nll, place = loss, rows.anchor.lookup
        with (
            shifted(model, paths[0], place, shifts[0]),
            shifted(model, paths[1], place, shifts[1]),
        ):
            now = whole_forward(model, rows.anchor.ids)[place]
        loss = loss + search.kl * (now.exp() * (now - before)).sum()
        for shift, base, decay in zip(shifts, bases, decays, strict=True):
            loss = loss + decay * shift.norm() / base.norm() ** 2
        if step == search.steps - 1:
            return bases, [shift.detach() for shift in shifts], nll.item()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for shift, base, clamp in zip(shifts, bases, clamps, strict=True):
                shift.mul_((clamp * base.norm() / shift.norm()).clamp(max=1))
    raise AssertionError("not reached")


def test_two_sites_at_once_are_torchs_adam_on_plain_whole_forwards(model, tokenizer, fact):
    layer = layout_of(model).layer(1)
    paths = (layer.attention_out.path, layer.down.path)
    rows = edit_rows(tokenizer, fact, PREFIXES)
    search = Search(steps=6, lr=0.1, clamp=0.6, decay=0.3, kl=0.5, stop=0.0)
    clamps, decays = (0.3, 0.6), (0.3, 0.1)
    sites = [Site(path=paths[0], clamp=0.3), Site(path=paths[1], decay=0.1)]
    bases, shifts, nll = plain_two(model, paths, tokenizer, fact, rows, search, clamps, decays)
    found = search_shifts(model, [rows], sites, search, Progress())
    close = closeness(model)
    for number, clamp in enumerate(clamps):
        torch.testing.assert_close(found[number].base[0], bases[number], rtol=0, atol=1e-11)
        torch.testing.assert_close(found[number].shift[0], shifts[number], rtol=0, atol=close)
        assert found[number].nll[0] == pytest.approx(nll, abs=close)
        reach = float(found[number].shift.norm() / found[number].base.norm())
        assert reach <= clamp * (1 + 1e-12)


def test_the_norms_of_a_site_are_those_of_its_own_edits(model, tokenizer):
    edits, path = four_edits(tokenizer), site_of(model)
    norm = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    search = Search(steps=4, lr=1.0, clamp=1.0, decay=0.0, stop=0.0)
    found = search_values(model, edits, path, search, Progress(), norm, memory=1)
    torch.testing.assert_close(found.shift.norm(dim=1), norm, rtol=1e-9, atol=0)


# A model in which a layer hears more of those below than hidden states.


class Confiding(torch.nn.Module):
    """Passes one number of each row on behind the hidden states' back."""

    def __init__(self, block, told, listens):
        super().__init__()
        self.block, self.told, self.listens = block, told, listens

    def forward(self, hidden, *args, **kwargs):
        output = self.block(hidden, *args, **kwargs)
        if self.listens:
            return output * (1 + self.told.pop())
        self.told.append(output[:, :1, :1])
        return output


def test_where_layers_cannot_be_skipped_all_run_and_the_values_say_so(tiny, tokenizer, fact):
    model, told = tiny("gpt2"), []
    rows, site = edit_rows(tokenizer, fact, PREFIXES[:1]), site_of(model)
    search = Search(steps=4, lr=0.05, stop=0.0)
    assert search_one(model, rows, search).refusal == ""
    model.transformer.h[0] = Confiding(model.transformer.h[0], told, False)
    model.transformer.h[2] = Confiding(model.transformer.h[2], told, True)
    found = search_one(model, rows, search, site)
    assert "without its lower layers it raises IndexError" in found.refusal
    again = search_values(
        model, [rows] * 3, site, search, Progress(), memory=1
    )  # refused once, for all lots
    assert again.refusal == found.refusal
    torch.testing.assert_close(again.shift[2], found.shift[0], rtol=0, atol=1e-9)
    assert found.nll[0] < search_one(model, rows, Search(steps=1), site).nll[0]
