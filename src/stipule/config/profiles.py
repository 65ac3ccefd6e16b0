"""Profiles: several settings of a recipe in one word, `profile: fast` or `profile: published_stp`."""

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


def published_stp_profile(model: Mapping[str, Any]) -> dict[str, Any]:
    """STP as the code of its authors runs it, where that differs from the paper (docs/decisions.md has each point).

    Gamma and t_cutoff are those of table 8, and may be set otherwise. The model section has no effect.
    """
    spatial = {"ratio": 0.05, "ratio_of": "eligible", "keep": "confident", "confidence": "fully_masked"}
    anchors = {"source": "pregenerated", "protect": "answer_content", "retokenize": True}
    return {
        "sampler": {"block_schedule": "fixed", "resample_noise": True},
        "pruning": {
            "spatial": {**spatial, **anchors},
            "temporal": {"kind": "constant", "cutoff": 0.05, "tail": "sample", "rounding": "ceil"},
        },
        "estimator": {"kind": "mean_log_prob", "anchors": "inside"},
        "advantage": {"kind": "group_relative", "std": "sample", "std_epsilon": 1e-4},
        "objective": {"kind": "grpo", "loss_aggregation": "token", "match_published_code": True},
        "optimizer": {"max_grad_norm": 0.2},
    }


PROFILES = {"fast": fast_profile, "published_stp": published_stp_profile}
# What a profile only proposes: a recipe may have another value.
PROPOSED = {"fast": {"model.autocast"}, "published_stp": {"pruning.spatial.ratio", "pruning.temporal.cutoff"}}


def read_profile(name: object, written: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a profile. `written`: those of the recipe and its overrides.

    Raises RecipeError for an unknown profile, or for settings that are written with other values; it names all of them.
    So a profile is followed whole or not at all, and the order of the two does not matter.
    """
    if not isinstance(name, str) or name not in PROFILES:
        raise RecipeError(f"profile is {name!r}; it names several settings at once; allowed: {', '.join(PROFILES)}")
    model = written.get("model")
    settings = PROFILES[name](model if isinstance(model, Mapping) else {})
    proposed = PROPOSED[name]
    fixed = {setting: value for setting, value in _leaves(settings) if setting not in proposed}
    others = {setting: _look_up(written, setting) for setting in fixed}
    wrong = [setting for setting, (is_written, value) in others.items() if is_written and value != fixed[setting]]
    if wrong:
        each = (
            f"sets {setting}={fixed[setting]}, but the recipe has {setting}={others[setting][1]}" for setting in wrong
        )
        raise RecipeError(
            f"profile is {name}, which {'; it '.join(each)}; leave {' and '.join(wrong)} out or set what the profile "
            "sets, or leave profile out and set what you want of it"
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
