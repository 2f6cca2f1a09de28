"""``kedit locate trace``, run as ``kedit`` runs it, on a tiny model folder."""

import json
import sys

import pytest
import torch

from kedit_core.cli import main
from kedit_locate import heat_map
from kedit_locate.effects import Effects, Proposal, Trace
from kedit_locate.heat_map import draw, save

QUICK = ("--samples", "2", "--noise", "3")


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    path = tmp_path / "tiny"
    tiny("gpt2", dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "facts.jsonl"
    lines = [
        {"prompt": "{} plays the", "subject": "Bordeaux", "target_new": "x"},
        {"prompt": "{} is in", "subject": "Lima", "target_new": "Oslo", "target_true": "zzz"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


@pytest.fixture
def kedit(capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["locate", "trace", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_the_table_shows_every_layer_what_was_left_out_and_a_proposal(folder, requests, kedit):
    code, out, err = kedit(folder, "--requests", requests, *QUICK)
    assert code == 0, err
    assert out.count("Restored:") == 3
    said = " ".join(out.split())
    assert "1 fact (1 left out: the model does not say target_true)" in said
    assert "proposed: --set layer=" in said
    assert not err


def test_one_json_document_holds_every_figure(folder, requests, kedit):
    code, out, err = kedit(folder, "--requests", requests, *QUICK, "--states", "mlp", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["facts"], found["unknown"], found["samples"]) == (1, 1, 2)
    assert list(found["effects"]) == ["mlp"]
    values = found["effects"]["mlp"]["values"]
    assert list(values) == list(found["groups"])
    assert all(len(row) == 3 for row in values.values())
    assert found["proposal"]["layer"] in found["proposal"]["layers"]


def test_a_heat_map_is_drawn_where_it_was_asked_for(folder, requests, kedit, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.svg"
    asked = ("--requests", requests, *QUICK, "--states", "mlp", "--out", path)
    code, out, err = kedit(folder, *asked)
    assert code == 0, err
    assert "Restored:" in out
    text = path.read_text(encoding="utf-8")
    assert "Where does tiny keep the facts of facts.jsonl?" in text
    assert "last subject token  (1)" in text
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(("name", "start"), [("map.svg", b"<?xml"), ("map.PNG", b"\x89PNG")])
def test_equal_traces_give_equal_pictures(tmp_path, name, start):
    pytest.importorskip("matplotlib")
    values = torch.linspace(-0.1, 0.9, 120, dtype=torch.float64).reshape(6, 20)
    values[0] = float("nan")
    effects = tuple(Effects(state=one, window=4, values=values) for one in ("hidden", "mlp"))
    trace = Trace(
        effects=effects,
        counts=(0, *[9] * 5),
        facts=9,
        unknown=0,
        clean=1.0,
        corrupted=0.1,
        deviation=1.0,
    )
    proposed = Proposal(layer=19, layers=(18, 19), effect=0.5)
    drawn = []
    for _ in range(2):
        save(draw(trace, proposed, "What was asked"), tmp_path / name)
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(start)


def test_without_matplotlib_the_error_says_what_to_install_before_any_work(
    kedit, tmp_path, monkeypatch
):
    monkeypatch.setattr(heat_map, "find_spec", lambda _: None)
    code, out, err = kedit("nowhere", "--requests", "nothing", "--out", tmp_path / "map.svg")
    assert code == 2
    assert 'pip install "kedit-locate[plot]"' in err
    assert not out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--out", "map.pdf"), "neither .svg nor .png"),
        (("--states", "mlps"), "did you mean 'mlp'"),
        (("--requests", "nowhere.jsonl"), "cannot be read"),
        (("--layout", "down=no.such.{}"), "no module"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    folder, requests, kedit, options, complaint
):
    code, out, err = kedit(folder, "--requests", requests, *options)
    assert code == 2
    assert err.startswith("kedit: ")
    assert len(err.strip().splitlines()) == 1
    assert complaint in err
    assert not out
