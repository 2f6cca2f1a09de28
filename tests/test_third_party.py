"""A stranger's method, from its wheel to an edit, in an environment without anything else of ours."""

import json
from pathlib import Path

import pytest

from kedit_core import EditRequest
from kedit_core.testing import trained_model
from tests.clean_environment import CleanEnvironment, build, make

pytestmark = pytest.mark.timeout(900)  # many processes, each of which loads torch

ROOT = Path(__file__).parent.parent
GRACE = ROOT / "tests" / "third_party" / "kedit-grace"
FACT = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Oslo"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> CleanEnvironment:
    folder = tmp_path_factory.mktemp("third-party")
    (folder / "wheels").mkdir()
    wheels = build(folder / "wheels", ROOT, GRACE)
    return make(folder, wheels, "testing")


@pytest.fixture(scope="module")
def kept(request) -> str:
    """Return pytest's cache folder, so that the contract's models are trained once."""
    return str(request.config.cache.mkdir("kedit").parent.parent)


@pytest.fixture(scope="module")
def model(environment, request) -> str:
    """Return the folder of a small model that knows facts."""
    found, tokenizer = trained_model("gpt2", cache_folder=request.config.cache.mkdir("kedit"))
    folder = environment.scratch / "model"
    found.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def said(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_tests(environment, kept, folder):
    options = ("-q", "-W", "error", "-o", f"cache_dir={kept}", "-c", str(folder / "pyproject.toml"))
    return environment.run("python", "-m", "pytest", *options, str(folder / "tests"))


def test_a_clean_environment_has_the_stranger_and_nothing_else_of_ours(environment):
    (row,) = said(environment.run("kedit", "list-methods", "--json"))
    assert (row["method"], row["package"]) == ("grace", "kedit-grace 0.1.0")
    assert (row["kind"], row["problem"]) == ("side-memory", None)
    where = environment.run("python", "-c", "import kedit_core; print(kedit_core.__file__)")
    assert where.stdout.startswith(str(environment.folder))


def test_a_stranger_edits_scopes_and_is_judged_from_the_command_line(environment, model, tmp_path):
    delta, facts, prompts = (tmp_path / name for name in ("mine.delta", "facts.jsonl", "prompts"))
    one = [f"--{name.removesuffix('_new')}={value}" for name, value in FACT.items()]
    made = said(
        environment.run("kedit", "edit", model, "--method=grace", *one, f"--out={delta}", "--json")
    )
    assert made["edits"][0]["before"].startswith("Paris")
    assert made["edits"][0]["after"].startswith("Oslo")
    facts.write_text(json.dumps(FACT))
    judged = said(
        environment.run(
            "kedit", "evaluate", model, f"--delta={delta}", f"--requests={facts}", "--json"
        )
    )
    assert judged["before"]["reliability.exact"] == 0
    assert judged["after"]["reliability.exact"] == 1
    prompts.write_text("The capital of France is\nThe capital of Norway is\n")
    scope = environment.run(
        "kedit", "scope", model, f"--delta={delta}", f"--prompts={prompts}", "--json"
    )
    inside, outside = said(scope)
    assert inside["request"] == EditRequest(**FACT).id
    assert outside["request"] is None


def test_a_stranger_keeps_the_contract(environment, kept):
    done = run_tests(environment, kept, GRACE)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


def test_a_new_method_installs_and_passes_at_once(environment, kept, tmp_path):
    made = said(environment.run("kedit", "new-method", "path-finder", "--json"))
    folder = environment.scratch / made["folder"]
    environment.install(*build(tmp_path, folder))
    methods = said(environment.run("kedit", "list-methods", "--json"))
    assert [row["method"] for row in methods] == ["grace", "path-finder"]
    done = run_tests(environment, kept, folder)
    assert done.returncode == 0, done.stdout


# --- broken neighbours ---------------------------------------------------------------------------

METHOD = """
from kedit_core import MethodInfo, hookimpl

@hookimpl
def method_info():
    return MethodInfo(name="{name}", summary="", kind="weights")

@hookimpl
def {hook}(batch):
    return None
"""
BROKEN = {
    "kedit-raising": ("raising", "raise RuntimeError('no such library here')"),
    "kedit-misspelt": ("misspelt", METHOD.format(name="misspelt", hook="compute_dleta")),
    "kedit-first": ("twice", METHOD.format(name="twice", hook="compute_delta")),
    "kedit-second": ("twice", METHOD.format(name="twice", hook="compute_delta")),
}


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory) -> Path:
    """Return a folder of installed distributions that cannot be used."""
    folder = tmp_path_factory.mktemp("broken")
    for distribution, (method, code) in BROKEN.items():
        module = distribution.replace("-", "_")
        (folder / f"{module}.py").write_text(code)
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[kedit]\n{method} = {module}\n")
    return folder


def test_broken_neighbours_are_rows_and_disturb_nobody(environment, neighbours):
    rows = said(environment.run("kedit", "list-methods", "--json", path=neighbours))
    problems = {row["method"]: row["problem"] for row in rows}
    assert problems["grace"] is None
    assert "no such library here" in problems["raising"]
    assert "'compute_dleta'; did you mean 'compute_delta'?" in problems["misspelt"]
    assert "kedit-first 1.0 and kedit-second 1.0" in problems["twice"]


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("raising", ["raising", "no such library here"]),
        ("misspelt", ["misspelt", "compute_dleta"]),
        ("twice", ["kedit-first 1.0", "kedit-second 1.0"]),
    ],
)
def test_using_a_broken_neighbour_is_one_sentence_that_names_it(
    environment, neighbours, method, names
):
    done = environment.run("kedit", "show", method, path=neighbours)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert all(name in sentence for name in names)


def test_the_example_of_the_docs_is_short():
    lines = [
        line
        for path in (GRACE / "kedit_grace").glob("*.py")
        for line in path.read_text().splitlines()
        if line.strip()
    ]
    assert len(lines) <= 150
