"""Exports a model to a folder that transformers loads, with a model card; and converts published adapters."""

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
    best_device,
    load_policy,
    read_published_config,
    resolve_model_path,
    save_network,
    save_policy,
)
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator

# The largest change of a log-probability, in nats, with which a merge is exported.
MERGED = {"float32": 1e-3, "bfloat16": 1.0}
Layout = Literal["published", "stock"]


def export(run: str, out: Path, merge: bool, layout: Layout = "published") -> str:
    """Writes the newest checkpoint of a run, or a model folder, to `out`. Returns what was written, in one line.

    Adapters stay separate from their base unless `merge`; a 4-bit base is merged in the precision of its computation.
    Raises RecipeError if `out` exists or the options do not fit, CheckpointError if merging changes logits too much.
    """
    require_unused(out)
    path = Path(resolve_model_path(run))
    is_adapter = (path / "adapter_config.json").exists()
    if layout == "stock" and is_adapter and not merge:
        raise RecipeError(
            "--layout is stock, but the model is an adapter; the stock layout is only for whole models; add --merge"
        )
    config = recipe_for_model(run).model if (Path(run) / "recipe.yaml").exists() else ModelConfig(path=run)
    base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] if is_adapter else None
    plain = replace(config, quantize=None, gradient_checkpointing=False, path=run)
    policy = load_policy(plain, device=best_device())
    if layout == "stock" and policy.block_length is not None:
        raise RecipeError(
            f"--layout is stock, but this is a block diffusion model (block length {policy.block_length}); a stock "
            "class has no attention that is causal between blocks; leave --layout out"
        )
    merge_change = _merge(policy, config) if is_adapter and merge else None
    summary = (
        f"an adapter on {base}"
        if is_adapter and not merge
        else f"a whole model in {config.dtype}, {layout} layout"
        + ("" if merge_change is None else f"; merging changed log-probabilities by at most {merge_change:.1e} nats")
    )

    def write(folder: Path) -> None:
        if is_adapter and not merge:
            info = read_adapter_info(path)
            save_policy(policy, folder, str(base))
            if info:  # of the base in training, not of the base as it was loaded here
                write_adapter_info(folder, info)
        elif layout == "stock":
            _save_stock(policy, folder)
        else:
            save_network(policy, folder)
            policy.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(_model_card(Path(run), policy, summary, config.precision, base, layout))

    replace_folder(out, write)
    return summary


def upload(folder: Path, repository: str) -> str:
    """Uploads the folder to a hub repository, which is created private if it does not exist. Returns its address.

    Raises CheckpointError with the hub's message if the upload fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=str(folder)))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as cause:
        raise CheckpointError(
            f"the upload to {repository!r} failed: {cause}; {folder} is complete; log in with: hf auth login, then "
            f"run: hf upload {repository} {folder}"
        ) from cause


def convert(adapter: Path, out: Path, base: str) -> tuple[int, list[str]]:
    """Renames a published LoRA folder. Returns the number of its tensors and the names of the adapted modules."""
    require_unused(out)
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors = load_file(adapter / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as cause:
        raise CheckpointError(
            f"no readable adapter at {str(adapter)!r}: {cause}; give a folder with adapter_config.json and {WEIGHTS} "
            "(adapter_model.bin is a pickle, which can run code, and is never opened)"
        ) from cause
    base_config = read_published_config(resolve_model_path(base))
    converted_config, converted_tensors = convert_adapter(config, tensors, base_config, adapter)
    converted_config["base_model_name_or_path"] = base

    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(converted_config, indent=2) + "\n")
        save_file(converted_tensors, folder / WEIGHTS, {"format": "pt"})

    replace_folder(out, write)
    return len(converted_tensors), converted_config["target_modules"]


def _merge(policy: MaskedPolicy, config: ModelConfig) -> float:
    """Merges the adapters. Returns the largest change of a log-probability on random tokens, in nats."""
    generator = make_generator(0, 0, "merge")
    input_ids = torch.randint(len(policy.tokenizer), (2, 16), generator=generator).to(policy.device)
    every = torch.ones_like(input_ids, dtype=torch.bool)
    with torch.inference_mode():
        before = policy.logits(input_ids, None, every).log_softmax(1)
    policy.model = policy.model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    with torch.inference_mode():
        after = policy.logits(input_ids, None, every).log_softmax(1)
    change = float((after - before)[before > -10].abs().max())
    if not change <= MERGED[config.dtype]:
        raise CheckpointError(
            f"merging changes log-probabilities by {change:.2g} nats; rounding in {config.dtype} explains at most "
            f"{MERGED[config.dtype]}; nothing was written; export without --merge, or set model.dtype to float32 in "
            "the run's recipe.yaml"
        )
    return change


def _save_stock(policy: MaskedPolicy, folder: Path) -> None:
    """Saves under transformers' class and tensor names; `is_causal: false` in config.json makes it bidirectional."""
    source = next(c for c in type(policy.unwrapped_model).__mro__ if c.__module__.startswith("transformers."))
    fields = {
        k: v for k, v in policy.unwrapped_model.config.to_dict().items() if k != "model_type"
    }  # our model_type would rename the tensors
    config = source.config_class.from_dict({**fields, "architectures": [source.__name__]})  # type: ignore[attr-defined]
    config.is_causal = False
    stock = source._from_config(config, dtype=policy.unwrapped_model.dtype)  # type: ignore[attr-defined]
    stock.load_state_dict(policy.unwrapped_model.state_dict())
    stock.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    a2d = {"family": "a2d", "shift_logits": policy.family.shift_logits} if policy.family.name != "masked_lm" else {}
    ids = {"mask_token_id": policy.mask_id, "eos_token_id": policy.eos_id}
    written |= {**ids, "pad_token_id": policy.pad_id, DIFFUSION: {**a2d, **ids}}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    policy.tokenizer.save_pretrained(folder)


def _model_card(run: Path, policy: MaskedPolicy, summary: str, precision: str, base: str | None, layout: str) -> str:
    """The model card: what it is, how to load it, its result, and its recipe."""
    recipe: dict[str, Any] = read_yaml(run / "recipe.yaml") if (run / "recipe.yaml").exists() else {}
    base_model = base or recipe.get("model", {}).get("path")
    is_adapter = summary.startswith("an adapter")
    header = {"library_name": "peft" if is_adapter else "transformers", "tags": ["diffusion", "stipule"]}
    if base_model and not Path(base_model).exists() and not str(base_model).startswith("tiny/"):
        header["base_model"] = base_model
    loading = (
        "with stipule: `load_policy(ModelConfig(path=...))`"
        if layout == "published"
        else "`AutoModelForCausalLM.from_pretrained(...)` of transformers >= 5.4 (`is_causal: false` in config.json "
        "makes its attention bidirectional), or with stipule: `load_policy(ModelConfig(path=...))`"
    )
    published_names = (
        "\nTensor names and config.json are those of the base, so the base's published code loads it too."
        if layout == "published" and not is_adapter
        else ""
    )
    shifted = policy.family.shift_logits
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# {run.name}\n",
        f"A masked diffusion language model (family {policy.family.name}), exported by stipule {__version__}: "
        f"{summary}.",
        f"The base's weights were in {precision} during training.\n" if recipe else "",
        f"Mask token {policy.mask_id}, end of text {policy.eos_id}; "
        + ("position i-1 of the logits predicts token i." if shifted else "position i predicts token i."),
        f"Loading: {loading}.{published_names}\n",
        "## Result\n",
        _result(run),
    ]
    if recipe:
        lines += ["\n## Recipe\n", f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```"]
    return "\n".join(line for line in lines if line) + "\n"


def _result(run: Path) -> str:
    """The result that the run's own files contain; nothing is evaluated here."""
    if (run / "result.json").exists():
        result = json.loads((run / "result.json").read_text())
        accuracies = [
            f"{when}: {result[when]['solved']} of {result[when]['total']} eval problems solved"
            for when in ("before", "after")
            if when in result
        ]
        if accuracies:
            return "; ".join(accuracies) + f" ({result['steps']} RL steps, {result['model_calls']:,} forward passes)."
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    if lines:
        last = json.loads(lines[-1])
        rewards = {key: value for key, value in last.items() if key.startswith(("reward", "eval/"))}
        return f"Step {last['step']}: " + ", ".join(f"{key} {value:.4g}" for key, value in rewards.items()) + "."
    return "Not evaluated; run `stipule eval` on this folder."
