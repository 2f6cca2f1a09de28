"""The sufficiency report: what half of the text says of all of it."""

import json

import pytest
import torch

from kedit_core import EditRequest, TensorCache
from kedit_core.cli import main
from kedit_core.errors import RequestError
from kedit_locate.moments import Moment
from kedit_locate.sufficiency import Sufficiency, subject_rows, sufficiency, verdict

WIDTH = 24


def moment(rows):
    return Moment(matrix=(rows.T @ rows / len(rows)).float(), count=len(rows))


def drawn(tokens, seed=0):
    """Return keys of a text whose features are correlated, (tokens, in_features)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)).double()
    return torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64) @ mixing


def judged(tokens):
    rows = drawn(tokens)
    return sufficiency(3, moment(rows), moment(rows[: tokens // 2]), drawn(16, seed=1))


def test_the_figures_are_those_of_the_solutions():
    rows, keys = drawn(300), drawn(5, seed=1)
    found = sufficiency(3, moment(rows), moment(rows[:150]), keys)
    cosines, norms, disturbed = [], [], [0.0, 0.0]
    whole = moment(rows).matrix.double()
    for key in keys:
        pair = []
        for place, part in enumerate((rows[:150], rows)):
            direction = torch.linalg.solve(moment(part).matrix.double(), key)
            pair.append(direction / (key @ direction))
            disturbed[place] += float(pair[-1] @ whole @ pair[-1])
        cosines.append(float(torch.cosine_similarity(*pair, dim=0)))
        norms.append(abs(float(pair[0].norm() / pair[1].norm()) - 1))
    assert (found.layer, found.tokens, found.half, found.keys) == (3, 300, 150, 5)
    assert found.cosine == pytest.approx(sum(cosines) / 5, rel=1e-6)
    assert found.norm == pytest.approx(sum(norms) / 5, rel=1e-6)
    assert found.disturbance == pytest.approx(disturbed[0] / disturbed[1] - 1, rel=1e-5)


def test_more_text_makes_the_halves_agree():
    found = [judged(tokens) for tokens in (100, 1000, 10_000)]
    assert [one.disturbance for one in found] == sorted(
        (one.disturbance for one in found), reverse=True
    )
    assert [one.cosine for one in found] == sorted(one.cosine for one in found)
    assert found[0].disturbance > 10 * found[2].disturbance > 0
    assert [one.enough for one in found] == [False, True, True]


def test_what_the_half_lacks_is_about_what_the_whole_still_lacks():
    rows, keys = drawn(1000), drawn(200, seed=1)
    found = sufficiency(0, moment(rows), moment(rows[:500]), keys)
    more = sufficiency(0, moment(drawn(100_000, seed=5)), moment(rows), keys)
    assert found.disturbance == pytest.approx(more.disturbance, rel=0.3)


def test_half_of_a_text_that_repeats_itself_says_all():
    rows = drawn(200)
    found = sufficiency(0, moment(rows.repeat(2, 1)), moment(rows), drawn(8, seed=1))
    assert found.cosine == pytest.approx(1, abs=1e-9)
    assert found.norm == pytest.approx(0, abs=1e-6)
    assert found.disturbance == pytest.approx(0, abs=1e-6)
    assert found.enough


def test_fewer_tokens_than_features_still_give_figures():
    found = judged(30)
    assert all(torch.isfinite(torch.tensor([found.cosine, found.norm, found.disturbance])))
    assert not found.enough


def test_the_verdict_names_the_layers_that_lack_text():
    common = {"tokens": 2, "half": 1, "keys": 1, "cosine": 0.9, "norm": 0.1}
    fine = Sufficiency(layer=1, disturbance=0.02, **common)
    poor = Sufficiency(layer=4, disturbance=0.3, **common)
    assert "enough" in verdict([fine])
    assert "layer 4:" in verdict([fine, poor])
    assert "15% less" in verdict([fine, poor])


def test_keys_are_looked_up_at_the_subjects_last_token(tokenizer):
    request = EditRequest(prompt="The home of {} is", subject="Toko Yasuda", target_new="x")
    (row,) = subject_rows(tokenizer, [request])
    assert tokenizer.decode(row.prompt) == "The home of Toko Yasuda"
    with pytest.raises(RequestError, match="subject"):
        subject_rows(tokenizer, [EditRequest(prompt="The home is", target_new="x")])


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    path = tmp_path / "model"
    tiny("gpt2", dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def kedit(capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["locate", "stats", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_the_command_judges_each_layer_and_says_what_it_means(folder, kedit, tmp_path):
    quick = (folder, "--layers", "0,2", "--tokens", "1500", "--length", "16")
    assert kedit("build", *quick)[0] == 0
    code, out, err = kedit("sufficiency", *quick, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["layer"] for one in found["layers"]] == [0, 2]
    assert all(0 < one["cosine"] <= 1 and one["keys"] == 64 for one in found["layers"])
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"prompt": "{} is", "subject": "Lima", "target_new": "x"}', encoding="utf-8")
    code, out, err = kedit("sufficiency", *quick, "--requests", facts)
    assert code == 0, err
    assert "COSINE" in out
    assert "solutions from half of the tokens" in " ".join(out.split())


def test_statistics_without_halves_are_refused_in_one_sentence(folder, kedit):
    code, out, err = kedit(
        "sufficiency", folder, "--layers", "0", "--tokens", "100", "--length", "16"
    )
    assert code == 2
    assert err.startswith("kedit: ")
    assert "have no halves" in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert len(TensorCache().keys("moments")) == 1
