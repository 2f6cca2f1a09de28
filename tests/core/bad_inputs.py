"""Bad inputs as data: what somebody does, and what kedit must say to it.

``tests/core/test_bad_input.py`` demands the message, the exit code and that nothing changed;
``tests/benchmarks/bad_inputs.py`` prints the whole list.
"""

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import disk_offload
from attrs import evolve, frozen
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from kedit_core import Editor, EditRequest, KeditError, LowRank, SideMemory, TensorCache
from kedit_core.cli import main
from kedit_core.delta_files import load_deltas, save_deltas
from kedit_core.digests import digest
from kedit_core.models import open_with_transformers

METHODS = {
    "push": '''
"""Pushes a layer towards one token, by as much as it is told."""
import os, signal
from attrs import field, frozen, validators
from kedit_core import MethodInfo, hookimpl


@frozen(kw_only=True)
class Where:
    layer: int = field(default=-1, validator=validators.ge(-1))


@frozen(kw_only=True)
class Settings:
    strength: float = field(default=50.0, validator=validators.gt(0))
    where: Where = field(factory=Where)
    weight: str = ""
    waits: bool = False
    seed: int = 0


@hookimpl
def method_info():
    return MethodInfo(
        name="push", summary="pushes facts", kind="weights", needs={"subject"}, config=Settings
    )


@hookimpl
def compute_delta(model, tokenizer, batch, config, weights, cache):
    import torch
    from kedit_core import Delta, LowRank

    if config.waits and batch.step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    (request,) = batch.requests
    down = weights.layout.layers[config.where.layer].down
    weight = config.weight or down.weight
    out_features, in_features = weights.matrix(weight).shape
    target = tokenizer(request.target_new, add_special_tokens=False)["input_ids"][0]
    key = {"target": target, "model": weights.fingerprint}

    def row():
        return {"row": model.get_output_embeddings().weight[target].detach().float()}

    left = cache.get("rows", key, row)["row"][:, None]
    left = left if len(left) == out_features else torch.ones(out_features, 1)
    right = torch.ones(1, in_features) * config.strength / in_features
    part = LowRank(weight=weight, left=left, right=right)
    return Delta(method="push", requests=batch.requests, parts=[part])
''',
    "note": '''
"""A memory of one vector per request, added to what the last block returns."""
from attrs import frozen
from kedit_core import MethodInfo, hookimpl


@frozen(kw_only=True)
class Settings:
    scale: float = 0.1


@hookimpl
def method_info():
    return MethodInfo(
        name="note", summary="notes facts", kind="side-memory", batched=True, config=Settings
    )


@hookimpl
def compute_delta(model, batch, config, previous, weights):
    import torch
    from kedit_core import Delta, SideMemory

    held = dict(previous[-1].parts[0].tensors) if previous else {}
    for request in batch.requests:
        held[request.id] = torch.full((model.config.hidden_size,), config.scale)
    at = weights.layout.layers[-1].path
    return Delta(method="note", requests=batch.requests, parts=[SideMemory(at=at, tensors=held)])


@hookimpl
def apply_delta(model, delta):
    from kedit_core import Applied

    part = delta.parts[0]
    added = sum(part.tensors.values())
    hook = model.get_submodule(part.at).register_forward_hook(lambda _, __, out: out + added)
    return Applied(hook.remove)
''',
}

FACT = {"prompt": "the capital of {} is", "subject": "land0", "target_new": "Rome"}
CITIES = ("Paris", "Rome", "Oslo", "Lima", "Bern", "Riga")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
}

Action = list[str] | Callable[[], object]
"""What somebody does: a command line, or a call of the library."""


@frozen(kw_only=True)
class Answer:
    """What came back, and what it left behind.

    Attributes:
        code: exit code; of a library call 2 when it raised a KeditError.
        out: printed to stdout.
        err: printed to stderr; of a library call what the command line would print.
        changed: files that are new, gone or different.
        edited: whether a model that the action had in hand has other weights now.
    """

    code: int
    out: str
    err: str
    changed: tuple[str, ...]
    edited: bool = False


@frozen(kw_only=True)
class BadInput:
    """One thing that goes wrong.

    Attributes:
        group: part of the list.
        name: what somebody did.
        make: prepares it in a scene and returns the action.
        says: regular expression that the answer matches from its beginning.
        code: exit code.
        writes: files that are there afterwards, relative to the scene.
    """

    group: str
    name: str
    make: "Callable[[Scene], Action]"
    says: str
    code: int = 2
    writes: tuple[str, ...] = ()


class Scene:
    """A folder with a tiny model, its tokenizer, two methods, a request file and a delta file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.watched: list[nn.Module] = []

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def out(self) -> Path:
        return self.folder / "made.delta"

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def edit(self, *more: object, **fact: str | None) -> list[str]:
        """Return the command line that makes the one edit, with other words where given."""
        asked = {**FACT, **fact}
        options = {"--prompt": "prompt", "--subject": "subject", "--target": "target_new"}
        said = [
            word
            for option, name in options.items()
            if asked[name] is not None
            for word in (option, str(asked[name]))
        ]
        own = ["edit", self.model, "--method", "push", *said, "--out", self.out]
        return [str(word) for word in (*own, *more)]

    def requests(self, content: str | bytes, *more: object) -> list[str]:
        """Return the command line that makes the edits of a file with this content."""
        path = self.file("requests.jsonl", content)
        words = ("edit", self.model, "--method", "push", "--requests", path, "--out", self.out)
        return [str(word) for word in (*words, *more)]

    def load(self, path: Path) -> list[str]:
        """Return the command line that judges the model with a delta file in force."""
        asked = self.file("requests.jsonl", json.dumps(FACT))
        words = ("evaluate", self.model, "--delta", path, "--requests", asked)
        return [str(word) for word in words]

    def delta(self, name: str = "good.delta", **fact: str) -> Path:
        """Return a delta file that the editor made on a model of this scene."""
        editor = self.editor()
        editor.edit(EditRequest(**{**FACT, **fact}))
        editor.save(self.folder / name)
        return self.folder / name

    def editor(self, method: str = "push", config: Any = None, **options: Any) -> Editor:
        """Return an editor of the model, whose weights are watched."""
        cache = TensorCache(self.folder / "cache")
        editor = Editor.from_pretrained(self.model, method, config, cache=cache, **options)
        self.watched.append(editor.model)
        return editor

    def edit_of(self, model: nn.Module, config: Any = None) -> Callable[[], object]:
        """Return the call that edits a model which somebody opened himself."""
        self.watched.append(model)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.model)
        editor = Editor(model, tokenizer, "push", config, cache=TensorCache(self.folder / "cache"))
        return partial(editor.edit, EditRequest(**FACT))

    def opened(self) -> GPT2LMHeadModel:
        model, _ = open_with_transformers(str(self.model), None, None)
        assert isinstance(model, GPT2LMHeadModel)
        return model


def build(folder: Path) -> None:
    """Make a scene: done once, then copied for each case."""
    vocabulary = {"<unk>": 0, "<end>": 1}
    for word in ("the", "capital", "of", "is", *CITIES, *(f"land{n}" for n in range(8))):
        vocabulary[word] = len(vocabulary)
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="<unk>", eos_token="<end>"
    )
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
    sizes["vocab_size"] = len(vocabulary)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    save(model, folder / "model")
    tokenizer.save_pretrained(folder / "model")


def save(model: nn.Module, folder: Path) -> None:
    """Write a model over what is in a folder, without transformers' bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def install(folder: Path) -> None:
    """Install the methods of this page, as pip would, in a folder that belongs on ``sys.path``."""
    for name, code in METHODS.items():
        info = folder / f"kedit_bad_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"kedit_bad_{name}.py").write_text(code)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: kedit-bad-{name}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[kedit]\n{name} = kedit_bad_{name}\n")


def answer(case: BadInput, scene: Scene) -> Answer:
    """Do it, and return what came back and what changed."""
    action = case.make(scene)
    files, weights = _files(scene.folder), [_state(model) for model in scene.watched]
    code, out, err = _called(action) if callable(action) else ran(action)
    after = _files(scene.folder)
    changed = {path for path in files.keys() | after.keys() if files.get(path) != after.get(path)}
    edited = [_state(model) for model in scene.watched] != weights
    return Answer(code=code, out=out, err=err, changed=tuple(sorted(changed)), edited=edited)


def ran(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command line here and return its exit code and its two streams."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _default_warnings():
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def _called(call: Callable[[], object]) -> tuple[int, str, str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            call()
        except KeditError as error:
            return 2, "", f"kedit: {error}\n"
        except KeyboardInterrupt:
            return 130, "", ""
        except subprocess.CalledProcessError as end:
            return end.returncode, end.stdout, end.stderr
    return 0, "", "".join(f"kedit: warning: {one.message}\n" for one in told)


@contextlib.contextmanager
def _default_warnings():
    """Show warnings as Python does by itself, where tests make errors of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield


def _files(folder: Path) -> dict[str, str]:
    """Return the digest of every file but those of the cache, which every edit may fill."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("cache", "offload")
    }


def _state(model: nn.Module) -> list[tuple[str, str]]:
    """Return the bits of every parameter that has any."""
    return [
        (name, "meta" if one.device.type == "meta" else digest(one.data))
        for name, one in model.named_parameters()
    ]


# --- how each is made --------------------------------------------------------------------------


def changed_config(**changes: object) -> Callable[[Scene], Action]:
    """Return an edit of a model whose config.json says something else."""

    def make(scene: Scene) -> Action:
        path = scene.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return scene.edit()

    return make


def other_model(build_one: Callable[[], nn.Module]) -> Callable[[Scene], Action]:
    """Return an edit of a folder that holds a model of another kind."""

    def make(scene: Scene) -> Action:
        save(build_one(), scene.model)
        return scene.edit()

    return make


def without(pattern: str) -> Callable[[Scene], Action]:
    """Return an edit of a model folder that lacks some files."""

    def make(scene: Scene) -> Action:
        for path in scene.model.glob(pattern):
            path.unlink()
        return scene.edit()

    return make


def lacking_weights(scene: Scene) -> Action:
    stored = scene.model / "model.safetensors"
    tensors = load_file(stored)
    kept = {name: one for name, one in tensors.items() if "h.1.mlp.c_proj" not in name}
    save_file(kept, stored, metadata={"format": "pt"})
    return scene.edit()


def bytes_changed(change: Callable[[bytes], bytes]) -> Callable[[Scene], Action]:
    """Return the loading of a delta file whose bytes were changed."""

    def make(scene: Scene) -> Action:
        path = scene.delta()
        path.write_bytes(change(path.read_bytes()))
        return scene.load(path)

    return make


def rewritten(change: Callable[[list, dict], None]) -> Callable[[Scene], Action]:
    """Return the loading of a delta file whose description or tensors were changed."""

    def make(scene: Scene) -> Action:
        path = scene.delta()
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = json.loads(header["kedit"])
        change(said["deltas"], tensors)
        save_file(tensors, path, metadata={"kedit": json.dumps(said)})
        return scene.load(path)

    return make


def replaced(**changes: object) -> Callable[[Scene], Action]:
    """Return the loading of a file whose delta is another one under an id of its own."""

    def make(scene: Scene) -> Action:
        (delta,) = load_deltas(scene.delta())
        save_deltas([evolve(delta, **changes)], scene.folder / "good.delta")
        return scene.load(scene.folder / "good.delta")

    return make


def memory_of_weights(scene: Scene) -> Action:
    path = scene.delta()
    (delta,) = load_deltas(path)
    made_for = evolve(delta.provenance, base={"": scene.editor().weights.base_digests("")})
    parts = [SideMemory(at="", tensors={})]
    save_deltas([evolve(delta, parts=parts, provenance=made_for)], path)
    scene.watched.clear()
    return scene.load(path)


def wrong_model(scene: Scene) -> Action:
    path = scene.delta()
    stored = scene.model / "model.safetensors"
    tensors = load_file(stored)
    down = next(name for name in tensors if name.endswith("h.1.mlp.c_proj.weight"))
    save_file({**tensors, down: tensors[down] + 1}, stored, metadata={"format": "pt"})
    return scene.load(path)


def same_delta_twice(scene: Scene) -> Action:
    (delta,) = load_deltas(scene.delta())
    save_deltas([delta, delta], scene.folder / "good.delta")
    return scene.load(scene.folder / "good.delta")


def same_file_twice(scene: Scene) -> Action:
    path = scene.delta()
    return [*scene.load(path), "--delta", str(path)]


def weights_out_of_order(scene: Scene) -> Action:
    editor = scene.editor()
    for subject, city in (("land0", "Rome"), ("land1", "Oslo")):
        editor.edit(EditRequest(**{**FACT, "subject": subject, "target_new": city}))
    path = scene.folder / "turned.delta"
    save_deltas(editor.deltas[::-1], path)
    scene.watched.clear()
    return scene.load(path)


def memories_out_of_order(scene: Scene) -> Action:
    editor = scene.editor("note")
    first = editor.edit(EditRequest(**FACT))
    second = editor.edit(EditRequest(**{**FACT, "subject": "land1"}))
    path = scene.folder / "turned.delta"
    save_deltas([second, first], path)
    editor.close()
    return partial(scene.editor("note").load, path)


def full_disk(scene: Scene) -> Action:
    """Return an edit in a process that may write files of one kilobyte, over an older delta file."""
    older = scene.delta("made.delta").read_bytes()
    code = (
        "import resource, sys; from kedit_core.cli import main;"
        "sys.path.insert(0, sys.argv[1]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); main(sys.argv[2:])"
    )
    site = next(path for path in sys.path if (Path(path) / "kedit_bad_push.py").exists())
    words = scene.edit("--config", scene.file("push.toml", "[where]\nlayer = 0\n"))
    assert len(older) > 1024

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code, site, *words], capture_output=True, text=True, check=False
        )
        raise subprocess.CalledProcessError(done.returncode, code, done.stdout, done.stderr)

    return run


def cache_below_a_file(scene: Scene) -> Action:
    cache = TensorCache(scene.file("file", "") / "cache")
    editor = Editor.from_pretrained(scene.model, "push", cache=cache)
    return partial(editor.edit, EditRequest(**FACT))


def damaged_cache(scene: Scene) -> Action:
    scene.delta()
    for path in (scene.folder / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)
    editor = scene.editor()
    scene.watched.clear()
    return partial(editor.edit, EditRequest(**FACT))


def interrupted(scene: Scene) -> Action:
    lines = [json.dumps({**FACT, "subject": f"land{n}"}) for n in range(3)]
    return scene.requests("\n".join(lines), "--set", "waits=true")


def already_said(scene: Scene) -> Action:
    (said,) = scene.editor().complete([FACT["prompt"].replace("{}", "land0")])
    scene.watched.clear()
    return scene.edit(target_new=said.split()[0])


def too_long(scene: Scene) -> Action:
    return scene.edit(prompt="the " * 40 + "capital of {} is")


def judged_too_long(scene: Scene) -> Action:
    words = scene.load(scene.delta())
    scene.file("requests.jsonl", json.dumps({**FACT, "prompt": "the " * 40 + "{} is"}))
    return words


def no_tokens_for(word: str) -> Callable[[Scene], Action]:
    """Return an edit with a tokenizer that drops a word."""

    def make(scene: Scene) -> Action:
        path = scene.model / "tokenizer.json"
        nothing = {"type": "Replace", "pattern": {"String": word}, "content": ""}
        path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": nothing}))
        return scene.edit()

    return make


def foreign_tokenizer(scene: Scene) -> Action:
    path = scene.model / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["vocab"]["Rome"] = 4000
    path.write_text(json.dumps(rules))
    return scene.edit()


def on_meta(scene: Scene) -> Action:
    config = scene.opened().config
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    return scene.edit_of(model)


def offloaded(scene: Scene) -> Action:
    model = scene.opened()
    disk_offload(model, offload_dir=scene.folder / "offload", execution_device="cpu")
    return scene.edit_of(model)


class Params4bit(nn.Parameter):
    """Stands for the packed parameters of a quantiser."""


def quantised(dtype: torch.dtype, kind: type[nn.Parameter]) -> Callable[[Scene], Action]:
    """Return an edit of a model whose down-projections are of a quantiser's kind."""

    def make(scene: Scene) -> Action:
        model = scene.opened()
        for name, one in list(model.named_parameters()):
            if name.endswith("mlp.c_proj.weight"):
                module = model.get_submodule(name.rpartition(".")[0])
                module.weight = kind(one.detach().to(dtype), requires_grad=False)
        return scene.edit_of(model)

    return make


def tied(scene: Scene) -> Action:
    return scene.edit_of(scene.opened(), {"weight": "lm_head.weight"})


def encoder() -> nn.Module:
    return BertForMaskedLM(BertConfig(**SIZES))


def translator() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, vocab_size=64))


def pictures() -> nn.Module:
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=16))


def headless() -> nn.Module:
    return LlamaModel(LlamaConfig(**SIZES))


def at(source: str) -> Callable[[Scene], Action]:
    """Return an edit of a model that lies elsewhere."""
    return lambda scene: [source if word == str(scene.model) else word for word in scene.edit()]


def single_file(scene: Scene) -> Action:
    return at(str(scene.file("model.gguf", "x")))(scene)


def device(name: str) -> Callable[[Scene], Action]:
    return lambda scene: scene.edit("--device", name)


def setting(*words: str) -> Callable[[Scene], Action]:
    """Return an edit with ``--set`` before each word."""
    return lambda scene: scene.edit(*(one for word in words for one in ("--set", word)))


def config_file(name: str, content: str) -> Callable[[Scene], Action]:
    return lambda scene: scene.edit("--config", scene.file(name, content))


def asked(**fact: str | None) -> Callable[[Scene], Action]:
    return lambda scene: scene.edit(**fact)


def line(**changes: object) -> Callable[[Scene], Action]:
    """Return the edits of a file whose second line is changed; None leaves a field out."""
    record = {name: one for name, one in {**FACT, **changes}.items() if one is not None}
    return lambda scene: scene.requests(f"{json.dumps(FACT)}\n{json.dumps(record)}\n")


def lines(content: str | bytes) -> Callable[[Scene], Action]:
    return lambda scene: scene.requests(content)


def command(*words: str) -> Callable[[Scene], Action]:
    return lambda scene: list(words)


def forged(described: list, _: dict) -> None:
    described[0]["requests"][0]["target_new"] = "Oslo"


def without_base(described: list, _: dict) -> None:
    described[0]["provenance"]["base"] = {}


def with_empty_base(described: list, _: dict) -> None:
    base = described[0]["provenance"]["base"]
    described[0]["provenance"]["base"] = {path: {} for path in base}


def odd_provenance(described: list, _: dict) -> None:
    described[0]["provenance"]["after"] = 5


def no_parts(described: list, _: dict) -> None:
    del described[0]["parts"]


def not_finite(_: list, tensors: dict) -> None:
    tensors["0/part/0/left"][0] = torch.nan


def other_format(path: bytes) -> bytes:
    return path.replace(rb"\"format\": \"2\"", rb"\"format\": \"9\"")


def low_rank(out_features: int, in_features: int) -> LowRank:
    left, right = torch.ones(out_features, 1), torch.ones(1, in_features)
    return LowRank(weight="transformer.h.1.mlp.c_proj.weight", left=left, right=right)


# --- the list ------------------------------------------------------------------------------------

RECORD = json.dumps(FACT)
_FILE = r"kedit: \S*requests\.jsonl"
_DELTA = r"kedit: \S*\.delta: "
_MODEL = r"kedit: \S*/model: "
_QUANTISED = r"kedit: .*c_proj.weight: is quantised or no plain parameter "
_OTHER = _DELTA + "was not made for this model: .*"
_INTERRUPTED = "kedit: interrupted; nothing was left half done$"


def _group(group: str, *rows: tuple[Any, ...]) -> tuple[BadInput, ...]:
    return tuple(
        BadInput(group=group, name=name, make=make, says=says, **(more[0] if more else {}))
        for name, make, says, *more in rows
    )


FINE = {"code": 0, "writes": ("made.delta",)}

CASES: tuple[BadInput, ...] = (
    *_group(
        "command line",
        (
            "no command of that name",
            command("edti"),
            r"kedit: no such command 'edti'; did you mean 'edit'\? see kedit --help$",
        ),
        ("an option left out", command("edit", "m"), "kedit: missing option '--method'; see kedit"),
        (
            "an option that does not exist",
            command("evaluate", "m", "--deltas", "x"),
            "kedit: no such option: --deltas",
        ),
        (
            "a number that is too small",
            command("edit", "m", "--limit", "0"),
            "kedit: invalid value for '--limit'",
        ),
        (
            "a method nobody offers",
            lambda scene: scene.edit("--method", "pusch"),
            r"kedit: unknown method 'pusch' \(installed: .*push.*\); did you mean 'push'\?$",
        ),
        (
            "a method to show that nobody offers",
            command("show", "pusch"),
            "kedit: unknown method 'pusch'.*did you mean 'push'",
        ),
        (
            "a metric nobody knows",
            lambda scene: [*scene.load(scene.delta()), "--metrics", "reliability.exakt"],
            "kedit: metrics: unknown metric 'reliability.exakt'; did you mean 'reliability.exact'",
        ),
    ),
    *_group(
        "configuration",
        (
            "an unknown setting",
            setting("strenght=1"),
            "kedit: config of push: unknown setting 'strenght'; did you mean 'strength'",
        ),
        (
            "an unknown nested setting",
            setting("where.layr=1"),
            "kedit: config of push: where: unknown setting 'layr'; did you mean 'layer'",
        ),
        (
            "a wrong type",
            setting("strength=much"),
            "kedit: config of push: strength: expected float, found 'much'",
        ),
        (
            "a nested value of the wrong type",
            setting("where.layer=1.5"),
            "kedit: config of push: where.layer: expected int, found 1.5",
        ),
        (
            "a value where a table belongs",
            setting("where=3"),
            "kedit: config of push: where: expected a table of settings, found 3",
        ),
        (
            "a table where a value belongs",
            setting("seed.x=3"),
            "kedit: config of push: seed: expected int, found {'x': 3}",
        ),
        ("a value out of range", setting("strength=-1"), "kedit: .*'strength' must be > 0: -1"),
        (
            "a nested value out of range",
            setting("where.layer=-2"),
            "kedit: .*'layer' must be >= -1",
        ),
        (
            "a setting without a value",
            setting("strength"),
            "kedit: --set: 'strength' is not of the form",
        ),
        (
            "a value and a table at once",
            setting("a=1", "a.b=2"),
            "kedit: --set: 'a.b' goes below 'a'",
        ),
        (
            "a config file that is missing",
            lambda scene: scene.edit("--config", scene.folder / "absent.toml"),
            r"kedit: \S*absent.toml: cannot be read \(No such file",
        ),
        (
            "a config file that is no TOML",
            config_file("push.toml", "strength = = 1"),
            r"kedit: \S*push.toml: is not valid TOML: .*line 1",
        ),
        (
            "a config file that is no JSON",
            config_file("push.json", '{"strength": }'),
            r"kedit: \S*push.json: is not valid JSON: .*line 1",
        ),
        (
            "a config file that is a list",
            config_file("push.json", "[1]"),
            r"kedit: \S*push.json: holds no table of settings",
        ),
    ),
    *_group(
        "request files",
        (
            "a file that is missing",
            command("edit", "m", "--method", "push", "--requests", "absent.jsonl", "--out", "x"),
            "kedit: absent.jsonl: cannot be read .No such file",
        ),
        ("an empty file", lines(""), _FILE + ": holds no request"),
        ("a file of blank lines", lines("\n \n"), _FILE + ": holds no request"),
        ("no text", lines(b"\xff\xfe\x00"), _FILE + ": cannot be read .it is not UTF-8 text"),
        (
            "a line that is no JSON",
            lines(RECORD + "\n{'prompt': 1}\n"),
            _FILE + ", line 2: is not JSON: .* at column 2",
        ),
        (
            "a line that is no object",
            lines("[1]\n"),
            _FILE + ", line 1: expected an object, found list",
        ),
        ("a line cut off", lines(RECORD[:-4]), _FILE + ", line 1: is not JSON"),
        ("nesting without an end", lines("[" * 100_000), _FILE + ", line 1: "),
        (
            "a field left out",
            line(target_new=None),
            _FILE + ", line 2: field 'target_new' is missing",
        ),
        (
            "an unknown field",
            line(subjekt="x"),
            _FILE + ", line 2: unknown field 'subjekt'; did you mean 'subject'",
        ),
        (
            "a field that is no text",
            line(prompt=5),
            _FILE + ", line 2: field 'prompt' is no text: 5",
        ),
        (
            "probes that are none",
            line(locality=["x"]),
            _FILE + ", line 2: field 'locality' is no list of probes",
        ),
        (
            "a probe without answers",
            line(locality=[{"prompt": "x"}]),
            _FILE + r", line 2: locality\[0\]: answers: required field missing",
        ),
        ("a paraphrase that is empty", line(paraphrases=[""]), _FILE + ", line 2: a paraphrase of"),
        (
            "two requests with one id",
            line(),
            "kedit: request [0-9a-f]{16} .'the capital of land0 is'. is given twice",
        ),
        ("a byte-order mark", lines(b"\xef\xbb\xbf" + RECORD.encode()), "$", FINE),
        ("lines that end as on Windows", lines(RECORD + "\r\n\r\n"), "$", FINE),
    ),
    *_group(
        "requests",
        (
            "a subject that is not in the prompt",
            asked(prompt="it is"),
            "kedit: subject 'land0' is not in the prompt 'it is'; mark its place with {}",
        ),
        (
            "{} twice",
            asked(prompt="{} of {} is"),
            "kedit: prompt .* marks its subject with {} 2 times",
        ),
        (
            "{} without a subject",
            asked(subject=None),
            "kedit: prompt .* marks a subject with {}, but none is given",
        ),
        (
            "no subject for a method that needs one",
            asked(prompt="it is", subject=None),
            "kedit: method 'push' needs the subject of 'it is'",
        ),
        ("an empty subject", asked(subject=" "), "kedit: subject of .* is empty"),
        ("an empty prompt", asked(prompt=" "), "kedit: prompt is empty"),
        ("an empty target", asked(target_new=" "), "kedit: target_new of .* is empty"),
        (
            "half a surrogate pair",
            line(target_new="\ud83d"),
            _FILE + ", line 2: .*half a surrogate pair",
        ),
        (
            "a target of no tokens",
            no_tokens_for("Rome"),
            "kedit: target ' Rome' tokenises to nothing",
        ),
        (
            "a subject that the context cuts off",
            too_long,
            "kedit: a text of 45 tokens is longer than the model's context of 32",
        ),
        (
            "no room for the target after the prompt",
            asked(prompt="the " * 27 + "capital of {} is", target_new="Rome Rome"),
            "kedit: a text of 33 tokens is longer than the model's context of 32",
        ),
        (
            "a judgement of a prompt longer than the context",
            judged_too_long,
            "kedit: a text of 42 tokens is longer than the model's context of 32",
        ),
        (
            "a chat without a chat template",
            lambda scene: scene.edit("--chat"),
            "kedit: this tokenizer has no chat template; leave chat out",
        ),
        (
            "a subject of no tokens",
            no_tokens_for("land0"),
            "kedit: no token covers 'land0'",
        ),
        (
            "a target that the model says already",
            already_said,
            "kedit: note: the model says '.*' after 'the capital of land0 is' already",
            FINE,
        ),
    ),
    *_group(
        "models",
        (
            "a folder that is nowhere",
            at("/nowhere/at/all"),
            "kedit: /nowhere/at/all: there is no such folder",
        ),
        (
            "a hub id that cannot be looked up",
            at("nosuch/model"),
            "kedit: nosuch/model: there is no such folder, and the hub",
        ),
        (
            "a name that no plugin opens",
            at("nosuch:model"),
            "kedit: nosuch:model: no installed plugin opens it",
        ),
        ("a file", single_file, r"kedit: \S*model.gguf: is a file"),
        (
            "a folder without config.json",
            without("config.json"),
            _MODEL + "the folder holds no config.json",
        ),
        ("a folder without a tokenizer", without("tok*"), _MODEL + "holds no tokenizer"),
        ("a folder without weights", without("*.safetensors"), _MODEL + "cannot be opened: "),
        (
            "a checkpoint that lacks weights",
            lacking_weights,
            _MODEL + r"its checkpoint lacks 2 of the model's weights \(.*h.1.mlp.c_proj.bias",
        ),
        (
            "a checkpoint without a head",
            other_model(headless),
            _MODEL + r"its checkpoint lacks 1 of the model's weights \(lm_head.weight\)",
        ),
        (
            "a checkpoint of another size",
            changed_config(n_inner=32),
            _MODEL
            + r"its checkpoint does not fit its config.json: .*mlp.c_fc.bias has shape \(64,\)",
        ),
        (
            "a name that is no hub id",
            at("a b"),
            "kedit: a b: there is no such folder, and it is no hub",
        ),
        ("no model named", at(""), "kedit: model: no folder and no hub id is named"),
        (
            "a tokenizer of another model",
            foreign_tokenizer,
            "kedit: GPT2LMHeadModel: knows 20 tokens, and its tokenizer gives number 4000",
        ),
        ("an encoder", other_model(encoder), "kedit: BertLMHeadModel: is no causal decoder"),
        (
            "an encoder with a decoder",
            other_model(translator),
            _MODEL + "is a 't5' model, no causal language model",
        ),
        (
            "a model of pictures",
            other_model(pictures),
            _MODEL + "is a 'vit' model, no causal language model",
        ),
        (
            "an architecture that transformers does not know",
            changed_config(model_type="strange"),
            _MODEL + "its config.json says model_type 'strange', which the installed",
        ),
        (
            "a model with Python code of its own",
            changed_config(model_type="strange", auto_map={"AutoModelForCausalLM": "own.Own"}),
            _MODEL + "needs Python code of its own, which kedit never runs",
        ),
        (
            "a quantised checkpoint",
            changed_config(
                quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
            ),
            _MODEL + "cannot be opened: ",
        ),
        (
            "a dtype nobody knows",
            lambda scene: scene.edit("--dtype", "float8"),
            "kedit: unknown dtype 'float8'; float32, ",
        ),
        ("a device nobody knows", device("abacus"), "kedit: device abacus: cannot be used: "),
        (
            "a CUDA device where there is none",
            device("cuda:99"),
            "kedit: device cuda:99: cannot be used: ",
        ),
        (
            "the meta device",
            device("meta"),
            "kedit: device meta: cannot be used: it holds no values",
        ),
        (
            "a model on the meta device",
            on_meta,
            "kedit: transformer.wte.weight: its values are not in memory",
        ),
        (
            "a model offloaded to disk",
            offloaded,
            "kedit: transformer.wte.weight: its values are not in memory",
        ),
        ("8-bit weights", quantised(torch.int8, nn.Parameter), _QUANTISED + r"\(torch.int8\)"),
        (
            "4-bit weights",
            quantised(torch.uint8, Params4bit),
            _QUANTISED + r"\(Params4bit, torch.uint8\)",
        ),
        (
            "8-bit floats",
            quantised(torch.float8_e4m3fn, nn.Parameter),
            _QUANTISED + r"\(torch.float8_e4m3fn\)",
        ),
        (
            "a quantiser's class around plain floats",
            quantised(torch.float32, Params4bit),
            _QUANTISED + r"\(Params4bit, torch.float32\)",
        ),
        (
            "a tied weight",
            tied,
            "kedit: lm_head.weight: is tied to transformer.wte.weight, an edit would change both",
        ),
    ),
    *_group(
        "delta files",
        (
            "a file that is missing",
            lambda scene: scene.load(scene.folder / "absent.delta"),
            _DELTA + "there is no such file",
        ),
        ("an empty file", bytes_changed(lambda _: b""), _DELTA + "is no whole safetensors file"),
        (
            "a file cut off in its numbers",
            bytes_changed(lambda content: content[:-8]),
            _DELTA + "is no whole safetensors file",
        ),
        (
            "a file cut off in its header",
            bytes_changed(lambda content: content[:100]),
            _DELTA + "is no whole safetensors file",
        ),
        (
            "a safetensors file that holds no delta",
            lambda scene: scene.load(scene.model / "model.safetensors"),
            r"kedit: \S*model.safetensors: is no delta file",
        ),
        (
            "a format of the future",
            bytes_changed(other_format),
            _DELTA + "is format 9 of delta file, this kedit reads 2",
        ),
        (
            "one changed number",
            bytes_changed(lambda content: content[:-1] + b"\x40"),
            _DELTA + "delta [0-9a-f]{16}: its content is not what was saved under this id",
        ),
        (
            "a forged request",
            rewritten(forged),
            _DELTA + "delta [0-9a-f]{16}: its content is not what was saved",
        ),
        (
            "a description without parts",
            rewritten(no_parts),
            _DELTA + "is damaged: 'parts' is missing",
        ),
        (
            "no word of its model",
            rewritten(without_base),
            _DELTA + "delta [0-9a-f]{16} does not say which model it was made for; make the edit",
        ),
        (
            "no digest of its model",
            rewritten(with_empty_base),
            _DELTA + "delta [0-9a-f]{16} does not say which model it was made for; make the edit",
        ),
        (
            "a provenance of the wrong type",
            rewritten(odd_provenance),
            _DELTA + "is damaged: provenance: after: expected a list, found 5",
        ),
        (
            "a value that is no number",
            rewritten(not_finite),
            _DELTA + ".*c_proj.weight: left holds values that are not finite",
        ),
        (
            "a wrong shape",
            replaced(parts=[low_rank(16, 60)]),
            _OTHER + r"the update is \(16, 60\), the weight \(16, 64\)",
        ),
        (
            "a weight that does not exist",
            replaced(parts=[evolve(low_rank(16, 64), weight="h.9.w")]),
            _DELTA + ".*h.9.w: the model has no such parameter",
        ),
        (
            "a memory beside a method of weights",
            memory_of_weights,
            "kedit: delta [0-9a-f]{16}: method 'push' must apply its side memory itself",
        ),
        ("a method nobody offers", replaced(method="pusch"), "kedit: unknown method 'pusch'"),
        ("another model", wrong_model, _OTHER + "c_proj.weight differs"),
        (
            "one delta twice in a file",
            same_delta_twice,
            _DELTA + "delta [0-9a-f]{16} is in it twice",
        ),
        ("one file twice", same_file_twice, _DELTA + "delta [0-9a-f]{16} is in force already"),
        (
            "memories in the wrong order",
            memories_out_of_order,
            _DELTA + "memory .* was made after .* but comes before it",
        ),
        (
            "edits of weights in another order",
            weights_out_of_order,
            r"kedit: warning: \S*turned.delta: delta .* was made after .* but comes before it",
            {"code": 0},
        ),
    ),
    *_group(
        "the machine",
        ("a full disk while saving", full_disk, r"kedit: \S*made.delta: cannot be written \("),
        (
            "a folder where the delta file should be",
            lambda scene: scene.edit("--out", scene.folder),
            "kedit: .* cannot be written .it is there and no file",
        ),
        (
            "a delta file below a file",
            lambda scene: scene.edit("--out", scene.file("file", "") / "x"),
            "kedit: .* cannot be written ",
        ),
        (
            "a cache folder that cannot be written",
            cache_below_a_file,
            r"kedit: warning: cache folder .* cannot be written",
            {"code": 0},
        ),
        (
            "a damaged cache file",
            damaged_cache,
            r"kedit: warning: cache file .* is damaged \(.*\); it is made anew",
            {"code": 0},
        ),
        (
            "Ctrl-C in the second of three edits",
            interrupted,
            r"kedit: stopped; 1 of 3 edits are saved in \S*made.delta\n" + _INTERRUPTED,
            {"code": 130, "writes": ("made.delta",)},
        ),
    ),
)
