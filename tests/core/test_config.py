import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import field, frozen, validators

from kedit_core.config import as_mapping, load_config, merged, parse_settings
from kedit_core.errors import ConfigError
from kedit_core.methods import MethodInfo, NoConfig
from kedit_core.presets import Preset, preset_for, presets_of


@frozen(kw_only=True)
class Search:
    steps: int = field(default=20, validator=validators.ge(1))
    rate: float = 0.5


@frozen(kw_only=True)
class Settings:
    layer: int | None = None
    keys: Literal["mean", "bare"] = "mean"
    order: Literal[1, 2] = 1
    search: Search = field(factory=Search)
    again: Search | None = None
    lengths: tuple[int, ...] = (5, 10)
    pair: tuple[int, str] = (1, "a")
    names: list[str] = field(factory=list)
    kinds: frozenset[str] = frozenset()
    weights: dict[str, float] = field(factory=dict)
    size: int | Literal["all"] = 1
    corpus: str | None = None
    folder: Path = Path("here")
    exact: bool = False


@frozen(kw_only=True)
class Slow:
    search: Search = field(factory=lambda: Search(steps=70, rate=0.1))


@frozen(kw_only=True)
class Ordered:
    low: int = 0
    high: int = 1

    def __attrs_post_init__(self):
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


def test_nothing_given_is_all_defaults():
    assert load_config(Settings) == load_config(Settings, {}) == Settings()


def test_an_instance_is_taken_as_it_is():
    given = Settings(layer=3)
    assert load_config(Settings, given) is given


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("layer", 3, 3),
        ("layer", None, None),
        ("keys", "bare", "bare"),
        ("search", {"steps": 3}, Search(steps=3)),
        ("search", {"rate": 1}, Search(rate=1.0)),
        ("again", {"steps": 3}, Search(steps=3)),
        ("again", None, None),
        ("lengths", [1, 2, 3], (1, 2, 3)),
        ("lengths", [], ()),
        ("pair", [2, "b"], (2, "b")),
        ("names", ["a", "b"], ["a", "b"]),
        ("kinds", ["a", "a"], frozenset({"a"})),
        ("weights", {"a": 1}, {"a": 1.0}),
        ("size", "all", "all"),
        ("size", 5, 5),
        ("corpus", "5", "5"),
        ("folder", "a/b", Path("a/b")),
        ("exact", True, True),
    ],
)
def test_a_setting_is_taken_when_its_type_fits(name, given, taken):
    found = getattr(load_config(Settings, {name: given}), name)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"layr": 3}, "unknown setting 'layr'; did you mean 'layer'?"),
        ({7: 3}, "unknown setting '7'"),
        ({"search": {"step": 3}}, "search: unknown setting 'step'; did you mean 'steps'?"),
        ({"layer": "3"}, "layer: expected int, found '3'"),
        ({"layer": 3.0}, "layer: expected int, found 3.0"),
        ({"layer": True}, "layer: expected int, found True"),
        ({"search": {"rate": "0.1"}}, "rate: expected float, found '0.1'"),
        ({"search": {"rate": True}}, "rate: expected float, found True"),
        ({"search": {"rate": 10**400}}, "rate: .*too large"),
        ({"search": {"steps": 0}}, "'steps' must be >= 1: 0"),
        ({"search": 5}, "search: expected a table of settings, found 5"),
        ({"search": None}, "search: expected a table of settings, found None"),
        ({"again": {"step": 3}}, "again: unknown setting 'step'"),
        ({"exact": 1}, "exact: expected bool, found 1"),
        ({"exact": "true"}, "exact: expected bool, found 'true'"),
        ({"keys": "baer"}, "keys: 'baer' is none of mean, bare; did you mean 'bare'?"),
        ({"keys": ["mean"]}, "keys: .* is none of mean, bare"),
        ({"order": True}, "order: True is none of 1, 2"),
        ({"order": 1.0}, "order: 1.0 is none of 1, 2"),
        ({"lengths": "57"}, "lengths: expected a list, found '57'"),
        ({"lengths": [1, "2"]}, "lengths.*: expected int, found '2'"),
        ({"pair": [1]}, "pair: expected 2 values, found 1"),
        ({"names": "ab"}, "names: expected a list, found 'ab'"),
        ({"kinds": "ab"}, "kinds: expected a list, found 'ab'"),
        ({"kinds": {"a": 1}}, "kinds: expected a list"),
        ({"weights": [1]}, "weights: expected a mapping"),
        ({"weights": {"a": "x"}}, "weights.*a.*: expected float, found 'x'"),
        ({"size": "al"}, "size: expected int or Literal.'all'., found 'al'"),
        ({"size": None}, "size: expected int or .*, found None"),
        ({"corpus": 5}, "corpus: expected str, found 5"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_what_was_found(given, complaint):
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_config(Settings, given, where="config of mine")
    assert str(refused.value).startswith("config of mine: ")
    assert "\n" not in str(refused.value)


def test_all_complaints_are_made_at_once():
    with pytest.raises(ConfigError) as refused:
        load_config(Settings, {"layer": "x", "search": {"steps": "x", "rat": 1}, "nmaes": []})
    assert len(refused.value.problems) == 4


def test_a_rule_over_several_settings_is_heard():
    with pytest.raises(ConfigError, match="low 5 is above high 1"):
        load_config(Ordered, {"low": 5})


@pytest.mark.parametrize("source", [5, ["layer"], Search()])
def test_what_is_no_configuration_is_refused(source):
    with pytest.raises(ConfigError, match="expected Settings or a mapping"):
        load_config(Settings, source)


FULL = Settings(
    layer=3,
    search=Search(steps=2),
    again=Search(rate=0.1),
    kinds=frozenset({"b", "a"}),
    weights={"a": 0.5},
    names=["x"],
    size="all",
    folder=Path("a/b"),
)


@pytest.mark.parametrize("config", [Settings(), FULL])
def test_a_configuration_survives_a_trip_through_json(config):
    assert load_config(Settings, json.loads(json.dumps(as_mapping(config)))) == config


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "layer = 3\n[search]\nsteps = 2\n"),
        ("a.json", '{"layer": 3, "search": {"steps": 2}}'),
        ("a.JSON", '{"layer": 3, "search": {"steps": 2}}'),
        ("a.conf", "layer = 3\nsearch.steps = 2\n"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_is_read_as_its_name_says_and_as_toml_otherwise(tmp_path, name, text, mark):
    path = tmp_path / name
    path.write_text(mark + text, encoding="utf-8")
    assert load_config(Settings, path) == Settings(layer=3, search=Search(steps=2))
    assert load_config(Settings, str(path)) == load_config(Settings, path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.toml", b"layer: 3", "is not valid TOML"),
        ("a.yaml", b"layer: 3", "is not valid TOML"),
        ("a.json", b"layer = 3", "is not valid JSON"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.json", b"[1]", "holds no table of settings"),
        ("a.toml", b"\xff", "is not valid TOML"),
        ("a.toml", b"layr = 3", "unknown setting 'layr'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_config(Settings, path)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read .No such file"):
        load_config(Settings, tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ([], {}),
        (["layer=3"], {"layer": 3}),
        (["search.steps=2", "search.rate=0.1"], {"search": {"steps": 2, "rate": 0.1}}),
        (["keys=bare"], {"keys": "bare"}),
        (["corpus=a=b.txt"], {"corpus": "a=b.txt"}),
        (["corpus="], {"corpus": ""}),
        (['corpus="5"'], {"corpus": "5"}),
        (["layer=null", "exact=true"], {"layer": None, "exact": True}),
        (["lengths=[1, 2]"], {"lengths": [1, 2]}),
        (["layer=1", "layer=2"], {"layer": 2}),
    ],
)
def test_settings_of_the_command_line_are_json_or_else_text(settings, found):
    assert parse_settings(settings) == found


@pytest.mark.parametrize("settings", [["layer"], ["=3"], ["a=1", "a.b=2"]])
def test_a_setting_that_is_no_setting_is_refused(settings):
    with pytest.raises(ConfigError, match=r"^--set: "):
        parse_settings(settings)


def test_what_is_laid_above_wins_table_by_table():
    below = {"a": {"x": 1, "y": 2}, "b": 1, "c": {"z": 1}}
    assert merged(below, {"a": {"y": 3}, "b": {"w": 1}, "c": 5}) == {
        "a": {"x": 1, "y": 3},
        "b": {"w": 1},
        "c": 5,
    }
    assert below == {"a": {"x": 1, "y": 2}, "b": 1, "c": {"z": 1}}


@pytest.mark.parametrize(
    "changes",
    [{"name": ""}, {"kind": "weigths"}, {"needs": {"luck"}}, {"config": dict}, {"config": None}],
)
def test_a_card_that_says_what_no_method_can_be_is_refused(changes):
    card: dict[str, Any] = {"name": "mine", "summary": "s", "kind": "weights"}
    assert MethodInfo(**card).config is NoConfig
    with pytest.raises((ValueError, TypeError)):
        MethodInfo(**{**card, **changes})


class Shaped:
    """A model by the few figures that a preset goes by."""

    model_type, num_hidden_layers, hidden_size, intermediate_size = "llama", 32, 4096, 11008

    def get_text_config(self):
        return self

    @property
    def config(self):
        return self


def preset(name="Llama", **changes):
    figures = {"model_type": "llama", "layers": 32, "width": 4096, "source": "a paper"}
    return Preset(name=name, **{**figures, **changes})


@pytest.mark.parametrize("changes", [{"model_type": "gpt2"}, {"layers": 31}, {"width": 4}])
def test_a_preset_is_chosen_by_what_the_model_is(changes):
    assert preset_for(Shaped(), [preset("other", **changes), preset("it")]).name == "it"
    assert preset_for(Shaped(), [preset(**changes)]) is None


def test_models_that_differ_only_inside_their_mlp_have_presets_of_their_own():
    narrow, wide = preset("narrow", mlp_width=11008), preset("wide", mlp_width=14336)
    assert preset_for(Shaped(), [wide, narrow]).name == "narrow"
    assert preset_for(Shaped(), [wide]) is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "with_presets"
    (folder / "presets").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    del sys.modules["with_presets"]


def test_presets_lie_beside_the_plugin_in_order_of_their_names(package):
    import with_presets

    assert presets_of(with_presets) == ()
    for name in ("b", "a"):
        (package / "presets" / f"{name}.toml").write_text(
            f'name = "{name}"\nmodel_type = "llama"\nlayers = 2\nwidth = 4\nsource = "s"\n'
            "[config]\nlayer = 1\n"
        )
    (package / "presets" / "README.md").write_text("no preset")
    assert [found.name for found in presets_of(with_presets)] == ["a", "b"]
    assert presets_of(with_presets)[0].config == {"layer": 1}


@pytest.mark.parametrize("text", ["name =", 'name = "x"', 'nmae = "x"'])
def test_a_file_that_is_no_preset_is_named(package, text):
    import with_presets

    (package / "presets" / "broken.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"broken.toml: is no preset"):
        presets_of(with_presets)


def test_a_module_that_is_no_package_has_no_presets():
    assert presets_of(json.decoder) == ()


def test_naming_one_inner_setting_leaves_the_others_as_the_method_has_them() -> None:
    assert load_config(Slow, {"search": {"rate": 0.2}}).search == Search(steps=70, rate=0.2)
    assert load_config(Slow, {"search": {"steps": 5, "rate": 1.0}}).search == Search(
        steps=5, rate=1.0
    )


def test_an_unknown_inner_setting_is_refused_beside_inner_defaults() -> None:
    with pytest.raises(ConfigError, match="stepz"):
        load_config(Slow, {"search": {"stepz": 5}})
