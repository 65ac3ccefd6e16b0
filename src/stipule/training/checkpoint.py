"""Checkpoints: model, optimizer and anchors of one step, whole or not there."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stipule.errors import CheckpointError
from stipule.estimators.profile import Surprise
from stipule.files import replace_folder
from stipule.models.loading import save_policy
from stipule.models.policy import MaskedPolicy
from stipule.models.sharding import as_part, whole, whole_state
from stipule.rollouts.anchors import AnchorStore


@dataclass
class Progress:
    """What a run has done so far. Everything else is a function of the recipe and the step."""

    step: int = 0  # RL steps finished
    model_calls: int = 0  # rows x calls, of rollouts, scoring and updates
    pregeneration_calls: int = 0  # rows x calls spent on the anchor store
    seconds: float = 0.0
    surprise: Surprise = field(default_factory=Surprise)  # for `estimator.profile: fitted`
    # Share of each problem's group that was right at its last visit, where pruning goes by difficulty.
    solved: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    policy: MaskedPolicy,
    optimizer: torch.optim.Optimizer,
    store: AnchorStore | None,
    base: str,
    keep: int,
    spare: Path | None = None,
    writes: bool = True,
) -> None:
    """Writes `step-NNNNNN` under a temporary name, renames it, then removes all but the newest `keep` and `spare`.

    Of many ranks one `writes`; under sharding all must call, for the whole of a tensor takes everyone's part.
    """
    state, moments = whole_state(policy), optimizer_tensors(policy, optimizer)
    if not writes:
        return

    def write(place: Path) -> None:
        save_policy(policy, place / "model", base, state)
        save_file(moments, place / "optimizer.safetensors")
        if store is not None:
            store.save(place / "anchors.safetensors", policy)
        (place / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")

    replace_folder(folder / f"step-{progress.step:06d}", write)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old != spare:
            shutil.rmtree(old)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last finished checkpoint; a folder still under its temporary name is none."""
    return max(folder.glob("step-*"), default=None)


def read_progress(place: Path) -> Progress:
    """How far the run of this checkpoint was."""
    try:
        saved = json.loads((place / "progress.json").read_text())
        return Progress(**{**saved, "surprise": Surprise(**saved.get("surprise", {}))})
    except (OSError, ValueError, TypeError) as cause:
        raise CheckpointError(f"{place} is damaged ({cause}); remove it to resume from the one before") from cause


def optimizer_tensors(policy: MaskedPolicy, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name: plain tensors, so no pickle is needed."""
    return {
        f"{name}/{key}": whole(value).contiguous()
        for name, parameter in policy.trainable().items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(place: Path, policy: MaskedPolicy, optimizer: torch.optim.Optimizer) -> None:
    """Puts a saved state back. Raises CheckpointError unless it fits the parameters."""
    try:
        saved = load_file(place / "optimizer.safetensors", device=str(policy.device))
    except (OSError, SafetensorError) as cause:
        raise CheckpointError(f"{place} is damaged ({cause}); remove it to resume from the one before") from cause
    parameters = policy.trainable()
    for full, value in saved.items():
        name, key = full.rsplit("/", 1)
        if name not in parameters or (key != "step" and parameters[name].shape != value.shape):
            raise CheckpointError(f"{place} was saved for another model: it has a state for {name} that does not fit")
        # AdamW keeps its step count on the CPU.
        optimizer.state[parameters[name]][key] = value.cpu() if key == "step" else as_part(value, parameters[name])
