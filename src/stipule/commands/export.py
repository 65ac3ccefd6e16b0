"""Handing a model on: a folder that transformers loads, with a card that says what it is; and adapters taken in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stipule import __version__
from stipule.atomic_io import replace_folder, require_unused
from stipule.config.recipe import read_yaml, recipe_for_model
from stipule.errors import CheckpointError, RecipeError
from stipule.models.adapter_conversion import convert_adapter
from stipule.models.adapters import WEIGHTS, read_adapter_info, write_adapter_info
from stipule.models.families import DIFFUSION
from stipule.models.loading import (
    ModelConfig,
    load_policy,
    read_published_config,
    resolve_model_path,
    save_network,
    save_policy,
)
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator

# Largest change of a log-probability, in nats, that merging may make before the export is refused.
MERGED = {"float32": 1e-3, "bfloat16": 1.0}
Layout = Literal["published", "stock"]


def export(run: str, out: Path, merge: bool, layout: Layout = "published") -> str:
    """Writes the newest checkpoint of a run, or a model folder, to `out`; what was written, in a line.

    Adapters stay beside their base unless `merge`; a 4-bit base is merged in the precision it was computed in. Raises
    RecipeError or CheckpointError for a place that is taken, or a merge that changes what the model says.
    """
    require_unused(out)
    place = Path(resolve_model_path(run))
    adapter = (place / "adapter_config.json").exists()
    if layout == "stock" and adapter and not merge:
        raise RecipeError("--layout stock is for whole models, and this is an adapter; add --merge")
    choice = recipe_for_model(run).model if (Path(run) / "recipe.yaml").exists() else ModelConfig(path=run)
    held = choice.precision
    base = json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] if adapter else None
    policy = load_policy(replace(choice, quantize=None, gradient_checkpointing=False, path=run))
    moved = _merge(policy, choice) if adapter and merge else None
    what = (
        f"an adapter on {base}"
        if adapter and not merge
        else f"a whole model in {choice.dtype}, {layout} layout"
        + ("" if moved is None else f"; merging moved log-probabilities by {moved:.1e} nats at most")
    )

    def write(folder: Path) -> None:
        if adapter and not merge:
            record = read_adapter_info(place)
            save_policy(policy, folder, str(base))
            if record:  # of the training, not of this reading
                write_adapter_info(folder, record)
        elif layout == "stock":
            _save_stock(policy, folder)
        else:
            save_network(policy, folder)
            policy.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(_card(Path(run), policy, what, held, base, layout))

    replace_folder(out, write)
    return what


def upload(folder: Path, repository: str) -> str:
    """The folder on the hub, in a new private repository or an old one; its address.

    Raises CheckpointError with the hub's answer where it refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=str(folder)))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as cause:
        raise CheckpointError(
            f"the hub did not take {repository!r}: {cause}; {folder} is written and whole; log in with: hf auth login, "
            f"then: hf upload {repository} {folder}"
        ) from cause


def convert(adapter: Path, out: Path, base: str) -> tuple[int, list[str]]:
    """Renames a published LoRA folder; how many tensors it has, and on which modules."""
    require_unused(out)
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors = load_file(adapter / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as cause:
        raise CheckpointError(
            f"no readable adapter at {str(adapter)!r}: {cause}; a LoRA folder holds adapter_config.json and {WEIGHTS} "
            "(adapter_model.bin is a pickle, which can run code, and is never opened)"
        ) from cause
    renamed, found = convert_adapter(config, tensors, read_published_config(resolve_model_path(base)))
    renamed["base_model_name_or_path"] = base

    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(renamed, indent=2) + "\n")
        save_file(found, folder / WEIGHTS, {"format": "pt"})

    replace_folder(out, write)
    return len(found), renamed["target_modules"]


def _merge(policy: MaskedPolicy, choice: ModelConfig) -> float:
    """Folds the adapters in; the largest change of a log-probability on random tokens, in nats."""
    words = torch.randint(len(policy.tokenizer), (2, 16), generator=make_generator(0, 0, "merge")).to(policy.device)
    every = torch.ones_like(words, dtype=torch.bool)
    with torch.inference_mode():
        before = policy.logits(words, None, every).log_softmax(1)
    policy.model = policy.model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    with torch.inference_mode():
        moved = (policy.logits(words, None, every).log_softmax(1) - before)[before > -10].abs().max()
    if not moved <= MERGED[choice.dtype]:
        raise CheckpointError(
            f"merging moves log-probabilities by {float(moved):.2g} nats, more than {choice.dtype} explains "
            f"({MERGED[choice.dtype]}); nothing was written; export without --merge, or with the run's model.dtype "
            "set to float32 in its recipe.yaml"
        )
    return float(moved)


def _save_stock(policy: MaskedPolicy, folder: Path) -> None:
    """Under transformers' own class and names: `is_causal: false` in config.json is all it takes to load it."""
    source = next(c for c in type(policy.unwrapped_model).__mro__ if c.__module__.startswith("transformers."))
    fields = {
        k: v for k, v in policy.unwrapped_model.config.to_dict().items() if k != "model_type"
    }  # ours would rename tensors
    config = source.config_class.from_dict({**fields, "architectures": [source.__name__]})  # type: ignore[attr-defined]
    config.is_causal = False
    stock = source._from_config(config, dtype=policy.unwrapped_model.dtype)  # type: ignore[attr-defined]
    stock.load_state_dict(policy.unwrapped_model.state_dict())
    stock.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    turned = {"family": "a2d", "shift": policy.family.shift_logits} if policy.family.name != "masked_lm" else {}
    ids = {"mask_token_id": policy.mask_id, "eos_token_id": policy.eos_id}
    written |= {"mask_token_id": policy.mask_id, "eos_token_id": policy.eos_id, "pad_token_id": policy.pad_id}
    written[DIFFUSION] = {**turned, **ids}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    policy.tokenizer.save_pretrained(folder)


def _card(run: Path, policy: MaskedPolicy, what: str, held: str, base: str | None, layout: str) -> str:
    """The model card: what it is, how to load it, what it scored, how it was made."""
    recipe: dict[str, Any] = read_yaml(run / "recipe.yaml") if (run / "recipe.yaml").exists() else {}
    origin = base or recipe.get("model", {}).get("path")
    header = {
        "library_name": "peft" if what.startswith("an adapter") else "transformers",
        "tags": ["diffusion", "stipule"],
    }
    if origin and not Path(origin).exists() and not str(origin).startswith("tiny/"):
        header["base_model"] = origin
    loading = (
        "with stipule: `load_policy(ModelChoice(path=...))`"
        if layout == "published"
        else "`AutoModelForCausalLM.from_pretrained(...)` of transformers >= 5.4 (its attention is bidirectional by "
        "`is_causal: false`), or with stipule: `load_policy(ModelChoice(path=...))`"
    )
    published = (
        "\nTensor names and config.json are the base's, so the code published with the base loads it too."
        if layout == "published" and not what.startswith("an adapter")
        else ""
    )
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# {run.name}\n",
        f"A masked diffusion language model (family {policy.family.name}), exported by stipule {__version__}: {what}.",
        f"The base's weights were held in {held} during training.\n" if recipe else "",
        f"Mask token {policy.mask_id}, end of text {policy.eos_id}; "
        + (
            "position i-1 of the logits predicts token i."
            if policy.family.shift_logits
            else "position i predicts token i."
        ),
        f"Loading: {loading}.{published}\n",
        "## Result\n",
        _result(run),
    ]
    if recipe:
        lines += ["\n## Recipe\n", f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```"]
    return "\n".join(line for line in lines if line) + "\n"


def _result(run: Path) -> str:
    """What the run's own files say it scored; nothing is measured here."""
    if (run / "result.json").exists():
        found = json.loads((run / "result.json").read_text())
        parts = [
            f"{when}: {found[when]['solved']} of {found[when]['total']} held-out problems solved"
            for when in ("before", "after")
            if when in found
        ]
        if parts:
            return "; ".join(parts) + f" ({found['steps']} RL steps, {found['model_calls']:,} model calls)."
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    if lines:
        last = json.loads(lines[-1])
        rewards = {key: value for key, value in last.items() if key.startswith(("reward", "eval/"))}
        return f"Step {last['step']}: " + ", ".join(f"{key} {value:.4g}" for key, value in rewards.items()) + "."
    return "Not evaluated; run `stipule eval` on this folder."
