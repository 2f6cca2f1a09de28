"""Two small methods that keep the contract, and one that breaks it for every check."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from attrs import evolve, field, frozen

from kedit_core import (
    Applied,
    Delta,
    LowRank,
    MethodInfo,
    Plugins,
    Scope,
    SideMemory,
    encode,
    hookimpl,
)
from kedit_core.tokens import encode_target

# --- a writer: one rank-one update of the first layer's MLP ------------------------------------------


@frozen(kw_only=True)
class Strength:
    """How a fact is written."""

    steps: int = 25
    lr: float = 0.3
    enough: float = 0.1
    ridge: float = 1e-3


def _inputs(model, path: str, ids) -> torch.Tensor:
    """Return what a module reads, (rows, tokens, in_features)."""
    seen = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model(input_ids=ids)
    finally:
        hook.remove()
    return seen[0].float()


def _noise(model) -> torch.Tensor:
    """Return texts of random tokens, (rows, tokens)."""
    chance = torch.Generator().manual_seed(0)
    return torch.randint(1, model.config.vocab_size, (96, 16), generator=chance)


def _shift(model, path: str, place: int, prompt, target, config: Strength) -> torch.Tensor:
    """Return what must be added to a module's output at one token for the target, (out_features,)."""
    ids = torch.tensor([[*prompt.ids, *target]])
    shift = torch.zeros(model.config.hidden_size, requires_grad=True)

    def add(_, __, output):
        at = torch.zeros(output.shape[1], 1)
        at[place] = 1
        return output + (at * shift).to(output.dtype)

    hook = model.get_submodule(path).register_forward_hook(add)
    adam = torch.optim.Adam([shift], lr=config.lr)
    try:
        with torch.enable_grad():
            for _ in range(config.steps):
                logits = model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1].float()
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
                if loss < config.enough:
                    break
                adam.zero_grad()
                loss.backward()
                adam.step()
    finally:
        hook.remove()
    return shift.detach()


def write(model, tokenizer, batch, config, previous, weights) -> Delta:
    """Return W' = W + δ (C⁻¹k)ᵀ / (kᵀC⁻¹k); C is the second moment of the keys of random texts."""
    down = weights.layout.down_of(0)
    (request,) = batch.requests
    prompt = encode(tokenizer, [request.prompt])[0]
    target = encode_target(tokenizer, prompt, request.joiner + request.target_new)
    place = prompt.last_token_of(request.subject_span)
    keys = _inputs(model, down.path, _noise(model)).flatten(0, 1)  # (tokens, in_features)
    keys = torch.cat([keys, *(delta.carry["keys"] for delta in previous)])
    moment = keys.T @ keys / len(keys) + config.ridge * torch.eye(keys.shape[1])
    key = _inputs(model, down.path, torch.tensor([prompt.ids]))[0, place]  # (in_features,)
    along = torch.linalg.solve(moment, key)
    left = _shift(model, down.path, place, prompt, target, config)[:, None]
    part = LowRank(weight=down.weight, left=left, right=along[None] / (along @ key))
    return Delta(
        method="writer", requests=batch.requests, parts=[part], carry={"keys": key[None].clone()}
    )


# --- a memory: at the last block, a state near a key is replaced by the key's value ------------------


@frozen(kw_only=True)
class Reach:
    """How near a state must be to a key."""

    radius: float = field(default=0.4)


def _last(model) -> str:
    return "transformer.h.1" if hasattr(model, "transformer") else "model.layers.1"


@contextmanager
def _states(model, *, first: bool = True) -> Iterator[list[torch.Tensor]]:
    """Collect what the last block returns; ``first``: before any memory there changes it."""
    seen = []
    keep = lambda _, __, output: seen.append(output[0].float())  # noqa: E731
    hook = model.get_submodule(_last(model)).register_forward_hook(keep, prepend=first)
    try:
        yield seen
    finally:
        hook.remove()


def _read(model, tokenizer, prompt: str, *, first: bool = True) -> torch.Tensor:
    """Return the last block's states of a prompt, (tokens, width)."""
    with torch.no_grad(), _states(model, first=first) as seen:
        model(input_ids=torch.tensor([encode(tokenizer, [prompt])[0].ids]))
    return seen[0]


def _nearest(states, keys) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far each state is from the nearest key, relative to it, and which one: (tokens,)."""
    far = torch.cdist(states.float()[None], keys[None])[0] / keys.norm(dim=-1)
    return far.min(-1)


def remember(model, tokenizer, batch, config, previous) -> Delta:
    """Return the memory: for each request its last token's state, and a state that says the target."""
    held = dict(previous[-1].parts[0].tensors) if previous else {}
    held = {name: one for name, one in held.items() if name.partition("/")[0] not in batch.remove}
    for request in batch.requests:
        prompt = encode(tokenizer, [request.prompt])[0]
        target = encode_target(tokenizer, prompt, request.joiner + request.target_new)
        key = _read(model, tokenizer, request.prompt)[-1]
        rows = model.get_output_embeddings().weight.float()  # (vocabulary, width)
        says = rows[target[0]] - rows.mean(0)
        held[f"{request.id}/key"] = key
        held[f"{request.id}/value"] = 2 * key.norm() * says / says.norm()
    part = SideMemory(at=_last(model), tensors=held, settings={"radius": config.radius})
    return Delta(method="memory", requests=batch.requests, parts=[part])


def _slots(delta) -> tuple[list[str], torch.Tensor, torch.Tensor, float]:
    """Return request ids, keys (requests, width), values (requests, width) and radius."""
    (part,) = delta.parts
    ids = [name.partition("/")[0] for name in part.tensors if name.endswith("/key")]
    keys, values = (
        torch.stack([part.tensors[f"{i}/{kind}"] for i in ids]) for kind in ("key", "value")
    )
    return ids, keys, values, part.settings["radius"]


def attach(model, delta) -> Applied:
    """Replace states near a key by its value, and leave all others bit for bit."""
    _, keys, values, radius = _slots(delta)

    def replace(_, __, output):
        far, which = _nearest(output.flatten(0, -2), keys)
        new = values[which].to(output.dtype).view_as(output)
        return torch.where((far < radius).view(*output.shape[:-1], 1), new, output)

    return Applied(model.get_submodule(delta.parts[0].at).register_forward_hook(replace).remove)


def classify(model, tokenizer, delta, prompts, *, first: bool = True) -> Scope:
    """Say which key, if any, the states of each prompt come near."""
    ids, keys, _, radius = _slots(delta)
    probability, requests = [], []
    for prompt in prompts:
        far, which = _nearest(_read(model, tokenizer, prompt, first=first), keys)
        nearest = far.argmin()
        probability.append(0.5 ** (far[nearest] / radius))
        requests.append(ids[which[nearest]] if far[nearest] < radius else None)
    return Scope(probability=torch.stack(probability), requests=requests)


# --- as plugins --------------------------------------------------------------------------------------

WRITER = MethodInfo(
    name="writer",
    summary="one row",
    kind="weights",
    continual=True,
    needs={"subject"},
    config=Strength,
)
MEMORY = MethodInfo(
    name="memory",
    summary="keys",
    kind="side-memory",
    batched=True,
    continual=True,
    removes=True,
    config=Reach,
)


def writer(compute: Callable = write, apply: Callable | None = None, **card) -> ModuleType:
    """Return the writer as a plugin, with another computation, application or card."""
    module = ModuleType("writer")

    @hookimpl
    def method_info():
        return evolve(WRITER, **card)

    @hookimpl
    def compute_delta(model, tokenizer, batch, config, previous, weights):
        return compute(model, tokenizer, batch, config, previous, weights)

    @hookimpl
    def apply_delta(model, delta, weights):
        return apply(model, delta, weights)

    module.method_info, module.compute_delta = method_info, compute_delta
    if apply is not None:
        module.apply_delta = apply_delta
    return module


def memory(
    compute: Callable = remember, apply: Callable = attach, scope: Callable = classify, **card
) -> ModuleType:
    """Return the memory as a plugin, with another computation, application, scope or card."""
    module = ModuleType("memory")

    @hookimpl
    def method_info():
        return evolve(MEMORY, **card)

    @hookimpl
    def compute_delta(model, tokenizer, batch, config, previous):
        return compute(model, tokenizer, batch, config, previous)

    @hookimpl
    def apply_delta(model, delta):
        return apply(model, delta)

    @hookimpl
    def scope_classify(model, tokenizer, delta, prompts):
        return scope(model, tokenizer, delta, prompts)

    for hook in (method_info, compute_delta, apply_delta, scope_classify):
        setattr(module, hook.__name__, hook)
    return module


# --- one that breaks the contract, for every check ---------------------------------------------------


@frozen(kw_only=True)
class Bad:
    """A method that breaks one sentence of the contract.

    Attributes:
        name: what it does.
        check: that must fail on it.
        says: how the check complains, a regular expression.
        plugins: what makes it; takes a folder on ``sys.path`` for those that need a file.
    """

    name: str
    check: str
    says: str
    plugins: Callable[[Path], Plugins]


def only(*modules: ModuleType) -> Plugins:
    """Return plugins with nothing but these modules in them."""
    plugins = Plugins()
    for module in modules:
        plugins.register(module)
    return plugins


def _bad(check: str, says: str, module: Callable[[], ModuleType], name: str) -> Bad:
    return Bad(name=name, check=f"test_{check}", says=says, plugins=lambda _: only(module()))


FILE = """
{first}
from kedit_core import MethodInfo, hookimpl

@hookimpl
def method_info():
    return MethodInfo(name="{name}", summary="s", kind="weights")

@hookimpl
def compute_delta({arguments}):
    return None

@hookimpl
def open_model(source):
    {opening}

@hookimpl
def read_requests(source):
    {reading}

@hookimpl
def register_commands(cli):
    {registering}

@hookimpl
def evaluate(batch, metrics):
    {judging}
"""

KEPT = {
    "first": "",
    "name": "from_file",
    "arguments": "batch",
    "opening": "return 'mine' if source.startswith('mine:') else None",
    "reading": "return [] if source.startswith('mine:') else None",
    "registering": "cli.command()(print)",
    "judging": "return [name for name in metrics if name == 'mine']",
}


def from_file(folder: Path, **changes: str) -> Plugins:
    """Return plugins with one that lies in a file, found through an entry point ``from_file``."""
    # Stands before the real one, which takes seconds to import.
    (folder / "transformers.py").write_text("")
    (folder / "from_file.py").write_text(FILE.format(**{**KEPT, **changes}))
    entry_point = EntryPoint("from_file", "from_file", "kedit")
    with patch("kedit_core.plugins.entry_points", lambda group: [entry_point]):
        sys.modules.pop("from_file", None)
        return Plugins.installed()


@frozen(kw_only=True)
class NoDefault:
    """Settings of which one must be given."""

    radius: float


@frozen(kw_only=True)
class Growing:
    """Settings of which one grows whenever it is read."""

    radius: float = field(default=0.4, converter=lambda radius: 2 * radius)


def _plugin_methods() -> Iterator[Bad]:
    check = "test_the_plugin_can_be_used"
    for name, says, options in (
        ("says another name", "its entry point is 'from_file'", {"name": "other"}),
        ("misspells an argument", "no argument 'bacth'", {"arguments": "bacth"}),
        ("gives an argument a default", "a default", {"arguments": "batch=None"}),
    ):
        yield Bad(name=name, check=check, says=says, plugins=partial(from_file, **options))
    light = "test_importing_the_plugin_imports_no_torch"
    model = "test_a_source_of_somebody_else_is_left_alone"
    file = "test_a_request_source_of_somebody_else_is_left_alone"
    commands = "test_registering_commands_imports_no_torch"
    metrics = "test_only_metrics_that_were_asked_for_are_computed"
    score = "__import__('kedit_core').Score(metric='mine', value=0.0)"
    for name, check, says, options in (
        ("imports a library", light, "imports transformers", {"first": "import transformers"}),
        ("opens anything", model, "returns str", {"opening": "return source"}),
        ("says no too late", model, "imports transformers", {"opening": "import transformers"}),
        ("reads anything", file, r"gives \[\]", {"reading": "return []"}),
        (
            "helps too early",
            commands,
            "imports transformers",
            {"registering": "import transformers"},
        ),
        ("gives all it knows", metrics, "gives mine", {"judging": f"return [{score}]"}),
    ):
        yield Bad(name=name, check=check, says=says, plugins=partial(from_file, **options))
    check, without = "the_configuration_is_strict", partial(memory, config=NoDefault)
    yield _bad(check, "lacks a default", without, "a setting without a default")
    yield _bad(check, "reads .* back", partial(memory, config=Growing), "a setting that grows")


def _after(compute: Callable, then: Callable) -> Callable:
    """Return a computation that does something else as well: ``then(model)``."""

    def both(model, *rest):
        delta = compute(model, *rest)
        then(model)
        return delta

    return both


def _touching() -> Iterator[Bad]:
    """Yield methods that leave the model otherwise than they found it."""

    def weight(model):
        next(model.parameters()).data[0, 0] += 1

    def buffer(model):
        next(model.buffers()).add_(1)

    def hook(model):
        model.register_forward_hook(lambda *_: None)

    def mode(model):
        model.train()

    def gradients(model):
        next(model.parameters()).requires_grad_(True)

    for then, says in (
        (weight, "weights"),
        (buffer, "buffers"),
        (hook, "hooks"),
        (mode, "mode"),
        (gradients, "requires_grad"),
    ):
        made = partial(writer, _after(write, then))
        yield _bad("computing_leaves_the_model_as_it_was", says, made, f"changes {then.__name__}")


def hurried(model, tokenizer, *rest):
    """Scale a weight while computing, and scale it back only when nothing was raised."""
    weight = model.get_input_embeddings().weight.data
    weight *= 2
    try:
        delta = write(model, tokenizer, *rest)
    except ValueError:
        raise
    weight /= 2
    return delta


def lucky(*arguments):
    """Add noise from the global random state."""
    delta = write(*arguments)
    (part,) = delta.parts
    return evolve(delta, parts=[evolve(part, left=part.left + 1e-3 * torch.randn(part.left.shape))])


def _silent() -> Iterator[Bad]:
    def prints(_):
        sys.stdout.write("step 1\n")

    def prints_in_c(_):
        os.write(2, b"step 1\n")

    def warns(_):
        warnings.warn("this may take long", stacklevel=1)

    def writes(_):
        Path("keys.npy").write_bytes(b"1")

    for then, says in (
        (prints, "it printed 'step 1"),
        (prints_in_c, "it printed 'step 1"),
        (warns, "it warned: this may take long"),
        (writes, "it wrote keys.npy"),
    ):
        made = partial(memory, _after(remember, then))
        yield _bad("computing_and_applying_are_silent", says, made, then.__name__)


def counting() -> ModuleType:
    """Return a memory that grows more careless with every edit that it ever made."""
    calls = []

    def remember_worse(model, tokenizer, batch, config, previous):
        calls.append(batch)
        config = evolve(config, radius=config.radius + 1e-3 * len(calls))
        return remember(model, tokenizer, batch, config, previous)

    return memory(remember_worse)


def _with_tensors(delta, change: Callable):
    (part,) = delta.parts
    return evolve(delta, parts=[evolve(part, tensors=change(dict(part.tensors)))])


def not_a_number(*arguments):
    """Return a memory with a hole in it."""
    return _with_tensors(
        remember(*arguments),
        lambda tensors: {name: one / 0 * 0 for name, one in tensors.items()},
    )


def elsewhere(*arguments):
    """Return a memory beside a module that no model has."""
    delta = remember(*arguments)
    return evolve(delta, parts=[evolve(delta.parts[0], at="transformer.h.9")])


def endless_carry(*arguments):
    """Return a delta whose carry overflowed."""
    delta = write(*arguments)
    return evolve(delta, carry={"keys": delta.carry["keys"] * float("inf")})


def _computing_methods() -> Iterator[Bad]:
    yield from _touching()
    check, says = "computing_leaves_the_model_as_it_was_when_it_raises", "interrupted, .*weights"
    yield _bad(check, says, partial(writer, hurried), "cleans up only when all went well")
    check, says = "computing_is_deterministic", "different deltas"
    yield _bad(check, says, partial(writer, lucky), "draws from the global random state")
    yield from _silent()
    check, says = "no_state_is_kept_outside_deltas_cache_and_config", "undone shows in the next"
    yield _bad(check, says, counting, "counts its calls")
    check = "the_delta_fits_and_is_finite"
    for compute, says in ((not_a_number, "not finite"), (elsewhere, "no module 'transformer.h.9'")):
        yield _bad(check, says, partial(memory, compute), compute.__name__)
    yield _bad(check, "carry keys", partial(writer, endless_carry), "endless_carry")
    yield _bad(
        check, "not of kind side-memory", partial(writer, kind="side-memory"), "another kind"
    )


# --- applied otherwise than the contract says ---


def too_weak(*arguments):
    """Write a thousandth of what is needed."""
    delta = write(*arguments)
    (part,) = delta.parts
    return evolve(delta, parts=[evolve(part, left=part.left / 1000)])


def without_undo(model, delta) -> Applied:
    """Attach the memory for good."""
    attach(model, delta)
    return Applied(lambda: None)


def subtracted(model, delta, weights) -> Applied:
    """Add the update, and subtract it again: rounding stays behind."""
    (part,) = delta.parts
    matrix = weights.matrix(part.weight)
    matrix += (part.left @ part.right).to(matrix.dtype)

    def undo():
        weights.matrix(part.weight).sub_((part.left @ part.right).to(matrix.dtype))

    return Applied(undo)


def with_a_module(model, delta) -> Applied:
    """Keep the keys in a module of their own, inside the model."""
    block = model.get_submodule(delta.parts[0].at)
    block.add_module("keys", torch.nn.Linear(2, 2))
    applied = attach(model, delta)

    def undo():
        applied.undo()
        del block.keys

    return Applied(undo)


def from_outside() -> ModuleType:
    """Return a memory whose values never get into its delta."""
    values = {}

    def remember_here(*arguments):
        delta = remember(*arguments)
        whole = dict(delta.parts[0].tensors)
        values[delta.requests[0].id] = whole
        return _with_tensors(delta, lambda tensors: {n: t.clone() for n, t in tensors.items()})

    def attach_here(model, delta):
        own = values.pop(delta.requests[0].id, None)
        if own is None:
            return Applied(lambda: None)
        return attach(model, _with_tensors(delta, lambda _: own))

    return memory(remember_here, attach_here)


def in_float32(model, delta) -> Applied:
    """Turn the whole model into float32 to be able to attach."""
    kind = model.dtype
    model.to(torch.float32)
    applied = attach(model, delta)

    def undo():
        applied.undo()
        model.to(kind)

    return Applied(undo)


def _applying_methods() -> Iterator[Bad]:
    check = "the_target_becomes_likely"
    yield _bad(check, "stays behind", partial(writer, too_weak), "too_weak")
    check, says = "neighbours_stay_within_the_tolerance", "neighbours lost"
    far = partial(memory, partial(with_radius, 100.0))
    yield _bad(check, says, far, "answers everything the same")
    check = "undo_is_exact"
    yield _bad(check, "other hooks", partial(memory, apply=without_undo), "without_undo")
    yield _bad(check, "other weights", partial(writer, apply=subtracted), "subtracted")
    check, says = "names_in_the_model_never_change", "changed the names .*keys.weight"
    yield _bad(check, says, partial(memory, apply=with_a_module), "with_a_module")
    check, says = "a_saved_delta_gives_a_fresh_model_the_same_logits", "prompts get other logits"
    yield _bad(check, says, from_outside, "keeps values outside its delta")
    check, says = "a_bfloat16_model_can_be_edited", "holds torch.float32"
    yield _bad(check, says, partial(memory, apply=in_float32), "in_float32")


def with_radius(radius: float, model, tokenizer, batch, config, previous):
    """Remember with another radius."""
    return remember(model, tokenizer, batch, evolve(config, radius=radius), previous)


# --- several edits ---


def newest_only(model, tokenizer, batch, config, previous):
    """Keep the last request of a batch."""
    last = evolve(batch, requests=batch.requests[-1:])
    return evolve(remember(model, tokenizer, last, config, previous), requests=batch.requests)


def short_memory(*arguments):
    """Keep the three newest requests."""
    return _with_tensors(remember(*arguments), lambda tensors: dict(list(tensors.items())[-6:]))


def without_previous(model, tokenizer, batch, config, previous):
    """Begin a new memory with every batch."""
    return remember(model, tokenizer, batch, config, ())


def without_remove(model, tokenizer, batch, config, previous):
    """Drop nothing."""
    return remember(model, tokenizer, evolve(batch, remove=()), config, previous)


def appended(model, tokenizer, batch, config, previous, weights):
    """Carry the keys of all edits so far."""
    delta = write(model, tokenizer, batch, config, previous[-1:], weights)
    earlier = [one.carry["keys"] for one in previous[-1:]]
    return evolve(delta, carry={"keys": torch.cat([*earlier, delta.carry["keys"]])})


def summed(model, tokenizer, batch, config, previous, weights):
    """Carry the sum of the second moments of all edits so far."""
    delta = write(model, tokenizer, batch, config, (), weights)
    keys = delta.carry["keys"]
    return evolve(
        delta, carry={"moment": sum((one.carry["moment"] for one in previous[-1:]), keys.T @ keys)}
    )


def remembering_undone() -> ModuleType:
    """Return a memory that keeps its own list of what it was asked."""
    asked = []

    def remember_all(model, tokenizer, batch, config, previous):
        asked.extend(batch.requests)
        own = evolve(batch, requests=asked)
        return evolve(remember(model, tokenizer, own, config, ()), requests=batch.requests)

    return memory(remember_all)


def _sequence_methods() -> Iterator[Bad]:
    check, says = "several_requests_hold_together", "not held: 'The capital of France is'"
    yield _bad(check, says, partial(memory, newest_only), "newest_only")
    check, says = "a_continual_method_holds_many_edits", "3 of 10 edits hold"
    yield _bad(check, says, partial(memory, short_memory), "short_memory")
    check = "carry_is_of_this_batch_alone"
    yield _bad(check, "has shape", partial(writer, appended), "appended")
    yield _bad(check, "holds the earlier edit's as well", partial(writer, summed), "summed")
    check, says = "what_was_undone_leaves_no_trace", "shows in the next"
    yield _bad(check, says, remembering_undone, "remembers what was undone")
    check, says = "a_memory_holds_the_earlier_edits_too", "not held"
    yield _bad(check, says, partial(memory, without_previous), "without_previous")
    check, says = "a_memory_lets_go_of_one_edit", "says otherwise"
    yield _bad(check, says, partial(memory, without_remove), "without_remove")


# --- another scope than the forward pass has ---


def _with_scope(name: str, change: Callable) -> Callable:
    def scope(model, tokenizer, delta, prompts):
        return change(classify(model, tokenizer, delta, prompts))

    scope.__name__ = name
    return partial(memory, scope=scope)


def of_the_batch(found):
    """Return probabilities that sum to one over the batch."""
    return evolve(found, probability=found.probability / found.probability.sum())


def _scope_methods() -> Iterator[Bad]:
    check = "scope_is_a_probability_and_a_request"
    logs = _with_scope("log", lambda found: evolve(found, probability=found.probability.log()))
    yield _bad(check, "are no probabilities", logs, "log probabilities")
    named = _with_scope(
        "named", lambda found: evolve(found, requests=["me" for _ in found.requests])
    )
    yield _bad(check, "no request me", named, "invents a request")
    shared = _with_scope("shared", of_the_batch)
    yield _bad("scope_of_a_prompt_is_its_own", "moves by", shared, "shares out over the batch")
    late = partial(memory, scope=partial(classify, first=False))
    yield _bad("scope_needs_no_applied_delta", "once the delta is applied", late, "looks too late")
    flat = _with_scope(
        "flat", lambda found: evolve(found, probability=torch.ones_like(found.probability))
    )
    yield _bad("scope_is_higher_inside_than_outside", "of an unrelated prompt", flat, "always sure")
    wide = partial(memory, scope=of_another_radius)
    yield _bad(
        "scope_is_what_a_forward_pass_decides", "is answered as", wide, "a radius of its own"
    )


def of_another_radius(model, tokenizer, delta, prompts):
    """Decide with twice the radius of the forward pass."""
    (part,) = delta.parts
    wider = evolve(part, settings={"radius": 3 * part.settings["radius"]})
    return classify(model, tokenizer, evolve(delta, parts=[wider]), prompts)


BAD = (
    *_plugin_methods(),
    *_computing_methods(),
    *_applying_methods(),
    *_sequence_methods(),
    *_scope_methods(),
)
