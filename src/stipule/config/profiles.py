"""Profiles: several settings of a recipe in one word, `profile: fast`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stipule.errors import RecipeError
from stipule.models.loading import best_device
from stipule.training.provenance import has_bfloat16_units


def fast_profile(model: Mapping[str, Any]) -> dict[str, Any]:
    """What costs least on the testbeds without a loss of accuracy that 5 to 10 seeds show (docs/results.md).

    Rollouts are approximate, and `training.agreement_every` logs how much they differ. `model`: the model section as
    written; float32 weights are multiplied in bfloat16 where the device has units for it.
    """
    settings: dict[str, Any] = {
        "sampler": {"confidence_threshold": 0.9},
        "pruning": {"temporal": {"kind": "confident", "cutoff": 0.5, "threshold": 0.9}},
    }
    gains_from_bfloat16 = best_device() == "cuda" or has_bfloat16_units()
    if gains_from_bfloat16 and model.get("dtype", "float32") == "float32" and not model.get("quantize"):
        settings["model"] = {"autocast": True}
    return settings


PROFILES = {"fast": fast_profile}


def read_profile(name: object, written: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a profile. `written`: those of the recipe and its overrides.

    Raises RecipeError for an unknown profile, or for a setting that is written with another value. So a profile is
    followed whole or not at all, and the order of the two does not matter.
    """
    if not isinstance(name, str) or name not in PROFILES:
        raise RecipeError(f"profile is {name!r}; it names several settings at once; allowed: {', '.join(PROFILES)}")
    model = written.get("model")
    settings = PROFILES[name](model if isinstance(model, Mapping) else {})
    for setting, value in _leaves(settings):
        is_written, other = _look_up(written, setting)
        if is_written and other != value and setting != "model.autocast":
            raise RecipeError(
                f"profile is {name}, which sets {setting}={value}, but the recipe has {setting}={other}; leave "
                f"{setting} out, or leave profile out and set what you want of it"
            )
    return settings


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _look_up(written: Mapping[str, Any], setting: str) -> tuple[bool, Any]:
    """Whether a dotted setting is written, and its value."""
    section: Any = written
    for key in setting.split("."):
        if not isinstance(section, Mapping) or key not in section:
            return False, None
        section = section[key]
    return True, section
