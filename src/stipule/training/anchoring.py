"""Where a run's anchors come from (tables 4 and 7), and how the last visit's responses become the next ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stipule.errors import CheckpointError, RecipeError
from stipule.models.policy import MaskedPolicy
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.gamma import ByDifficulty
from stipule.rollouts.grading import Graded
from stipule.rollouts.pregenerate import from_texts, pregenerate, read_texts
from stipule.rollouts.pruning import Spatial
from stipule.tasks.problem import Problem
from stipule.training.checkpoint import Progress
from stipule.training.folder import RunFolder
from stipule.training.ranks import Ranks
from stipule.training.settings import Recipe
from stipule.types import Responses

Watch = Callable[[str, Mapping[str, Any]], None]


def check_source(spatial: Spatial) -> None:
    """Raises RecipeError, before a model loads, if the file that anchors shall come from is not there."""
    if spatial.ratio > 0 and spatial.path and not Path(spatial.path).is_file():
        raise RecipeError(
            f"pruning.spatial.path is {spatial.path!r}, where no file is; build one with stipule anchors build, or "
            "remove the setting so that the run builds its own"
        )


def moving_anchors(recipe: Recipe) -> bool:
    """Whether anchors are the last visit's responses, so that they change with the run."""
    return recipe.pruning.spatial.source == "last_visit"


def anchor_store(
    recipe: Recipe,
    folder: RunFolder,
    place: Path | None,
    policy: MaskedPolicy,
    problems: Sequence[Problem],
    progress: Progress,
    watch: Watch,
    ranks: Ranks,
) -> AnchorStore | None:
    """The static dataset: none, the run's own, one from elsewhere, or the last visit's responses.

    Raises CheckpointError if a store is damaged, of another tokenizer or length, or of another model than it claims.
    """
    spatial, length = recipe.pruning.spatial, recipe.sampler.length
    if spatial.ratio == 0:
        return None
    if spatial.source == "last_visit":
        if place:
            return AnchorStore.load(place / "anchors.safetensors", policy, length, same_model=False)
        return AnchorStore(length, policy.vocabulary)
    ready = spatial.source == "pregenerated" and spatial.path is not None
    kept = Path(str(spatial.path)) if ready else folder.path / "anchors.safetensors"
    if place and not kept.exists():
        raise CheckpointError(f"{kept} is gone; a run cannot go on without the anchors it began with; start it anew")
    if not ready and not place and not ranks.first:  # the first rank makes it, the others read it
        ranks.wait()
        store = AnchorStore.load(kept, policy, length)
    elif ready or place:
        # In a resumed run the policy has moved on from the model that the store was made with.
        store = AnchorStore.load(kept, policy, length, same_model=place is None)
    else:
        store = build_store(
            recipe, policy, problems, kept, lambda done, total: watch("anchors", {"done": done, "total": total})
        )
        ranks.wait()
    progress.pregeneration_calls = store.model_calls
    return store


def build_store(
    recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem], place: Path, progress: Callable[[int, int], None]
) -> AnchorStore:
    """Makes the recipe's static dataset at `place`; goes on with what is there already of an interrupted attempt."""
    spatial, settings, length = recipe.pruning.spatial, recipe.training, recipe.sampler.length
    # Also refuses to write over a file that is no store.
    begun = AnchorStore.load(place, policy, length, unfinished=True) if place.exists() else None
    if spatial.source in ("ground_truth", "file"):
        if spatial.source == "file":
            texts = read_texts(Path(str(spatial.path)), problems)
        else:
            texts = {p.key: text for p in problems if (text := recipe.task.reference(p)) is not None}
        return from_texts(policy, recipe.task, problems, texts, length, settings.rollout_rows, place, progress)
    return pregenerate(
        policy, recipe.task, problems, recipe.sampler, settings.seed, settings.rollout_rows, progress, place, begun
    )


def audited_store(
    recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem], progress: Callable[[int, int], None]
) -> AnchorStore:
    """The anchors of a few problems, as a run would have them at its start, without leaving a file behind.

    For `last_visit`, whose first visit has none, the model's own responses stand in.
    """
    spatial = recipe.pruning.spatial
    if spatial.ratio == 0:
        raise RecipeError(
            "pruning.spatial.ratio is 0, so there are no anchors to audit; set it, e.g. pruning.spatial.ratio=0.05"
        )
    if spatial.source == "pregenerated" and spatial.path:
        return AnchorStore.load(Path(spatial.path), policy, recipe.sampler.length)
    with TemporaryDirectory() as folder:
        return build_store(recipe, policy, problems, Path(folder) / "anchors.safetensors", progress)


def shares_solved(recipe: Recipe, asked: Sequence[Problem], graded: Graded) -> dict[str, float]:
    """What anchors that go by difficulty need of this visit: the share of each group that was right. Else nothing."""
    if not isinstance(recipe.pruning.spatial.vary, ByDifficulty):
        return {}
    shares = graded.correct.view(-1, recipe.training.group).float().mean(1)
    return dict(zip((p.key for p in asked), shares.tolist(), strict=True))


def remember(
    recipe: Recipe,
    store: AnchorStore,
    policy: MaskedPolicy,
    asked: Sequence[Problem],
    responses: Responses,
    graded: Graded,
) -> None:
    """Keeps the best-rewarded response of each group as its problem's next anchor (the first among equals)."""
    group = recipe.training.group
    best = graded.reward.view(-1, group).argmax(1) + torch.arange(len(asked)) * group
    chosen = responses[best.to(responses.tokens.device)]
    eligible = eligible_tokens(policy, recipe.task, asked, chosen)
    store.put([p.key for p in asked], chosen, eligible, graded.correct[best])
