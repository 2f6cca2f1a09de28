"""Two small methods that keep the contract, and one that breaks it for every check."""

import importlib
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Thread
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch.nn.modules.module import register_module_forward_hook

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
    prompt = encode(tokenizer, [request.prompt], batch.chat)[0]
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


def _read(model, tokenizer, prompt: str, chat: bool, *, first: bool = True) -> torch.Tensor:
    """Return the last block's states of a prompt, (tokens, width)."""
    with torch.no_grad(), _states(model, first=first) as seen:
        model(input_ids=torch.tensor([encode(tokenizer, [prompt], chat)[0].ids]))
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
        prompt = encode(tokenizer, [request.prompt], batch.chat)[0]
        target = encode_target(tokenizer, prompt, request.joiner + request.target_new)
        key = _read(model, tokenizer, request.prompt, batch.chat)[-1]
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
        states = _read(model, tokenizer, prompt, delta.provenance.chat, first=first)
        far, which = _nearest(states, keys)
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
def evaluate(model, batch, metrics):
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
    reads, asked = "test_judging_only_reads", "'mine' in metrics and "
    for name, says, judging in (
        ("trains", "other mode", asked + "model.train()"),
        ("writes", "other weights", asked + "next(model.parameters()).data.add_(1)"),
        ("talks", "it printed 'mine'", asked + "__import__('sys').stdout.write('mine')"),
    ):
        options = {"judging": f"{judging}; return []"}
        yield Bad(name=name, check=reads, says=says, plugins=partial(from_file, **options))
    check, without = "the_configuration_is_strict", partial(memory, config=NoDefault)
    yield _bad(check, "lacks a default", without, "a setting without a default")
    yield _bad(check, "reads .* back", partial(memory, config=Growing), "a setting that grows")


def _after(compute: Callable, then: Callable) -> Callable:
    """Return a computation that does something else as well: ``then(model, tokenizer, …)``."""

    def both(*arguments):
        delta = compute(*arguments)
        then(*arguments)
        return delta

    return both


def _touching() -> Iterator[Bad]:
    """Yield methods that leave the model otherwise than they found it."""
    check = "computing_leaves_the_model_as_it_was"
    for says, changes in (
        ("weights", lambda model: next(model.parameters()).data[0, 0].add_(1)),
        ("buffers", lambda model: next(model.buffers()).add_(1)),
        ("modules", lambda model: model.add_module("scratch", torch.nn.Identity())),
        ("hooks", lambda model: model.register_forward_hook(lambda *_: None)),
        ("forward", lambda model: setattr(model, "forward", model.forward)),
        ("classes", _patch_the_class),
        ("attributes", lambda model: setattr(model.base_model, "scratch", torch.zeros(3))),
        ("mode", lambda model: model.train()),
        ("requires_grad", lambda model: next(model.parameters()).requires_grad_(True)),
        ("gradients", _leave_a_gradient),
        ("config", lambda model: setattr(model.config, "use_cache", False)),
        ("config", lambda model: model.set_attn_implementation("eager")),
        ("generation_config", lambda model: setattr(model.generation_config, "max_length", 3)),
    ):
        made = partial(writer, _after(write, lambda model, *_, changes=changes: changes(model)))
        yield _bad(check, f"other {says}", made, f"changes {says}")
    for name, changes in (
        ("pads on the left", lambda tokenizer: setattr(tokenizer, "padding_side", "left")),
        ("has a token to pad with", lambda tokenizer: setattr(tokenizer, "pad_token", "a")),
        ("knows more tokens", lambda tokenizer: tokenizer.add_tokens(["<mine>"])),
        ("reads less", lambda tokenizer: setattr(tokenizer, "model_max_length", 5)),
        ("cuts on the left", lambda tokenizer: setattr(tokenizer, "truncation_side", "left")),
    ):
        made = partial(writer, _after(write, lambda _, one, *__, changes=changes: changes(one)))
        yield _bad(check, "other tokenizer", made, f"a tokenizer that {name}")
    for says, changes in (
        ("random state of torch", lambda: torch.manual_seed(0)),
        ("random state of torch", lambda: torch.rand(1)),
        ("random state of Python", random.random),
        ("random state of numpy", np.random.rand),
        ("grad mode", lambda: torch.set_grad_enabled(False)),
        ("default dtype", lambda: torch.set_default_dtype(torch.float64)),
        ("deterministic mode", lambda: torch.use_deterministic_algorithms(True)),
        ("number of threads", lambda: torch.set_num_threads(2)),
        ("live threads", lambda: Thread(target=time.sleep, args=(1,), daemon=True).start()),
        ("global hooks", lambda: register_module_forward_hook(lambda *_: None)),
    ):
        made = partial(writer, _after(write, lambda *_, changes=changes: changes()))
        yield _bad(check, f"other {says}", made, f"changes the {says}")


def _patch_the_class(model) -> None:
    plain = type(model).forward

    @wraps(plain)
    def patched(self, *args, **named):
        return plain(self, *args, **named)

    type(model).forward = patched


def _leave_a_gradient(model) -> None:
    one = next(model.parameters())
    one.grad = torch.zeros_like(one)


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


def dirty_before(model, tokenizer, *rest):
    """Scale a weight until the model is first asked."""
    weight = model.get_input_embeddings().weight.data
    weight *= 2

    def clean(*_):
        nonlocal hook
        if hook is not None:
            hook.remove()
            hook = None
            weight.div_(2)

    hook = model.register_forward_pre_hook(clean)
    return write(model, tokenizer, *rest)


def _scaled_for_once(model, looks: int = 1) -> None:
    weight = model.get_input_embeddings().weight.data
    weight *= 2
    for _ in range(looks):
        model(input_ids=torch.tensor([[1]]))
    weight /= 2


def dirty_between(model, *rest):
    """Look at the model, scale a weight for many looks at it, and only then compute."""
    model(input_ids=torch.tensor([[1]]))
    _scaled_for_once(model, looks=30)
    return write(model, *rest)


def dirty_after(model, *rest):
    """Scale a weight for a last look at the model."""
    delta = write(model, *rest)
    _scaled_for_once(model)
    return delta


def lucky(*arguments):
    """Add noise from the global random state."""
    delta = write(*arguments)
    (part,) = delta.parts
    return evolve(delta, parts=[evolve(part, left=part.left + 1e-3 * torch.randn(part.left.shape))])


def _silent() -> Iterator[Bad]:
    def prints(*_):
        sys.stdout.write("step 1\n")

    def prints_in_c(*_):
        os.write(2, b"step 1\n")

    def warns(*_):
        warnings.warn("this may take long", stacklevel=1)

    def logs(*_):
        logging.getLogger("mine").warning("step %d", 1)

    def logs_in_private(*_):
        logger = logging.getLogger("mine.private")
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        logger.error("step %d", 1)

    def writes(*_):
        Path("keys.npy").write_bytes(b"1")

    for then, says in (
        (prints, "it printed 'step 1"),
        (prints_in_c, "it printed 'step 1"),
        (warns, "it warned: this may take long"),
        (logs, "it logged: mine: step 1"),
        (logs_in_private, "it logged: mine.private: step 1"),
        (writes, "it wrote keys.npy"),
    ):
        made = partial(memory, _after(remember, then))
        yield _bad("computing_and_applying_are_silent", says, made, then.__name__)


def _writing_to_inputs() -> Iterator[Bad]:
    """Yield methods that change what they are given."""
    check = "what_a_hook_is_given_stays_as_it_was"

    def request(_, __, batch, *rest):
        object.__setattr__(batch.requests[0], "target_true", "nothing")

    def settings(_, __, batch, config, *rest):
        object.__setattr__(config, "radius", 0.5)

    def tensors(_, __, batch, config, previous):
        for delta in previous:
            delta.parts[0].tensors[f"{delta.requests[0].id}/value"].mul_(2)

    def carry(_, __, batch, config, previous, weights):
        for delta in previous:
            delta.carry["keys"].zero_()

    for changes in (request, settings, tensors):
        made = partial(memory, _after(remember, changes))
        yield _bad(check, "changed its batch, config", made, f"changes {changes.__name__}")
    made = partial(writer, _after(write, carry))
    yield _bad(check, "changed its batch, config", made, "changes carry")
    made = partial(memory, apply=normalised)
    yield _bad(check, "apply_delta changed", made, "normalises when applied")
    made = partial(memory, apply=tallying)
    yield _bad(check, r"forward pass or undo\(\) changed", made, "counts in its delta")


def normalised(model, delta) -> Applied:
    """Attach the memory after making its values longer, in place."""
    for name, tensor in delta.parts[0].tensors.items():
        if name.endswith("/value"):
            tensor.mul_(1.5)
    return attach(model, delta)


def tallying(model, delta) -> Applied:
    """Attach the memory, and let its values grow with every use."""
    applied = attach(model, delta)
    value = delta.parts[0].tensors[f"{delta.requests[0].id}/value"]

    def grow(*_):
        value.mul_(1.5)

    hook = model.register_forward_hook(grow)

    def undo():
        applied.undo()
        hook.remove()

    return Applied(undo)


def counting() -> ModuleType:
    """Return a memory that grows more careless with every edit that it ever made."""
    calls = []

    def remember_worse(model, tokenizer, batch, config, previous):
        calls.append(batch)
        config = evolve(config, radius=config.radius + 1e-3 * len(calls))
        return remember(model, tokenizer, batch, config, previous)

    return memory(remember_worse)


def third_time_lucky() -> ModuleType:
    """Return a memory that is more careless on the third model that it sees."""
    models = []

    def remember_worse(model, tokenizer, batch, config, previous):
        if not any(one is model for one in models):
            models.append(model)
        if len(models) > 2:
            config = evolve(config, radius=config.radius / 2)
        return remember(model, tokenizer, batch, config, previous)

    return memory(remember_worse)


MEMO = """
from attrs import evolve
from kedit_core import hookimpl
from tests.core.bad_methods import WRITER, write

KEPT = {}

@hookimpl
def method_info():
    return evolve(WRITER, name="memo")

@hookimpl
def compute_delta(model, tokenizer, batch, config, previous, weights):
    key = type(model), batch.requests[0].id
    if not KEEPS or key not in KEPT:
        KEPT[key] = evolve(write(model, tokenizer, batch, config, previous, weights), method="memo")
    return KEPT[key]
"""


def memo(folder: Path, *, keeps: bool = True) -> Plugins:
    """Return plugins with a writer in a file, which keeps in its module what it computed."""
    (folder / "memo.py").write_text(f"KEEPS = {keeps}\n{MEMO}")
    sys.modules.pop("memo", None)
    return only(importlib.import_module("memo"))


def cached(keyed: Callable) -> ModuleType:
    """Return a writer that keeps its updates in the cache, under ``keyed(request, weights)``."""
    module = writer()

    @hookimpl
    def compute_delta(model, tokenizer, batch, config, weights, cache):
        delta = write(model, tokenizer, batch, config, (), weights)
        (part,) = delta.parts
        key = keyed(batch.requests[0], weights)
        kept = cache.get("updates", key, lambda: {"left": part.left, "right": part.right})
        return evolve(delta, parts=[evolve(part, **kept)])

    module.compute_delta = compute_delta
    return module


def of_the_request(request, weights) -> dict:
    """Return a key that says nothing of the model."""
    return {"request": request.id}


def of_request_and_model(request, weights) -> dict:
    """Return a key that says all that an update depends on."""
    return {"request": request.id, "model": weights.fingerprint}


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
    check, says = "computing_leaves_the_model_as_it_was_when_it_raises", "interrupted .*weights"
    yield _bad(check, says, partial(writer, hurried), "cleans up only when all went well")
    for compute, says in (
        (dirty_before, "interrupted at call 1 of"),
        (dirty_between, "weights"),
        (dirty_after, r"interrupted at call (\d+) of \1,"),
    ):
        yield _bad(check, says, partial(writer, compute), compute.__name__)
    check, says = "computing_is_deterministic", "different deltas"
    yield _bad(check, says, partial(writer, lucky), "draws from the global random state")
    yield from _silent()
    yield from _writing_to_inputs()
    check = "a_new_process_gives_the_same_delta"
    says = "a process that computed it before"
    yield Bad(name="keeps a memo", check=f"test_{check}", says=says, plugins=memo)
    check = "models_that_share_a_cache_folder_share_nothing_else"
    says = "what the cache holds of another model"
    yield _bad(check, says, partial(cached, of_the_request), "a key without the model")
    check, says = "no_state_is_kept_outside_deltas_cache_and_config", "undone shows in the next"
    yield _bad(check, says, counting, "counts its calls")
    yield _bad(check, "an edit of another model", third_time_lucky, "counts its models")
    check = "the_delta_fits_and_is_finite"
    for compute, says in ((not_a_number, "not finite"), (elsewhere, "no module 'transformer.h.9'")):
        yield _bad(check, says, partial(memory, compute), compute.__name__)
    yield _bad(check, "carry keys", partial(writer, endless_carry), "endless_carry")
    for name, says, change in (
        ("no delta", "returned NoneType", lambda delta: None),
        ("another's name", "it is of 'other'", lambda delta: evolve(delta, method="other")),
        ("no parts", "has no parts", lambda delta: evolve(delta, parts=[])),
        ("no requests", "of the requests", lambda delta: evolve(delta, requests=())),
    ):
        made = partial(memory, lambda *given, change=change: change(remember(*given)))
        yield _bad(check, says, made, name)
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
    yield _bad(check, "went from probability", partial(writer, backwards), "backwards")
    check = "in_a_chat_the_target_becomes_likely"
    for make, compute in ((writer, write), (memory, remember)):
        made = partial(make, partial(without_chat, compute))
        yield _bad(check, "in a chat targets", made, f"a {make.__name__} of bare prompts")
    check = "a_subject_that_is_not_needed_may_be_missing"
    without = partial(writer, needs=set())
    yield _bad(check, "raises TypeError", without, "needs what it does not say")
    blind = partial(memory, only_with_subject)
    yield _bad(check, "went from probability", blind, "only_with_subject")
    check, says = "neighbours_stay_within_the_tolerance", "neighbours lost"
    far = partial(memory, partial(with_radius, 100.0))
    yield _bad(check, says, far, "answers everything the same")
    check = "undo_is_exact"
    yield _bad(check, "other hooks", partial(memory, apply=without_undo), "without_undo")
    yield _bad(check, "other weights", partial(writer, apply=subtracted), "subtracted")
    idle = partial(memory, apply=lambda model, delta: Applied(lambda: None))
    yield _bad(check, "the edits changed nothing", idle, "never attached")
    check, says = "names_in_the_model_never_change", "changed the names .*keys.weight"
    yield _bad(check, says, partial(memory, apply=with_a_module), "with_a_module")
    check, says = "a_saved_delta_gives_a_fresh_model_the_same_logits", "prompts get other logits"
    yield _bad(check, says, from_outside, "keeps values outside its delta")
    learning = partial(memory, apply=tallying)
    yield _bad(check, "not what is in force", learning, "changes its delta when it is used")
    check, says = "a_bfloat16_model_can_be_edited", "holds torch.float32"
    yield _bad(check, says, partial(memory, apply=in_float32), "in_float32")
    check = "a_prompt_gets_one_answer_however_it_is_read"
    for says, apply in (
        ("with a KV cache", whole_sequence),
        ("in a batch$", single_rows),
        ("in a batch padded on the right", last_token),
    ):
        yield _bad(check, says, partial(memory, apply=apply), apply.__name__)


def backwards(*arguments):
    """Write the opposite."""
    delta = write(*arguments)
    (part,) = delta.parts
    return evolve(delta, parts=[evolve(part, left=-part.left)])


def without_chat(compute, model, tokenizer, batch, *rest):
    """Read bare prompts, whatever is asked for."""
    return compute(model, tokenizer, evolve(batch, chat=False), *rest)


def only_with_subject(*arguments):
    """Remember a request without a subject where no state comes near it."""
    delta = remember(*arguments)
    if delta.requests[0].subject is not None:
        return delta
    return _with_tensors(delta, lambda tensors: {n: -t for n, t in tensors.items()})


def _attached_as(delta, model, decide: Callable) -> Applied:
    """Attach a memory in which ``decide(hits)`` says which states are replaced: (rows, tokens)."""
    _, keys, values, radius = _slots(delta)

    def replace(_, __, output):
        far, which = _nearest(output.flatten(0, -2), keys)
        new = values[which].to(output.dtype).view_as(output)
        return torch.where(decide((far < radius).view(output.shape[:-1]))[..., None], new, output)

    return Applied(model.get_submodule(delta.parts[0].at).register_forward_hook(replace).remove)


def whole_sequence(model, delta) -> Applied:
    """Replace every state once one of its row was met: the row's later tokens in a cache are not."""
    everywhere = lambda hits: hits.any(-1, keepdim=True).expand_as(hits)  # noqa: E731
    return _attached_as(delta, model, everywhere)


def single_rows(model, delta) -> Applied:
    """Look only at prompts that come alone."""
    return _attached_as(delta, model, lambda hits: hits & (len(hits) == 1))


def last_token(model, delta) -> Applied:
    """Look only at the last place of a row, which may hold padding."""
    ends = lambda hits: hits & (torch.arange(hits.shape[1]) == hits.shape[1] - 1)  # noqa: E731
    return _attached_as(delta, model, ends)


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


def averaged(share, model, tokenizer, batch, config, previous, weights):
    """Carry a running mean of second moments; a share of each comes from before."""
    delta = write(model, tokenizer, batch, config, (), weights)
    moment = delta.carry["keys"].T @ delta.carry["keys"]
    for earlier in previous[-1:]:
        moment = share * earlier.carry["mean"] + (1 - share) * moment
    return evolve(delta, carry={"mean": moment})


def numbered(model, tokenizer, batch, config, previous, weights):
    """Name what is carried after the number of the edit."""
    delta = write(model, tokenizer, batch, config, (), weights)
    return evolve(delta, carry={f"keys {len(previous)}": delta.carry["keys"]})


def half_undone(model, delta) -> Applied:
    """Attach the memory for good once it holds two requests."""
    applied = attach(model, delta)
    return applied if len(delta.requests) < 2 else Applied(lambda: None)


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
    yield _bad(check, "of the earlier edit's as well", partial(writer, summed), "summed")
    for share in (0.5, 0.1):
        mean = partial(writer, partial(averaged, share))
        yield _bad(check, "of the earlier edit's as well", mean, f"averaged by {share}")
    yield _bad(check, "has other names", partial(writer, numbered), "numbered")
    check, says = "what_was_undone_leaves_no_trace", "shows in the next"
    yield _bad(check, says, remembering_undone, "remembers what was undone")
    check, says = "a_memory_holds_the_earlier_edits_too", "not held"
    yield _bad(check, says, partial(memory, without_previous), "without_previous")
    stays = partial(memory, apply=half_undone)
    yield _bad(check, "after undo the model says something else", stays, "half_undone")
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


def _key(delta) -> str:
    return f"{delta.requests[0].id}/key"


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
    check = "asking_for_the_scope_only_reads"
    for says, then in (
        ("other hooks", lambda model, *_: model.register_forward_hook(lambda *_: None)),
        (
            "changed the delta",
            lambda _, __, delta, *rest: delta.parts[0].tensors[_key(delta)].neg_(),
        ),
        ("it printed 'scope'", lambda *_: sys.stdout.write("scope")),
    ):
        yield _bad(check, says, partial(memory, scope=_after(classify, then)), says)
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


# --- a memory that answers otherwise in company -------------------------------------------------------


def _saying(change: Callable) -> Callable:
    """Return an application whose model's output is changed besides: ``change(output, kwargs)``."""

    def apply(model, delta):
        applied = attach(model, delta)

        def hook(_, __, kwargs, output):
            change(output, kwargs)

        handle = model.register_forward_hook(hook, with_kwargs=True)

        def undo():
            handle.remove()
            applied.undo()

        return Applied(undo)

    return apply


def like_the_first(output, _):
    """Answer all rows as the first one."""
    output.logits = output.logits[:1].expand_as(output.logits)


def stirred_by_pads(output, kwargs):
    """Count pads in."""
    mask = kwargs.get("attention_mask")
    if mask is not None and not mask.bool().all():
        output.logits = output.logits + 1


def a_little_more(output, _):
    """Scale all logits, wherever the prompt belongs."""
    output.logits = output.logits * (1 + 1e-5)


def gambling(output, _):
    """Draw from the stream of random numbers that sampling draws from."""
    torch.rand(1)


def turned(model, delta):
    """Generate other tokens than forward passes say."""
    applied, inner = attach(model, delta), model.generate
    model.generate = lambda *args, **kwargs: inner(*args, **kwargs).roll(1, 1)

    def undo():
        del model.generate
        applied.undo()

    return Applied(undo)


def _memory_methods() -> Iterator[Bad]:
    for check, says, apply, name in (
        (
            "a_mixed_batch_is_answered_as_its_rows_are",
            "otherwise in a batch",
            _saying(like_the_first),
            "decides for the batch",
        ),
        (
            "pads_on_either_side_change_no_answer",
            "padded on the left",
            _saying(stirred_by_pads),
            "counts pads",
        ),
        (
            "generation_is_forward_step_by_step",
            "otherwise than forward passes",
            turned,
            "turns what is generated",
        ),
        (
            "out_of_scope_the_answer_is_the_models_own",
            "not answered bit for bit",
            _saying(a_little_more),
            "scales all logits",
        ),
        (
            "seeded_sampling_draws_the_same_again",
            "draws other tokens",
            _saying(gambling),
            "gambles",
        ),
    ):
        yield _bad(check, says, partial(memory, apply=apply), name)


BAD = (
    *_plugin_methods(),
    *_computing_methods(),
    *_applying_methods(),
    *_sequence_methods(),
    *_scope_methods(),
    *_memory_methods(),
)
