"""Settings published for a model, matched by what the model is and never by its path."""

import tomllib
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from types import ModuleType
from typing import Any

from attrs import field, frozen

from kedit_core.errors import ConfigError


@frozen(kw_only=True)
class Preset:
    """Settings of a method for one model.

    Attributes:
        name: the model as people call it.
        model_type: ``model_type`` of its configuration.
        layers: number of its layers.
        width: its hidden size.
        mlp_width: width inside its MLP, where models of one type share all of the above.
        source: where the settings come from.
        config: the settings, laid over the method's defaults and below the user's.
    """

    name: str
    model_type: str
    layers: int
    width: int
    source: str
    mlp_width: int | None = None
    config: dict[str, Any] = field(factory=dict)


def presets_of(module: ModuleType) -> tuple[Preset, ...]:
    """Return the presets that a plugin ships as ``presets/*.toml`` beside its module.

    Raises:
        ConfigError: a file is no preset.
    """
    if not hasattr(module, "__path__"):
        return ()
    folder = resources.files(module) / "presets"
    if not folder.is_dir():
        return ()
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(_read(file) for file in files)


def _read(file: Traversable) -> Preset:
    try:
        return Preset(**tomllib.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ConfigError(str(file), [f"is no preset ({error})"]) from None


def preset_for(model: Any, presets: Iterable[Preset]) -> Preset | None:
    """Return the preset made for this model, or None."""
    config = model.config.get_text_config()
    model_is = (config.model_type, config.num_hidden_layers, config.hidden_size)
    mlp_width = getattr(config, "intermediate_size", None)
    for preset in presets:
        same = (preset.model_type, preset.layers, preset.width) == model_is
        if same and preset.mlp_width in (None, mlp_width):
            return preset
    return None
