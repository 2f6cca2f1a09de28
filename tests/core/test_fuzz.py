"""2,000 mutated delta files, request files and configurations: no traceback, no changed model."""

import json
import struct
import warnings
from copy import deepcopy
from types import ModuleType
from typing import Literal

import pytest
import torch
from attrs import evolve, field, frozen, validators
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from kedit_core import (
    Delta,
    Dense,
    Editor,
    EditRequest,
    KeditError,
    LowRank,
    MethodInfo,
    Plugins,
    Provenance,
    TensorCache,
    hookimpl,
)
from kedit_core.config import as_mapping, load_config, merged, parse_settings
from kedit_core.delta_files import save_deltas
from kedit_core.digests import state_digest
from kedit_core.errors import RequestError
from kedit_core.request_files import read_json_lines, record_of, request_from


def cases(count):
    """Return settings that give the same examples in every run and on every machine."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# --- what is mutated -------------------------------------------------------------------------------


@frozen(kw_only=True)
class Search:
    steps: int = field(default=3, validator=validators.ge(1))
    lr: float = field(default=0.25, validator=validators.gt(0.0))


@frozen(kw_only=True)
class Config:
    layer: int | None = field(default=None, validator=validators.optional(validators.ge(0)))
    keys: Literal["both", "mean", "bare"] = "both"
    search: Search = field(factory=Search)
    lengths: tuple[int, ...] = field(
        default=(5, 10), validator=validators.deep_iterable(validators.ge(2))
    )
    span: tuple[int, str] = (1, "a")
    names: frozenset[str] = frozenset()
    corpus: str | float | None = None
    on: bool = True


def method():
    module = ModuleType("fuzzed")

    @hookimpl
    def method_info():
        return MethodInfo(name="fuzzed", summary="fake", kind="weights", config=Config)

    @hookimpl
    def compute_delta(batch, config, weights):
        first, second = (layer.down for layer in weights.layout.layers)
        left, right = torch.ones(first.out_features, 1), torch.ones(1, first.in_features)
        low = LowRank(weight=first.weight, left=left, right=right * config.search.steps)
        update = torch.eye(second.out_features, second.in_features)
        dense = Dense(weight=second.weight, update=update * config.search.lr)
        carry = {"keys": right, "flags": torch.tensor([True, False])}
        return Delta(method="fuzzed", requests=batch.requests, parts=[low, dense], carry=carry)

    module.method_info, module.compute_delta = method_info, compute_delta
    return module


RECORD = {
    "prompt": "the capital of {} is",
    "subject": "land1",
    "target_new": "Rome",
    "target_true": "Oslo",
    "joiner": " ",
    "paraphrases": ["land1 lies in", "{} speaks"],
    "locality": [{"prompt": "the capital of land2 is", "answers": ["Bern"], "group": "near"}],
    "portability": [{"prompt": "land1 is in", "answers": "Rome"}],
    "extra": {"case": 1},
}
FULL = {**RECORD, "prompt": "the capital of land1 is", "subject_span": [15, 20]}
PLAIN = as_mapping(Config(layer=1, corpus="x", names=frozenset({"a"})))
WORDS = (
    "fuzzed",
    "Rome",
    "land1",
    "{}",
    "",
    " ",
    "low-rank",
    "dense",
    "side-memory",
    "bare",
    "float32",
)

words = st.one_of(st.sampled_from(WORDS), st.text(max_size=6))
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.floats(width=32), words
)
values = st.recursive(
    plain,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words, inside, max_size=3),
    max_leaves=4,
)


def places(value, path=()):
    """Return the path of everything inside a JSON value, itself included."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    return [path, *(place for key, one in inside for place in places(one, (*path, key)))]


def mutated(data, value):
    """Return a JSON value with one to three of its pieces replaced, dropped, renamed or doubled."""
    value = deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(value)))
        if not path:
            if data.draw(st.integers(0, 19)) == 0:
                return data.draw(values)
            continue
        *above, last = path
        holder = value
        for key in above:
            holder = holder[key]
        match data.draw(st.sampled_from(("replace", "replace", "drop", "rename", "double"))):
            case "replace":
                holder[last] = data.draw(values)
            case "drop":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[data.draw(words)] = holder.pop(last)
            case "double" if isinstance(holder, list):
                holder.append(deepcopy(holder[last]))
    return value


def bytes_mutated(data, content):
    """Return bytes with a few of them changed, cut out or put in; mostly near the beginning."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        reach = data.draw(st.sampled_from((16, 200, len(content))))
        place = data.draw(st.integers(0, max(min(reach, len(content)) - 1, 0)))
        match data.draw(st.sampled_from(("change", "change", "cut", "put", "end"))):
            case "change":
                content[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 64))]
            case "put":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
            case "end":
                del content[place:]
    return bytes(content)


# --- the model and what must hold ------------------------------------------------------------------


@pytest.fixture(scope="module")
def workbench(tokenizer, tmp_path_factory):
    """Return an editor of a tiny model, a delta file made with it, and a place for files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=32))
    folder = tmp_path_factory.mktemp("fuzz")
    plugins = Plugins()
    plugins.register(method())
    cache = TensorCache(folder / "cache")
    editor = Editor(model, tokenizer, "fuzzed", plugins=plugins, cache=cache)
    for subject in ("land1", "land2"):
        editor.edit(request_from({**RECORD, "subject": subject, "extra": {}}))
    editor.save(folder / "good.delta")
    while editor.deltas:
        editor.undo()
    return editor, folder


@pytest.fixture
def editor(workbench):
    return workbench[0]


@pytest.fixture
def folder(workbench):
    return workbench[1]


def attempt(editor, act):
    """Do it: it goes through or raises a KeditError, and undoing what it did gives every bit back."""
    before, refused = state_digest(editor.model), ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of other orders and other bits
        try:
            act()
        except KeditError as error:
            refused = str(error) or "nothing"
    held, now = editor.deltas, state_digest(editor.model)
    while editor.deltas:
        editor.undo()
    assert state_digest(editor.model) == before
    if refused:
        assert (held, now) == ((), before)
        assert len(refused.splitlines()) == 1
        assert refused != "nothing"
    event("refused" if refused else "accepted")
    return not refused


def described(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["kedit"])["deltas"], tensors


def header_of(deltas):
    """Return the header of a delta file that describes these."""
    return {"kedit": json.dumps({"format": "2", "deltas": deltas})}


# --- delta files -----------------------------------------------------------------------------------


@cases(400)
@given(data=st.data())
def test_a_delta_file_with_other_bytes_is_refused_or_undone(editor, folder, data):
    path = folder / "bytes.delta"
    path.write_bytes(bytes_mutated(data, (folder / "good.delta").read_bytes()))
    attempt(editor, lambda: editor.load(path))


@cases(300)
@given(data=st.data())
def test_a_delta_file_with_another_description_is_refused_or_undone(editor, folder, data):
    said, tensors = described(folder / "good.delta")
    path = folder / "described.delta"
    save_file(tensors, path, metadata=header_of(mutated(data, said)))
    attempt(editor, lambda: editor.load(path))


@cases(150)
@given(data=st.data())
def test_a_delta_file_with_another_safetensors_header_is_refused_or_undone(editor, folder, data):
    content = (folder / "good.delta").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(mutated(data, json.loads(content[8 : 8 + length]))).encode()
    path = folder / "header.delta"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    attempt(editor, lambda: editor.load(path))


DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn)


@cases(150)
@given(data=st.data())
def test_a_delta_file_with_other_tensors_is_refused_or_undone(editor, folder, data):
    said, tensors = described(folder / "good.delta")
    name = data.draw(st.sampled_from(sorted(tensors)))
    one = tensors[name]
    match data.draw(st.sampled_from(("dtype", "shape", "cut", "value", "name", "drop", "swap"))):
        case "dtype":
            tensors[name] = one.to(data.draw(st.sampled_from(DTYPES)))
        case "shape":
            tensors[name] = one.reshape(data.draw(st.sampled_from(((-1,), (1, -1), (1, 1, -1)))))
        case "cut":
            tensors[name] = one[: data.draw(st.integers(0, len(one) - 1))].clone()
        case "value":
            tensors[name] = one.float() * data.draw(st.sampled_from((torch.nan, torch.inf, 0, -1)))
        case "name":
            tensors[data.draw(words)] = tensors.pop(name)
        case "drop":
            del tensors[name]
        case "swap":
            other = data.draw(st.sampled_from(sorted(tensors)))
            tensors[name], tensors[other] = tensors[other].clone(), one
    path = folder / "tensors.delta"
    path.write_bytes(save(tensors, metadata=header_of(said)))
    attempt(editor, lambda: editor.load(path))


provenances = st.builds(
    Provenance,
    base=st.dictionaries(words, st.dictionaries(words, words, max_size=2), max_size=2),
    config=st.one_of(st.just({}), st.dictionaries(words, values, max_size=2)),
    after=st.lists(words, max_size=2),
    written=st.dictionaries(words, words, max_size=2),
)


@cases(100)
@given(data=st.data())
def test_a_forged_delta_under_its_own_id_is_refused_or_undone(editor, folder, data):
    down = [layer.down for layer in editor.weights.layout.layers]
    sizes = st.sampled_from((down[0].out_features, down[0].in_features, 1, 3))
    paths = [*(one.weight for one in down), "lm_head.weight", "model.norm.weight"]
    number = data.draw(st.sampled_from((1.0, 1e-3, 3e38)))
    parts = []
    for _ in range(data.draw(st.integers(1, 3))):
        weight = data.draw(st.one_of(st.sampled_from(paths), words))
        out_features, in_features = data.draw(
            st.one_of(st.just((down[0].out_features, down[0].in_features)), st.tuples(sizes, sizes))
        )
        left, right = torch.full((out_features, 1), number), torch.ones(1, in_features)
        parts.append(
            LowRank(weight=weight, left=left, right=right)
            if data.draw(st.booleans())
            else Dense(weight=weight, update=left @ right)
        )
    made = Delta(
        method=data.draw(st.sampled_from(("fuzzed", "fuzzed", "fuzzed", "other"))),
        requests=[request_from({**RECORD, "subject": f"land{data.draw(st.integers(1, 9))}"})],
        parts=parts,
        provenance=data.draw(provenances),
    )
    if data.draw(st.booleans()):  # else nearly all end at the same check
        known = {part.weight for part in parts} & {*paths}
        base = {path: editor.weights.base_digests(path) for path in known}
        made = evolve(made, provenance=evolve(made.provenance, base=base))
    save_deltas(
        [made, *([evolve(made, parts=parts[:1])] * data.draw(st.integers(0, 1)))], folder / "x"
    )
    attempt(editor, lambda: editor.load(folder / "x"))


@cases(50)
@given(data=st.data())
def test_a_delta_that_does_not_say_for_which_model_it_is_refused(editor, folder, data):
    said, tensors = described(folder / "good.delta")
    base = said[data.draw(st.integers(0, 1))]["provenance"]["base"]
    path = data.draw(st.sampled_from(sorted(base)))
    match data.draw(st.sampled_from(("drop", "empty", "rename", "kinds", "digests"))):
        case "drop":
            del base[path]
        case "empty":
            base[path] = {}
        case "rename":
            base[data.draw(words)] = base.pop(path)
        case "kinds":
            base[path] = {data.draw(words.filter(lambda kind: kind != "float32")): "00"}
        case "digests":
            base[path] = dict.fromkeys(base[path], data.draw(words))
    found = folder / "unsaid.delta"
    save_file(tensors, found, metadata=header_of(said))
    assert not attempt(editor, lambda: editor.load(found))


# --- request files ---------------------------------------------------------------------------------


def read_and_edit(editor, path):
    """Read a file; what it holds comes back from its record, and the first request can be tried."""

    def act():
        found = list(read_json_lines(path))
        assert found
        assert all(isinstance(one, EditRequest | RequestError) for one in found)
        requests = [one for one in found if isinstance(one, EditRequest)]
        for request in requests:
            assert request_from(json.loads(json.dumps(record_of(request)))).id == request.id
        if not requests:
            raise found[0]
        editor.edit(requests[0])

    return attempt(editor, act)


@cases(200)
@given(data=st.data())
def test_a_request_file_with_other_bytes_is_read_or_refused(editor, folder, data):
    content = "\n".join(json.dumps(one, ensure_ascii=False) for one in (RECORD, FULL)).encode()
    path = folder / "bytes.jsonl"
    path.write_bytes(bytes_mutated(data, content))
    read_and_edit(editor, path)


@cases(250)
@given(data=st.data())
def test_a_request_file_with_other_fields_is_read_or_refused(editor, folder, data):
    record = mutated(data, data.draw(st.sampled_from((RECORD, FULL))))
    path = folder / "fields.jsonl"
    path.write_text(json.dumps(record) + "\r\n", encoding="utf-8-sig", newline="")
    read_and_edit(editor, path)


# --- configurations --------------------------------------------------------------------------------


def edit_with(editor, config):
    fact = request_from(RECORD)
    return attempt(editor, lambda: editor.edit(fact, config=config))


@cases(200)
@given(data=st.data())
def test_a_configuration_with_other_values_is_taken_or_refused(editor, data):
    found = mutated(data, PLAIN)
    if not edit_with(editor, found):
        return
    config = load_config(Config, found)
    again = load_config(Config, as_mapping(config))
    assert repr(again) == repr(config)  # not a number is not equal to itself


@cases(100)
@given(data=st.data())
def test_a_configuration_file_with_other_bytes_is_taken_or_refused(editor, folder, data):
    toml = b'layer = 1\nkeys = "mean"\nlengths = [5, 9]\n\n[search]\nsteps = 2\nlr = 0.5\n'
    name, content = data.draw(
        st.sampled_from((("x.toml", toml), ("x.json", json.dumps(PLAIN).encode())))
    )
    (folder / name).write_bytes(bytes_mutated(data, content))
    edit_with(editor, folder / name)


@cases(100)
@given(data=st.data())
def test_settings_of_the_command_line_are_taken_or_refused(editor, data):
    names = st.sampled_from(("layer", "search.steps", "search", "lengths", "search.lr.x", "..", ""))
    said = st.one_of(plain.map(json.dumps), values.map(json.dumps), words)
    drawn = data.draw(st.lists(st.tuples(names, said), max_size=3))

    def act():
        given_settings = parse_settings([f"{name}={text}" for name, text in drawn])
        editor.edit(request_from(RECORD), config=merged(PLAIN, given_settings))

    attempt(editor, act)
