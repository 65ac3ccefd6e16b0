"""Run folders written by hand, so that a page can be tested without training."""

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
    "credit": {"kind": "group_relative"},
    "objective": {"kind": "grpo"},
    "training": {"steps": 40, "prompts_per_step": 2, "num_generations": 4, "seed": 0, "rollouts_every": 5},
    "alarms": {},
    "tracking": [],
}
HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>\u2028]]><!--"


def metrics(step, chance, height=0.5):
    solved = round(8 * min(1.0, max(0.0, height + chance.gauss(0, 0.05)))) / 8
    return {
        "step": step,
        "reward/mean": solved,
        "reward/frac_nonzero_std": 0.6,
        "reward/accuracy": solved,
        "reward/format": 1.0,
        "response/length": 16.0,
        "response/anchors": 2.0,
        "response/distinct": 0.8,
        "response/copies": 0.0,
        "response/repetition": 0.01,
        "response/confidence": 0.8 + 0.05 * chance.random(),
        "policy/loss": chance.gauss(0, 0.01),
        "policy/ratio": 1.0,
        "policy/ratio_max": 1.5 + chance.random(),
        "policy/clip_ratio": 0.1,
        "variance/estimate": math.exp(chance.gauss(-2, 0.5)),
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


def rollout(step, problem, member, chance, length=16, text=None, pieces=None):
    """A response: two anchors, one token a call, the last two in one call."""
    pieces = pieces or [str(chance.randint(1, 4)) for _ in range(length)]
    order = list(range(length))
    chance.shuffle(order)
    revealed = [0] * length
    for place, index in enumerate(order):
        revealed[index] = -1 if place < 2 else min(place - 2, length - 4)
    right = chance.random() < 0.5
    return {
        "key": f"problem-{problem}",
        "prompt": "0243000001202030",
        "response": "".join(pieces) if text is None else text,
        "reward": 1.0 if right else round(chance.random() * 0.9, 3),
        "parts": {"solved": float(right), "format": 1.0},
        "correct": right,
        "advantage": chance.gauss(0, 1),
        "tokens": [4] * length,
        "pieces": pieces,
        "live": length,
        "revealed": revealed,
        "confidence": [round(chance.random(), 4) for _ in range(length)],
        "forwards": length - 3,
    }


def write_run(path, steps=40, every=5, length=16, recipe=RECIPE, rise=0.5, seed=0, hostile=False):
    chance = random.Random(seed)
    (path / "rollouts").mkdir(parents=True)
    kept = {**recipe, "sampler": {"gen_length": length, "steps": length, "block_length": length}}
    kept["training"] = {**recipe["training"], "steps": steps}
    (path / "recipe.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    from stipule import __version__

    (path / "environment.json").write_text(json.dumps({"stipule": __version__, "platform": "test"}))
    lines = [metrics(step, chance, 0.25 + rise * step / steps) for step in range(1, steps + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = []
    for step in range(every, steps + 1, every):
        if rows and length > 64:  # long responses are made once
            (path / "rollouts" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            continue
        rows = [rollout(step, problem, member, chance, length) for problem in (1, 2) for member in range(4)]
        if hostile:
            rows[0] = {**rows[0], "response": HOSTILE, "pieces": [HOSTILE, *rows[0]["pieces"][1:]]}
            rows[0] |= {"key": f"problem {HOSTILE}", "prompt": HOSTILE}
        file = path / "rollouts" / f"step-{step:06d}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
