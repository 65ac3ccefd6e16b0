"""The weight of each reward part: defaults by task and grading; a recipe overrides them by name."""

from collections.abc import Mapping

from stipule.errors import RecipeError


def merge_weights(overrides: Mapping[str, float], defaults: Mapping[str, float]) -> dict[str, float]:
    """The defaults, with the overrides applied.  Raises RecipeError for a part that is not in the defaults."""
    unknown = [name for name in overrides if name not in defaults]
    if unknown:
        raise RecipeError(
            f"task.weights names {', '.join(unknown)}; the parts that can have a weight with this task.grading are "
            f"{', '.join(defaults)}; use those"
        )
    return {**defaults, **overrides}


def weighted_sum(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The reward: the weighted sum of the parts.  A part without a weight is reported only."""
    return sum(weight * parts[name] for name, weight in weights.items())


def check_grading(grading: str, prompt: str) -> None:
    """Raises RecipeError for d1's grading with compact prompts: it reads tags, which compact responses do not have."""
    if grading == "d1" and prompt == "compact":
        raise RecipeError(
            "task.grading is 'd1' with task.prompt 'compact'; d1's rules read tagged and boxed answers, which compact "
            "responses do not have; set task.grading to 'strict', or task.prompt to 'd1'"
        )
