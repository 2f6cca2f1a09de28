import json
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from attrs import field, frozen
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from kedit_core.cli import main
from kedit_core.cli.app import application
from kedit_core.cli.screen import print_json
from kedit_core.cli.show import settings_of
from kedit_core.delta_files import load_deltas

PLUGIN = '''
"""A method that pushes the last block towards one token, by as much as it is told."""
from typing import Literal
from attrs import field, frozen, validators
from kedit_core import MethodInfo, Scope, hookimpl


@frozen(kw_only=True)
class Settings:
    """Settings of push.

    Attributes:
        strength: how hard, in
            units of nothing; [/b] is no markup.
        layers: which ones.
    """

    strength: float = field(default=50.0, validator=validators.gt(0))
    layers: tuple[int, ...] = (-1,)
    mode: Literal["add", "fail"] = "add"
    doubled: float = field()

    @doubled.default
    def _(self):
        return 2 * self.strength


@hookimpl
def method_info():
    return MethodInfo(
        name="push", summary="pushes [/i] facts", kind="weights", needs={"subject"}, config=Settings
    )


@hookimpl
def compute_delta(model, tokenizer, batch, config, weights):
    import torch
    from kedit_core import Delta, LowRank, Provenance

    if config.mode == "fail":
        raise RuntimeError("the method has a bug")
    (request,) = batch.requests
    layer = weights.layout.layers[config.layers[0]].down
    target = tokenizer(request.target_new, add_special_tokens=False)["input_ids"][0]
    left = model.get_output_embeddings().weight[target].detach().float()[:, None]
    right = torch.ones(1, layer.in_features) * config.strength / layer.in_features
    part = LowRank(weight=layer.weight, left=left, right=right)
    notes = {"strength": config.strength, "loss": float("inf")}
    return Delta(
        method="push", requests=batch.requests, parts=[part], provenance=Provenance(notes=notes)
    )


@hookimpl
def scope_classify(delta, prompts):
    import torch

    request = delta.requests[0]
    inside = [request.subject in prompt for prompt in prompts]
    return Scope(
        probability=torch.tensor(inside).float(),
        requests=[request.id if one else None for one in inside],
    )


@hookimpl
def register_commands(cli):
    @cli.command(name="push")
    def push():
        """Push."""
        print("pushed")
'''

HEADINGS = ["METHOD", "KIND", "BATCH", "STREAM", "SCOPE", "PACKAGE", "SUMMARY"]

BROKEN = "raise ImportError('needs [/bold] and [library]')"
BAD_COMMANDS = """
from kedit_core import hookimpl
@hookimpl
def register_commands(cli):
    raise ZeroDivisionError("no commands today")
"""


def install(folder, name, code):
    module = f"kedit_cli_test_{name}"
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    dist = module.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kedit]\n{name} = {module}\n")


@pytest.fixture(autouse=True)
def push(tmp_path, monkeypatch):
    """Install the method in a folder of its own, and a broken plugin beside it."""
    folder = tmp_path / "site"
    install(folder, "push", PLUGIN)
    install(folder, "shattered", BROKEN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("COLUMNS", "200")
    yield folder
    for name in [name for name in sys.modules if name.startswith("kedit_cli_test_")]:
        del sys.modules[name]


@pytest.fixture
def kedit(capsys):
    """Return what runs the command line and gives its exit code and its two streams."""

    def run(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Return a folder with a tiny model and its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


REQUESTS = [
    {
        "prompt": "the capital of {} is",
        "subject": f"land{number}",
        "target_new": city,
        "target_true": "Riga",
        "paraphrases": [f"land{number} lies in a"],
        "locality": [{"prompt": "the capital of land9 is", "answers": ["Bern"], "group": "near"}],
    }
    for number, city in enumerate(("Rome", "Oslo", "Lima"))
]


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps(request) for request in REQUESTS))
    return path


@pytest.fixture
def delta(kedit, model, requests, tmp_path):
    path = tmp_path / "made.delta"
    code, _, err = kedit("edit", model, "--method", "push", "--requests", requests, "--out", path)
    assert (code, err) == (0, "")
    return path


def one_edit(model, out, *more):
    fact = ("--prompt", "the capital of {} is", "--subject", "land0", "--target", "Rome")
    return ("edit", model, "--method", "push", *fact, "--out", out, *more)


# --- list-methods and show -----------------------------------------------------------------------


def test_list_methods_shows_what_is_installed_and_what_is_broken(kedit):
    code, out, err = kedit("list-methods")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["METHOD"].split() == HEADINGS
    assert "kedit-cli-test-push 1.0" in lines["push"]
    assert "pushes [/i] facts" in lines["push"]
    assert lines["push"].split()[1:5] == ["weights", "-", "-", "yes"]
    assert "broken" in lines["shattered"]
    assert "ImportError: needs [/bold] and [library]" in out


def test_list_methods_in_json_says_the_same(kedit):
    code, out, err = kedit("list-methods", "--json")
    assert (code, err) == (0, "")
    rows = {row["method"]: row for row in json.loads(out)}
    assert rows["push"] == {
        "method": "push",
        "package": "kedit-cli-test-push 1.0",
        "kind": "weights",
        "batched": False,
        "continual": False,
        "scope": True,
        "needs": ["subject"],
        "summary": "pushes [/i] facts",
        "problem": None,
    }
    assert rows["shattered"]["kind"] is None
    assert "needs [/bold]" in rows["shattered"]["problem"]


def test_the_quick_way_to_list_methods_says_what_the_long_way_says(kedit, monkeypatch):
    quick = kedit("list-methods")
    monkeypatch.setattr(
        "kedit_core.cli._run", lambda plugins, arguments: application(plugins)(arguments)
    )
    assert kedit("list-methods") == quick


def test_show_prints_every_setting_with_its_type_its_default_and_its_meaning(kedit):
    code, out, err = kedit("show", "push")
    assert (code, err) == (0, "")
    shown = " ".join(out.split())
    assert "push pushes [/i] facts" in shown
    assert "strength float 50.0 how hard, in units of nothing; [/b] is no markup." in shown
    assert "layers tuple[int, ...] (-1,) which ones." in shown
    assert "mode Literal['add', 'fail'] 'add'" in shown
    assert "doubled float (computed)" in shown
    assert "hooks compute_delta, method_info, register_commands, scope_classify" in shown


def test_show_in_json_is_one_document(kedit):
    code, out, err = kedit("show", "push", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["method"] == "push"
    assert found["needs"] == ["subject"]
    assert [field["name"] for field in found["config"]] == ["strength", "layers", "mode", "doubled"]
    assert found["config"][1]["default"] == [-1]


@frozen(kw_only=True)
class Inner:
    steps: int = 70
    rate: float = 0.5


@frozen(kw_only=True)
class Outer:
    search: Inner = field(factory=lambda: Inner(steps=20))
    again: Inner = field(factory=Inner)


def test_settings_inside_others_show_the_defaults_that_their_method_gives_them():
    shown = {one.name: one.default for one in settings_of(Outer)}
    assert shown == {"search.steps": 20, "search.rate": 0.5, "again.steps": 70, "again.rate": 0.5}


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ("pusch", "kedit: unknown method 'pusch' .*did you mean 'push'"),
        ("shattered", "kedit: plugin 'shattered' is installed but broken: import fails"),
    ],
)
def test_show_of_what_cannot_be_used_is_the_users_error(kedit, method, complaint):
    assert_one_sentence(kedit("show", method), complaint)


def assert_one_sentence(result, complaint):
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert re.match(complaint, err), err


def test_listing_methods_imports_no_torch_and_no_transformers(push):
    code = (
        "import sys; from kedit_core.cli import main; main(['list-methods', '--json']);"
        "sys.stderr.write(' '.join(m for m in ('torch', 'transformers', 'numpy') if m in sys.modules))"
    )
    path = os.pathsep.join([str(push), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "push" in [row["method"] for row in json.loads(done.stdout)]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_pipe_that_knows_few_letters_gets_whole_json_and_no_traceback(
    kedit, encoding, monkeypatch
):
    held = BytesIO()
    stream = TextIOWrapper(held, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    print_json({"name": "Zürich 日本"})
    assert json.loads(held.getvalue().decode(encoding)) == {"name": "Zürich 日本"}


# --- edit --------------------------------------------------------------------------------------


def test_edit_saves_one_delta_per_request_and_leaves_the_models_files_alone(
    kedit, model, requests, tmp_path
):
    before = {path: path.read_bytes() for path in model.iterdir()}
    out = tmp_path / "new" / "made.delta"
    code, said, err = kedit("edit", model, "--method", "push", "--requests", requests, "--out", out)
    assert (code, err) == (0, "")
    assert "3 edits saved in" in said
    deltas = load_deltas(out)
    assert [delta.requests[0].target_new for delta in deltas] == ["Rome", "Oslo", "Lima"]
    assert deltas[2].provenance.after == tuple(delta.id for delta in deltas[:2])
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_edit_in_json_is_one_strict_document(kedit, model, tmp_path):
    out = tmp_path / "made.delta"
    code, said, err = kedit(*one_edit(model, out, "--json"))
    assert (code, err) == (0, "")
    found = json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(found) == {"out", "deltas", "edits"}
    (edit,) = found["edits"]
    assert edit["prompt"] == "the capital of land0 is"
    assert edit["target_new"] == "Rome"
    assert isinstance(edit["before"], str)
    assert isinstance(edit["after"], str)
    assert found["deltas"][0]["id"] == load_deltas(out)[0].id
    assert found["deltas"][0]["notes"] == {"strength": 50.0, "loss": None}


def test_settings_of_the_command_line_win_over_those_of_a_file(kedit, model, tmp_path):
    file = tmp_path / "push.toml"
    file.write_text("strength = 3.0\nlayers = [0]\n")
    out = tmp_path / "made.delta"
    more = ("--config", file, "--set", "strength=7", "--set", "layers=[1]")
    assert kedit(*one_edit(model, out, *more))[0] == 0
    assert load_deltas(out)[0].provenance.config["strength"] == 7.0
    assert load_deltas(out)[0].provenance.config["layers"] == [1]


def test_edits_go_on_top_of_a_delta_and_are_saved_with_it(kedit, model, tmp_path):
    first, second = tmp_path / "first.delta", tmp_path / "second.delta"
    kedit(*one_edit(model, first))
    fact = ("--prompt", "the capital of {} is", "--subject", "land1", "--target", "Oslo")
    code, _, err = kedit(
        "edit", model, "--delta", first, "--method", "push", *fact, "--out", second
    )
    assert (code, err) == (0, "")
    assert load_deltas(second)[0] == load_deltas(first)[0]
    assert len(load_deltas(second)) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_and_device_can_be_chosen(kedit, model, tmp_path, dtype):
    out = tmp_path / "made.delta"
    code, _, err = kedit(*one_edit(model, out, "--dtype", dtype, "--device", "cpu"))
    assert (code, err) == (0, "")
    assert load_deltas(out)[0].provenance.device == "cpu"


def test_limit_takes_the_first_requests(kedit, model, requests, tmp_path):
    out = tmp_path / "made.delta"
    arguments = ("--method", "push", "--requests", requests, "--limit", 2, "--out", out)
    assert kedit("edit", model, *arguments)[0] == 0
    assert [delta.requests[0].target_new for delta in load_deltas(out)] == ["Rome", "Oslo"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--method", "pusch"], "kedit: unknown method 'pusch'"),
        (["--method", "shattered"], "kedit: plugin 'shattered' is installed but broken"),
        (["--set", "strenght=1"], "kedit: .*unknown setting 'strenght'; did you mean 'strength'"),
        (["--set", "strength=-1"], "kedit: .*'strength' must be > 0"),
        (["--set", "strength"], "kedit: --set: 'strength' is not of the form key=value"),
        (["--config", "absent.toml"], "kedit: absent.toml: cannot be read"),
        (["--delta", "absent.delta"], "kedit: absent.delta: there is no such file"),
        (["--requests", "absent.jsonl"], "kedit: --requests and --prompt are two ways"),
        (["--dtype", "float8"], "kedit: unknown dtype 'float8'; float32, "),
        (["--device", "abacus"], "kedit: device abacus: cannot be used: "),
        (["--target", " "], "kedit: target_new of .* is empty"),
        (["--subject", "Atlantis", "--prompt", "it is"], "kedit: subject 'Atlantis' is not in"),
        (["--out", "."], "kedit: .*cannot be written"),
    ],
)
def test_every_mistake_in_an_edit_is_one_sentence(
    kedit, model, tmp_path, monkeypatch, more, complaint
):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(kedit(*one_edit(model, "made.delta", *more)), complaint)
    assert not Path("made.delta").exists()


@pytest.mark.parametrize("asked", [[], ["--prompt", "x is"], ["--target", "x"], ["--subject", "x"]])
def test_an_edit_that_says_half_of_what_it_wants_is_asked_for_the_rest(kedit, model, asked):
    result = kedit("edit", model, "--method", "push", "--out", "made.delta", *asked)
    assert_one_sentence(result, "kedit: say what to edit: --requests FILE, or --prompt")


@pytest.mark.parametrize("asked", [["--prompt", "x is"], ["--target", "x"], ["--subject", "x"]])
def test_two_ways_to_ask_are_not_mixed(kedit, model, requests, asked):
    result = kedit("edit", model, "--method", "push", "--out", "x", "--requests", requests, *asked)
    assert_one_sentence(result, "kedit: --requests and --prompt are two ways to ask; use one")


def test_bad_records_are_left_out_and_counted_when_that_is_asked_for(kedit, model, tmp_path):
    lines = ["{", json.dumps(REQUESTS[0]), "[]", json.dumps({**REQUESTS[1], "target_new": ""})]
    lines += ["nul", json.dumps({**REQUESTS[2], "subject": "elsewhere", "prompt": "it is"}), "7"]
    path, out = tmp_path / "mixed.jsonl", tmp_path / "made.delta"
    path.write_text("\n".join([*lines, json.dumps(REQUESTS[2])]))
    words = ("edit", model, "--method", "push", "--requests", path, "--out", out)
    code, _, err = kedit(*words, "--skip-bad")
    assert code == 0
    assert [delta.requests[0].target_new for delta in load_deltas(out)] == ["Rome", "Lima"]
    first, second, third, total = err.splitlines()
    assert first.startswith(f"kedit: note: left out: {path}, line 1: is not JSON")
    assert second == f"kedit: note: left out: {path}, line 3: expected an object, found list"
    assert third.startswith(f"kedit: note: left out: {path}, line 4: target_new of ")
    assert total == "kedit: note: 6 records left out, 3 of them not shown"
    assert kedit(*words)[0] == 2


def test_a_file_with_nothing_but_bad_records_is_refused_all_the_same(kedit, model, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{")
    code, _, err = kedit("evaluate", model, "--requests", path, "--skip-bad")
    assert code == 2
    assert err.splitlines()[1:] == [
        "kedit: note: 1 record left out",
        f"kedit: {path}: holds no request that can be read",
    ]


def test_a_bad_line_of_a_request_file_is_named_before_any_model_is_opened(kedit, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "x is"}')
    result = kedit("edit", "nowhere", "--method", "push", "--requests", path, "--out", "x")
    assert_one_sentence(result, f"kedit: {path}, line 1: field 'target_new' is missing")


def damage(model, name, content):
    (model / name).write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda model: (model / "config.json").unlink(), "holds no config.json"),
        (lambda model: damage(model, "config.json", b"{"), "cannot be opened"),
        (lambda model: damage(model, "model.safetensors", b"junk"), "cannot be opened"),
        (lambda model: (model / "model.safetensors").unlink(), "cannot be opened"),
        (lambda model: damage(model, "tokenizer.json", b"{"), "cannot be opened"),
        (lambda model: [path.unlink() for path in model.glob("tok*")], "holds no tokenizer"),
    ],
)
def test_a_damaged_model_is_one_sentence(kedit, model, tmp_path, harm, complaint):
    harm(model)
    assert_one_sentence(kedit(*one_edit(model, tmp_path / "x")), f"kedit: {model}: .*{complaint}")


@pytest.mark.parametrize("source", ["nosuch:model", "/nowhere/at/all"])
def test_a_model_that_is_nowhere_is_one_sentence(kedit, tmp_path, source):
    assert_one_sentence(kedit(*one_edit(source, tmp_path / "x")), f"kedit: {source}: ")


def test_a_folder_with_a_colon_in_its_name_is_a_folder(kedit, model, tmp_path):
    renamed = model.rename(tmp_path / "run:7")
    assert kedit(*one_edit(renamed, tmp_path / "made.delta"))[0] == 0


def test_a_bug_of_a_method_is_shown_as_one(kedit, model, tmp_path):
    with pytest.raises(RuntimeError, match="the method has a bug"):
        kedit(*one_edit(model, tmp_path / "x", "--set", "mode=fail"))


@pytest.mark.parametrize(
    "arguments",
    [["edit"], ["nosuch"], ["show"], ["edit", "m", "--limit", "0"], ["list-methods", "-x"]],
)
def test_a_misused_command_line_is_one_sentence_that_says_where_the_help_is(kedit, arguments):
    assert_one_sentence(kedit(*arguments), r"kedit: .*[;?] see kedit .*--help$")


# --- evaluate and scope --------------------------------------------------------------------------


def test_evaluate_compares_with_the_unedited_model(kedit, model, requests, delta):
    code, out, err = kedit(
        "evaluate", model, "--requests", requests, "--delta", delta, "--json",
        "--metrics", "reliability.exact,locality.exact,portability.exact",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["edits_in_force"] == 3
    assert found["method"] == "push"
    assert set(found["before"]) == set(found["after"])
    assert "portability.exact" not in found["after"]
    assert found["missing"]["portability.exact"] == 3
    assert {score["metric"] for score in found["scores"]} >= {"reliability.exact", "locality.exact"}


def test_evaluate_without_a_delta_judges_the_model_as_it_is(kedit, model, requests):
    arguments = ("evaluate", model, "--requests", requests)
    code, out, err = kedit(*arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["edits_in_force"] == 0
    assert found["before"] == found["after"]
    code, out, err = kedit(*arguments)
    assert (code, err) == (0, "")
    assert "no edit in force" in out
    assert "portability.exact: no data in 3 requests" in out


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--metrics", "reliability.exakt"], "kedit: .*reliability.exakt"),
        (["--metrics", ""], "kedit: "),
        (["--metrics", "reliability.exact:known"], "kedit: .*'known' is not of the form key=value"),
        (["--delta", "absent"], "kedit: absent: there is no such file"),
        (["--chat", "--requests", "absent"], "kedit: absent: cannot be read"),
    ],
)
def test_every_mistake_in_an_evaluation_is_one_sentence(kedit, model, requests, more, complaint):
    result = kedit("evaluate", model, "--requests", requests, *more)
    assert_one_sentence(result, complaint)


def test_a_delta_of_another_model_is_refused(kedit, model, requests, delta):
    stored = model / "model.safetensors"
    tensors = load_file(stored)
    down = next(name for name in tensors if name.endswith("h.1.mlp.c_proj.weight"))
    save_file({**tensors, down: tensors[down] + 1}, stored, metadata={"format": "pt"})
    result = kedit("evaluate", model, "--requests", requests, "--delta", delta)
    assert_one_sentence(result, "kedit: .*h.1.mlp.c_proj.weight")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("the capital of land2 is\n\n  \nthe capital of [/b] Bern is\r\n", newline="")
    return path


def test_scope_says_which_edit_each_prompt_meets(kedit, model, delta, prompts):
    arguments = ("scope", model, "--delta", delta, "--prompts", prompts)
    code, out, err = kedit(*arguments, "--json")
    assert (code, err) == (0, "")
    newest = load_deltas(delta)[-1].requests[0].id
    assert json.loads(out) == [
        {"prompt": "the capital of land2 is", "probability": 1.0, "request": newest},
        {"prompt": "the capital of [/b] Bern is", "probability": 0.0, "request": None},
    ]
    code, out, err = kedit(*arguments)
    assert (code, err) == (0, "")
    assert f"1.000 {newest} the capital of land2 is" in " ".join(out.split())
    assert "[/b] Bern" in out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read .No such file"),
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        ("é".encode("latin-1"), "cannot be read .it is not UTF-8"),
    ],
)
def test_a_prompt_file_that_holds_no_prompt_is_one_sentence(
    kedit, model, delta, tmp_path, content, complaint
):
    path = tmp_path / "odd.txt"
    if content is not None:
        path.write_bytes(content)
    result = kedit("scope", model, "--delta", delta, "--prompts", path)
    assert_one_sentence(result, f"kedit: {path} {complaint}")


# --- plugins and the whole ------------------------------------------------------------------------


def test_a_plugin_adds_its_own_commands(kedit):
    assert kedit("push") == (0, "pushed\n", "")
    code, out, _ = kedit("--help")
    assert code == 0
    assert "push" in out


def test_a_plugin_whose_commands_fail_takes_no_other_command_away(kedit, push):
    install(push, "clumsy", BAD_COMMANDS)
    code, out, err = kedit("push")
    assert (code, out) == (0, "pushed\n")
    assert err == "kedit: plugin 'clumsy' cannot add its commands: no commands today\n"
    assert kedit("show", "push")[0] == 0


def test_without_a_command_the_help_is_shown(kedit):
    code, out, err = kedit()
    assert code == 2
    for command in ("list-methods", "show", "edit", "evaluate", "scope"):
        assert command in out + err


def test_an_interrupt_is_told_in_one_line(kedit, monkeypatch):
    def interrupted(_plugins, _arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("kedit_core.cli._run", interrupted)
    assert kedit("list-methods") == (130, "", "kedit: interrupted; nothing was left half done\n")


def test_no_number_is_lost_on_its_way_to_json(kedit, capsys):
    print_json({"a": float("nan"), "b": [float("-inf"), 0.1], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 0.1], "c": "x"}


def run_alone(*arguments, stdout):
    code = f"from kedit_core.cli import main; main({list(arguments)!r})"
    return subprocess.run(
        [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [["list-methods"], ["list-methods", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_one_sentence(arguments):
    with Path("/dev/full").open("w") as full:
        done = run_alone(*arguments, stdout=full)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the output cannot be written" in done.stderr


def test_a_reader_who_has_seen_enough_ends_the_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        done = run_alone("list-methods", stdout=nobody)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", ["requests", "config.json"])
def test_what_is_no_delta_file_is_never_overwritten(kedit, model, tmp_path, name):
    """Not the requests, and not a file of the model."""
    requests = tmp_path / "requests"
    requests.write_text(json.dumps(REQUESTS[0]) + "\n")
    out = requests if name == "requests" else Path(model) / name
    before = out.read_bytes()
    code, _, err = kedit("edit", model, "--method", "push", "--requests", requests, "--out", out)
    assert code == 2
    assert "is there and no delta file" in err
    assert out.read_bytes() == before


def test_a_command_that_fails_early_makes_no_folder(kedit, model, tmp_path):
    out = tmp_path / "new" / "folder" / "mine.delta"
    code, _, _ = kedit(
        "edit", model, "--method", "push", "--requests", tmp_path / "none", "--out", out
    )
    assert code == 2
    assert not (tmp_path / "new").exists()
