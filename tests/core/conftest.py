"""Tiny models, a tokenizer, and fake methods that core's tests edit with."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from attrs import frozen
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kedit_core import (
    Applied,
    Delta,
    Dense,
    Editor,
    EditRequest,
    LowRank,
    MethodInfo,
    Plugins,
    Run,
    SideMemory,
    TensorCache,
    hookimpl,
)
from kedit_core.methods import Kind
from kedit_core.plans import plan_from

PLAIN = ("the", "capital", "of", "is", "in", "a", "lies", "speaks", ".")
CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Quito", "Bern", "Riga")
CHAT = "{% for m in messages %}turn {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="session")
def tokenizer():
    vocabulary = {"<unk>": 0, "<end>": 1, "turn": 2}
    for word in (*PLAIN, *CITIES, *(f"land{n}" for n in range(40))):
        vocabulary[word] = len(vocabulary)
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="<unk>", eos_token="<end>", chat_template=CHAT
    )


def _gpt2(**changes) -> GPT2LMHeadModel:
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 64}
    plain = {"bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **plain, **changes}))


def _llama(**changes) -> LlamaForCausalLM:
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
    plain = {"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **plain, **changes}))


@pytest.fixture
def tiny() -> Callable:
    """Return what builds a seeded model: ``gpt2`` stores Conv1D matrices, ``llama`` Linear ones."""

    def build(family="llama", dtype=torch.float32, seed=0, **changes):
        torch.manual_seed(seed)
        model = {"gpt2": _gpt2, "llama": _llama}[family](**changes)
        return model.eval().to(dtype)

    return build


@pytest.fixture
def facts() -> Callable:
    """Return what makes requests about different lands."""

    def make(count, start=0):
        return [
            EditRequest(
                prompt="the capital of {} is",
                subject=f"land{n}",
                target_new=CITIES[n % 8],
                paraphrases=(f"land{n} speaks",),
            )
            for n in range(start, start + count)
        ]

    return make


@frozen(kw_only=True)
class Strength:
    """How strongly a fake method writes."""

    scale: float = 0.1
    rank: int = 1
    seed: int = 0
    dense: bool = False


def _noise(*shape, named: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(named, 16) % 2**40)
    return torch.randn(*shape, generator=generator)


def _seen(method) -> SimpleNamespace:
    """Return a record of what a method was asked and what state it found the model in."""
    return SimpleNamespace(batches=[], previous=[], states=[], configs=[], method=method)


def _note(seen, model, batch, previous, config) -> None:
    seen.batches.append(batch)
    seen.previous.append(tuple(previous))
    seen.configs.append(config)
    seen.states.append((model.training, any(p.requires_grad for p in model.parameters())))


def _writer(name: str, *, batched: bool) -> ModuleType:
    """Return a method that writes the weights of every layer, each in sight of the ones before."""
    module = ModuleType(name)
    module.seen = _seen(name)

    @hookimpl
    def method_info():
        return MethodInfo(
            name=name, summary="fake", kind="weights", batched=batched, config=Strength
        )

    @hookimpl
    def compute_delta(model, tokenizer, batch, config, previous, weights, progress):
        _note(module.seen, model, batch, previous, config)
        parts, keys = [], []
        with progress.task("writing", len(weights.layout.layers)) as advance:
            for layer in weights.layout.layers:
                with weights.temporarily(parts):
                    for request in batch.requests:
                        model(**tokenizer(request.prompt, return_tensors="pt"))
                    matrix = weights.matrix(layer.down.weight).float()
                out, into = matrix.shape
                named = [request.id for request in batch.requests]
                right = torch.cat([_noise(config.rank, into, named=one) for one in named])
                wanted = torch.cat([_noise(out, config.rank, named=one[::-1]) for one in named], 1)
                # What is written depends on what is there, as in every real method.
                left = config.scale * (wanted - matrix @ right.T)
                part = (
                    Dense(weight=layer.down.weight, update=left @ right)
                    if config.dense
                    else LowRank(weight=layer.down.weight, left=left, right=right)
                )
                parts.append(part)
                keys.append(right)
                advance(1)
        return Delta(
            method=name, requests=batch.requests, parts=parts, carry={"keys": torch.cat(keys)}
        )

    module.method_info, module.compute_delta = method_info, compute_delta
    return module


def _memory(name: str, *, removes: bool, layer: int, kind: Kind = "side-memory") -> ModuleType:
    """Return a memory of one vector per request, added to what a block returns."""
    module = ModuleType(name)
    module.seen = _seen(name)

    @hookimpl
    def method_info():
        return MethodInfo(
            name=name,
            summary="fake",
            kind=kind,
            batched=True,
            removes=removes,
            config=Strength,
        )

    @hookimpl
    def compute_delta(model, tokenizer, batch, config, previous, weights):
        _note(module.seen, model, batch, previous, config)
        assert removes or not batch.remove
        held = dict(previous[-1].parts[0].tensors) if previous else {}
        held = {one: vector for one, vector in held.items() if one not in batch.remove}
        for request in batch.requests:
            said = model(**tokenizer(request.prompt, return_tensors="pt")).logits[0, -1]
            noise = _noise(model.config.hidden_size, named=request.id)
            held[request.id] = config.scale * noise * said.float().std()
        at = weights.layout.layers[layer].path
        return Delta(method=name, requests=batch.requests, parts=[SideMemory(at=at, tensors=held)])

    @hookimpl
    def apply_delta(model, delta):
        part = delta.parts[0]
        added = torch.stack(list(part.tensors.values())).sum(0)

        def add(_, __, output):
            return output + added.to(output.dtype)

        return Applied(model.get_submodule(part.at).register_forward_hook(add).remove)

    module.method_info, module.compute_delta, module.apply_delta = (
        method_info,
        compute_delta,
        apply_delta,
    )
    return module


@pytest.fixture
def methods() -> dict[str, ModuleType]:
    """Return the fake methods by name; ``.seen`` of each records how it was called."""
    made = (
        _writer("writer", batched=False),
        _writer("batcher", batched=True),
        _memory("memory", removes=False, layer=-1),
        _memory("shrinking", removes=True, layer=0),
    )
    return {module.__name__: module for module in made}


@pytest.fixture
def fake_memory() -> Callable:
    """Return what makes a fake memory, or a method of another kind that is attached like one."""
    return _memory


@pytest.fixture
def plugins(methods) -> Plugins:
    found = Plugins()
    for module in methods.values():
        found.register(module)
    return found


@pytest.fixture
def edit_with(tiny, tokenizer, plugins, tmp_path) -> Callable:
    """Return what opens an editor on a fresh tiny model, the fake methods installed."""

    def build(method="writer", family="llama", model=None, config=None, **options):
        chosen = {name: options.pop(name) for name in ("dtype", "seed") if name in options}
        model = tiny(family, **chosen) if model is None else model
        options = {"plugins": plugins, "cache": TensorCache(tmp_path / "cache"), **options}
        return Editor(model, tokenizer, method, config, **options)

    return build


@pytest.fixture
def model_folder(tiny, tokenizer, tmp_path):
    """Return a folder with a tiny model and its tokenizer."""
    folder = tmp_path / "model"
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory) -> SimpleNamespace:
    """Return the folder of the runs that tests have made, and which there are: each is made once."""
    return SimpleNamespace(folder=tmp_path_factory.mktemp("runs"), made={})


@pytest.fixture
def run_of(model_folder, facts, plugins, tmp_path, monkeypatch, finished_runs) -> Callable:
    """Return what carries out a plan with the fake methods and returns the run's folder."""
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))

    def make(method="writer", count=4, name="run", model=model_folder, **changes):
        table = {"model": model, "requests": "facts", "method": method, **changes}
        key = json.dumps([table | {"model": ""}, count])
        if isinstance(model, Path) and key in finished_runs.made:
            shutil.copytree(finished_runs.made[key], tmp_path / name)
            _name_model(tmp_path / name, model)
            return tmp_path / name
        table["model"] = [str(one) for one in (model if isinstance(model, list) else [model])]
        Run(plan_from(table), tmp_path / name, plugins=plugins).carry_out(facts(count))
        if isinstance(model, Path):
            kept = finished_runs.folder / str(len(finished_runs.made))
            finished_runs.made[key] = shutil.copytree(tmp_path / name, kept)
        return tmp_path / name

    return make


def _name_model(run, model) -> None:
    """Let a run that was made elsewhere be one of this folder's model."""
    with closing(sqlite3.connect(run / "journal.sqlite")) as connection, connection:
        ((plan,),) = connection.execute("SELECT value FROM run WHERE name = 'plan'")
        changed = json.dumps({**json.loads(plan), "model": [str(model)]})
        connection.execute("UPDATE run SET value = ? WHERE name = 'plan'", (changed,))
        connection.execute("UPDATE cells SET model = ?", (str(model),))
        connection.execute("UPDATE originals SET model = ?", (str(model),))


@pytest.fixture
def logits(tokenizer) -> Callable:
    """Return what a model says to a few prompts."""

    def of(model):
        prompts = [f"the capital of land{n} is" for n in range(4)]
        with torch.no_grad():
            return model(**tokenizer(prompts, return_tensors="pt")).logits

    return of


@pytest.fixture
def state_of() -> Callable:
    """Return what tells everything about a model that an edit must leave as it was."""
    from kedit_core.digests import state_digest

    def of(model):
        hooks = [
            (path, name, tuple(found))
            for path, module in model.named_modules()
            for name, found in vars(module).items()
            if name.endswith(("hooks", "hooks_with_kwargs", "hooks_always_called"))
        ]
        modes = [module.training for module in model.modules()]
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        gradients = [None if p.grad is None else p.grad.sum().item() for p in model.parameters()]
        forwards = ["forward" in vars(module) for module in model.modules()]
        return state_digest(model), hooks, modes, wanted, gradients, forwards

    return of
