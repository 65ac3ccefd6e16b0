"""Run folders written by hand, so that the report page can be tested without training."""

import json
import math
import random

import yaml

RECIPE = {
    "task": {"kind": "sudoku"},
    "model": {"path": "tiny/sudoku"},
    "sampler": {"gen_length": 16, "steps": 16, "block_length": 16},
    "pruning": {
        "spatial": {"ratio": 0.125, "keep": "confident", "source": "pregenerated"},
        "temporal": {"cutoff": 0.125, "scope": "global"},
    },
    "estimator": {"kind": "elbo"},
    "advantage": {"kind": "group_relative"},
    "objective": {"kind": "grpo"},
    "training": {"steps": 40, "prompts_per_step": 2, "num_generations": 4, "seed": 0, "rollouts_every": 5},
    "alarms": {},
    "tracking": [],
}
HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>\u2028]]><!--"


def metrics(step, rng, reward=0.5):
    accuracy = round(8 * min(1.0, max(0.0, reward + rng.gauss(0, 0.05)))) / 8
    return {
        "step": step,
        "reward/mean": accuracy,
        "reward/frac_nonzero_std": 0.6,
        "reward/accuracy": accuracy,
        "reward/format": 1.0,
        "response/length": 16.0,
        "response/anchors": 2.0,
        "response/distinct": 0.8,
        "response/copies": 0.0,
        "response/repetition": 0.01,
        "response/nfe_unpruned": 16.0,
        "response/nfe_with_anchors": 14.0,
        "response/nfe_with_cutoff": 13.0,
        "response/nfe_saved_by_eos": 0.0,
        "response/confidence": 0.8 + 0.05 * rng.random(),
        "policy/loss": rng.gauss(0, 0.01),
        "policy/ratio": 1.0,
        "policy/ratio_max": 1.5 + rng.random(),
        "policy/clip_ratio": 0.1,
        "variance/estimate": math.exp(rng.gauss(-2, 0.5)),
        "policy/grad_norm": 1.0,
        "policy/frac_zero_advantage": 0.2,
        "time/rollout": 0.6,
        "time/logps": 0.1,
        "time/update": 0.3,
        "time/reward": 0.01,
        "nfe/rollout": 8 * 13,
        "nfe/logps": 24,
        "nfe/update": 48,
        "nfe/total": step * 176,
        "time/total": float(step),
        "learning_rate": 1e-4,
    }


def rollout(problem, rng, length=16):
    """A saved response: two anchors, one token per forward pass, the last two in one forward pass."""
    token_texts = [str(rng.randint(1, 4)) for _ in range(length)]
    order = list(range(length))
    rng.shuffle(order)
    unmask_step = [0] * length
    for rank, position in enumerate(order):
        unmask_step[position] = -1 if rank < 2 else min(rank - 2, length - 4)
    correct = rng.random() < 0.5
    return {
        "key": f"problem-{problem}",
        "prompt": "0243000001202030",
        "response": "".join(token_texts),
        "reward": 1.0 if correct else round(rng.random() * 0.9, 3),
        "parts": {"solved": float(correct), "format": 1.0},
        "correct": correct,
        "advantage": rng.gauss(0, 1),
        "completion_ids": [4] * length,
        "token_texts": token_texts,
        "completion_length": length,
        "unmask_step": unmask_step,
        "confidence": [round(rng.random(), 4) for _ in range(length)],
        "nfe": length - 3,
    }


def write_run(path, steps=40, every=5, length=16, recipe=RECIPE, rise=0.5, seed=0, hostile=False):
    from stipule import __version__
    from stipule.training.run_folder import FORMAT

    rng = random.Random(seed)
    (path / "rollouts").mkdir(parents=True)
    saved_recipe = {**recipe, "sampler": {"gen_length": length, "steps": length, "block_length": length}}
    saved_recipe["training"] = {**recipe["training"], "steps": steps}
    (path / "recipe.yaml").write_text(yaml.safe_dump(saved_recipe, sort_keys=False))
    environment = {"format": FORMAT, "stipule": __version__, "platform": "test"}
    (path / "environment.json").write_text(json.dumps(environment))
    lines = [metrics(step, rng, 0.25 + rise * step / steps) for step in range(1, steps + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = []
    for step in range(every, steps + 1, every):
        file = path / "rollouts" / f"step-{step:06d}.jsonl"
        if not rows or length <= 64:  # long responses are made once, to save time
            rows = [rollout(problem, rng, length) for problem in (1, 2) for _ in range(4)]
            if hostile:
                rows[0] = {**rows[0], "response": HOSTILE, "token_texts": [HOSTILE, *rows[0]["token_texts"][1:]]}
                rows[0] |= {"key": f"problem {HOSTILE}", "prompt": HOSTILE}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
