"""Checkpoints: model, optimizer and anchors of one step, whole or absent."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stipule.atomic_io import replace_folder
from stipule.checksums import damaged, verify_checksums, write_checksums
from stipule.errors import CheckpointError
from stipule.estimators.importance_sampling import LossHistory
from stipule.models.loading import save_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.sharding import full_state_dict, gather_on_first_rank, local_shard
from stipule.rollouts.anchors import AnchorStore
from stipule.training.run_folder import STATE_FILE


@dataclass
class TrainState:
    """What a run has done so far. Everything else depends on the recipe and the step only."""

    step: int = 0  # RL steps finished
    model_calls: int = 0  # rows x forward passes of rollouts, log-probabilities and updates
    computed_tokens: int = 0  # tokens that these computed, without padding
    pregeneration_calls: int = 0  # rows x forward passes spent on the anchor store
    pregeneration_tokens: int = 0  # tokens that these computed
    seconds: float = 0.0
    loss_history: LossHistory = field(default_factory=LossHistory)  # for `estimator.importance_sampling: fitted`
    metrics_checksum: str = ""  # of metrics.jsonl when this was saved; "": unknown
    # Accuracy of each problem's group when it was last sampled, if pruning depends on difficulty.
    last_accuracy: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    state: TrainState,
    policy: MaskedPolicy,
    optimizer: torch.optim.Optimizer,
    anchor_store: AnchorStore | None,
    base: str,
    save_total_limit: int,
    protected: Path | None = None,
    is_main_process: bool = True,
) -> None:
    """Writes `step-NNNNNN` under a temporary name, renames it, then removes all but the newest ones and `protected`.

    Only the main process writes. With sharded weights all ranks must call: gathering a whole tensor is a collective.
    """
    weights, moments = full_state_dict(policy), optimizer_state(policy, optimizer)
    if not is_main_process:
        return

    def write(path: Path) -> None:
        save_policy(policy, path / "model", base, weights)
        save_file(moments, path / "optimizer.safetensors")
        if anchor_store is not None:
            anchor_store.save(path / "anchors.safetensors", policy)
        (path / STATE_FILE).write_text(json.dumps(asdict(state)) + "\n")
        write_checksums(path)

    replace_folder(folder / f"step-{state.step:06d}", write)
    for old in sorted(folder.glob("step-*"))[:-save_total_limit]:
        if old != protected:
            shutil.rmtree(old, ignore_errors=True)  # the new one is complete; an old one may stay


def newest_checkpoint(folder: Path) -> Path | None:
    """The last finished checkpoint. A folder that still has its temporary name is not one."""
    return max(folder.glob("step-*"), default=None)


def read_train_state(path: Path) -> TrainState:
    """The state of the run at this checkpoint.

    Raises CheckpointError if it is damaged or was saved by an earlier version.
    """
    if (path / "progress.json").exists():
        raise CheckpointError(
            f"{path} was saved by an earlier version of stipule, which used other names; start the run again with "
            f"another --out; its weights can still be used: model.path={path / 'model'}"
        )
    verify_checksums(path, STATE_FILE)
    try:
        saved = json.loads((path / STATE_FILE).read_text())
        return TrainState(**{**saved, "loss_history": LossHistory(**saved["loss_history"])})
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise damaged(path / STATE_FILE, str(cause)) from cause


def optimizer_state(policy: MaskedPolicy, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name: tensors only, so no pickle is needed. With sharding, on the first rank only."""
    gathered = gather_on_first_rank(
        (f"{name}/{key}", value)
        for name, parameter in policy.trainable_parameters().items()
        for key, value in optimizer.state[parameter].items()
    )
    return {name: tensor.contiguous() for name, tensor in gathered.items()}


def load_optimizer(path: Path, policy: MaskedPolicy, optimizer: torch.optim.Optimizer) -> None:
    """Restores a saved optimizer state, one tensor at a time. Raises CheckpointError unless it fits the parameters."""
    parameters, saved = policy.trainable_parameters(), path / "optimizer.safetensors"
    verify_checksums(path, saved.name)
    try:
        with safe_open(saved, "pt") as file:
            for full_name in file.keys():  # noqa: SIM118 (it is no dictionary)
                value, (name, key) = file.get_tensor(full_name), full_name.rsplit("/", 1)
                if name not in parameters or (key != "step" and parameters[name].shape != value.shape):
                    raise CheckpointError(
                        f"{path} was saved for another model: it has a state for {name} that does not fit"
                    )
                # AdamW keeps its step count on the CPU.
                state = value if key == "step" else local_shard(value.to(policy.device), parameters[name])
                optimizer.state[parameters[name]][key] = state
    except (OSError, SafetensorError) as cause:
        raise damaged(saved, str(cause)) from cause
