"""Settings: what is refused, and what was published for real models."""

import pytest

import kedit_wise
from kedit_core.config import load_config
from kedit_core.errors import ConfigError
from kedit_core.presets import presets_of
from kedit_wise.config import WiseConfig

PRESETS = presets_of(kedit_wise)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shards": {"size": 3, "every": 10, "merge": "ties"}}, "no multiple of size"),
        ({"descent": {"mask": 0.0}}, "mask"),
        ({"descent": {"clamp": 0.0}}, "holds everything back"),
        ({"routes": {"measure": "nearest"}}, "measure"),
        ({"layer": 3}, "layer"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        load_config(WiseConfig, settings, where="settings")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_names_a_layer_for_either_writer_and_where_it_comes_from(preset):
    config = load_config(WiseConfig, preset.config, where=preset.name)
    assert preset.source
    for layer in (config.closed_form.layer, config.descent.layer):
        assert 0 <= layer < preset.layers


def test_five_models_have_presets():
    names = {preset.name for preset in PRESETS}
    assert names == {"Llama-2-7B", "Llama-3-8B", "Mistral-7B", "Qwen2.5-7B", "GPT-J-6B"}
