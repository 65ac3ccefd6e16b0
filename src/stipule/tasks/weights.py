"""What the named parts of a grade are worth: defaults by task and rules, changed by name in a recipe."""

from collections.abc import Mapping

from stipule.errors import RecipeError


def chosen_weights(given: Mapping[str, float], defaults: Mapping[str, float]) -> dict[str, float]:
    """The defaults with what is given in their place. Raises RecipeError for a part that the rules do not have."""
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise RecipeError(
            f"task.weights names {', '.join(unknown)}; the parts that can have a weight under these rules are "
            f"{', '.join(defaults)}; use those"
        )
    return {**defaults, **given}


def total(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum of the parts; a part without a weight is only reported."""
    return sum(weight * parts[name] for name, weight in weights.items())


def check_grading(grading: str, prompt: str) -> None:
    """Raises RecipeError for d1's rules on compact responses, which have no tags for them to read."""
    if grading == "d1" and prompt == "compact":
        raise RecipeError(
            "task.grading is 'd1' with task.prompt 'compact'; d1's rules read tagged and boxed answers, which compact "
            "responses do not have; set task.grading to 'strict', or task.prompt to 'd1'"
        )
