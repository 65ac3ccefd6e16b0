"""What padding, batch mates, merging and saving change, for every family: largest differences in nats, in float32.

    python benchmarks/families.py

Tiny checkpoints with random weights in each family's published layout (tests/models/published.py); one line a family.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from stipule.models.checks import Check, run_checks
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.models import published

PROMPTS = ["3,7,12=33", "1,2=3", "20,20,20=60"]


def main() -> None:
    print(f"{'family':<12} {'padding':>9} {'batch':>9} {'rollouts':>10} {'merged':>9} {'saved':>9}  checks")
    with tempfile.TemporaryDirectory() as root:
        for name in (*published.NAMES, *published.BLOCK_NAMES):
            print(line(name, Path(root)))


def line(name: str, root: Path) -> str:
    """The measurements of one family."""
    published.write(name, root / name)
    policy = load_policy(ModelConfig(path=str(root / name), lora=LoRA(rank=2, alpha=4), **published.settings(name)))
    schedule = "separate" if name in published.BLOCK_NAMES else "carry"
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=4, block_length=4, temperature=1.0, block_schedule=schedule)
    checks = {check.name: check for check in run_checks(policy, sampler, PROMPTS)}
    trained = logits(policy)
    policy.model = policy.model.merge_and_unload()
    save_policy(policy, root / f"{name}-merged", "")
    saved = (logits(load_policy(ModelConfig(path=str(root / f"{name}-merged")))) - trained).abs().max()
    failed = [check.name for check in checks.values() if check.ok is False]
    differ = checks["batch"].measured.split("; ")[1]
    return (
        f"{name:<12} {number(checks['padding']):>9} {number(checks['batch']):>9} {differ.split(' resp')[0]:>10} "
        f"{number(checks['merged']):>9} {saved:>9.1e}  {failed or 'ok'}"
    )


def number(check: Check) -> str:
    """The difference that a check measured."""
    return check.measured.split("difference ")[1].split()[0]


def logits(policy: MaskedPolicy) -> torch.Tensor:
    tokens = torch.randint(4, policy.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.logits(tokens, None, torch.ones_like(tokens, dtype=torch.bool)).log_softmax(1)


if __name__ == "__main__":
    main()
