"""Where a run's anchors come from (tables 4 and 7), and how rollouts become the anchors of the next epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stipule.errors import CheckpointError, RecipeError
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.pregenerate import (
    EARLIER_CHOICES,
    SINGLE_PROCESS,
    ProcessGroup,
    pregenerate,
    read_texts,
    store_from_texts,
)
from stipule.rollouts.pruning import SpatialPruning
from stipule.rollouts.reward_batch import RewardBatch
from stipule.tasks.problem import Problem
from stipule.training.checkpoint import TrainState
from stipule.training.context import RunContext
from stipule.training.distributed import DistributedContext
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.types import Rollouts

# Called with the name and the data of an event. A true value after "step" asks the run to save and end.
Watch = Callable[[str, Mapping[str, Any]], object]


def check_source(spatial: SpatialPruning) -> None:
    """Raises RecipeError, before a model loads, if the file that anchors come from is missing."""
    if spatial.ratio > 0 and spatial.path and not Path(spatial.path).is_file():
        raise RecipeError(
            f"pruning.spatial.path is {spatial.path!r}, but there is no such file; build one with stipule anchors "
            "build, or remove the setting so that the run builds its own"
        )


def anchors_change(recipe: Recipe) -> bool:
    """Whether anchors are rollouts of the previous epoch, so that they change during the run."""
    return recipe.pruning.spatial.source == "previous_epoch"


def load_or_build_anchors(
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Path | None,
    policy: MaskedPolicy,
    problems: Sequence[Problem],
    state: TrainState,
    watch: Watch,
    processes: DistributedContext,
) -> AnchorStore | None:
    """The anchor store: none, the run's own, one from elsewhere, or the rollouts of the previous epoch.

    Raises CheckpointError if a store is damaged, of another tokenizer or length, or made with other weights.
    """
    spatial, gen_length = recipe.pruning.spatial, recipe.sampler.gen_length
    if spatial.ratio == 0:
        return None
    if anchors_change(recipe):
        if checkpoint:
            return AnchorStore.load(checkpoint / "anchors.safetensors", policy, gen_length, same_model=False)
        return AnchorStore(gen_length, policy.vocab_size)
    is_given = spatial.source == "pregenerated" and spatial.path is not None
    path = Path(str(spatial.path)) if is_given else folder.path / "anchors.safetensors"
    if checkpoint and not path.exists():
        raise CheckpointError(
            f"{path} is missing; a run cannot continue without the anchors it began with; start again"
        )
    if is_given or checkpoint:
        # In a resumed run the policy has changed since the store was made.
        store = AnchorStore.load(path, policy, gen_length, same_model=checkpoint is None)
        _check_choices(spatial, store, path)
    else:

        def progress(done: int, total: int) -> None:
            watch("anchors", {"done": done, "total": total})

        store = build_store(recipe, policy, problems, path, progress, processes)
    state.pregeneration_calls, state.pregeneration_tokens = store.model_calls, store.computed_tokens
    return store


def _check_choices(spatial: SpatialPruning, store: AnchorStore, path: Path) -> None:
    """Raises CheckpointError if the responses of a store were scored or encoded otherwise than the recipe says."""
    if spatial.source != "pregenerated":
        return
    stored = {**EARLIER_CHOICES, **store.settings}
    if stored["confidence"] != spatial.confidence:
        raise CheckpointError(
            f"the confidences in {path} are {stored['confidence']}, and pruning.spatial.confidence is "
            f"{spatial.confidence}; set it to {stored['confidence']}, or build another store with stipule anchors build"
        )
    for name in ("protect", "retokenize"):
        if stored[name] != getattr(spatial, name):
            raise CheckpointError(
                f"the anchors in {path} were made with {name} {stored[name]}, and pruning.spatial.{name} is "
                f"{getattr(spatial, name)}; set it to {stored[name]}, or build another store with stipule anchors build"
            )


def build_store(
    recipe: Recipe,
    policy: MaskedPolicy,
    problems: Sequence[Problem],
    path: Path,
    progress: Callable[[int, int], None],
    processes: ProcessGroup = SINGLE_PROCESS,
) -> AnchorStore:
    """Builds the recipe's anchor store at `path`; continues an interrupted attempt that is there already.

    All processes must call: each of them samples its part of the batches, and gets the whole store.
    """
    spatial, settings, gen_length = recipe.pruning.spatial, recipe.training, recipe.sampler.gen_length
    # Also refuses to overwrite a file that is no store.
    unfinished = AnchorStore.load(path, policy, gen_length, unfinished=True) if path.exists() else None
    processes.all_gather_object([None])  # no process writes before all have read
    batch_size = settings.rollout_batch_size
    if spatial.source in ("ground_truth", "file"):
        if spatial.source == "file":
            texts = read_texts(Path(str(spatial.path)), problems)
        else:
            texts = {p.key: text for p in problems if (text := recipe.task.reference(p)) is not None}
        return store_from_texts(
            policy, recipe.task, problems, texts, gen_length, batch_size, path, progress, processes, spatial.protect
        )
    return pregenerate(
        policy, recipe.task, problems, recipe.sampler, settings.seed, batch_size, progress, path, unfinished, processes,
        spatial.confidence, spatial.protect, spatial.retokenize,
    )  # fmt: skip


def temporary_store(
    recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem], progress: Callable[[int, int], None]
) -> AnchorStore:
    """The anchors of some problems, as a run would have them at its start. Leaves no file behind.

    With `previous_epoch`, which has no anchors at the start, the model's own responses are used.
    """
    spatial = recipe.pruning.spatial
    if spatial.ratio == 0:
        raise RecipeError(
            "pruning.spatial.ratio is 0, so there are no anchors to audit; set it, e.g. pruning.spatial.ratio=0.05"
        )
    if spatial.source == "pregenerated" and spatial.path:
        store = AnchorStore.load(Path(spatial.path), policy, recipe.sampler.gen_length)
        _check_choices(spatial, store, Path(spatial.path))
        return store
    with TemporaryDirectory() as folder:
        return build_store(recipe, policy, problems, Path(folder) / "anchors.safetensors", progress)


def update_anchors(run: RunContext, problems: Sequence[Problem], rollouts: Rollouts, rewards: RewardBatch) -> None:
    """With `previous_epoch`, stores the rollout with the highest reward of each group as its problem's next anchor."""
    if run.anchor_store is None or not anchors_change(run.recipe):
        return
    best = rewards.rewards.view(-1, run.num_generations).argmax(1)  # the first among equals
    rows = best + torch.arange(len(problems)) * run.num_generations
    chosen = rollouts[rows.to(rollouts.completion_ids.device)]
    eligible = eligible_tokens(run.policy, run.recipe.task, problems, chosen, run.recipe.pruning.spatial.protect)
    run.anchor_store.put([p.key for p in problems], chosen, eligible, rewards.correct[rows])


def update_accuracies(run: RunContext, problems: Sequence[Problem], rewards: RewardBatch) -> None:
    """Stores the accuracy of each group, if the number of anchors depends on it."""
    schedule = run.recipe.pruning.spatial.schedule
    if schedule is None or not schedule.uses_accuracy:
        return
    accuracies = rewards.correct.view(-1, run.num_generations).float().mean(1)
    run.state.last_accuracy |= dict(zip((p.key for p in problems), accuracies.tolist(), strict=True))
