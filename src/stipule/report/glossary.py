"""The glossary of logged keys: what docs/metrics.md lists and what the report page explains."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One key, or a family of keys: `{a,b}` for alternatives, `<part>` for a name of the task's own."""

    key: str
    meaning: str
    look: str = ""  # when to look closer

    def covers(self, key: str) -> bool:
        pattern = re.escape(self.key).replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
        return re.fullmatch(re.sub("<[a-z]+>", "[^/]+", pattern), key) is not None


GLOSSARY = (
    Entry("step", "RL steps finished"),
    Entry("reward/mean", "mean reward of the step's rollouts (sampled, pruned)", "it falls: alarm `collapse`"),
    Entry("reward/accuracy", "share of right responses among them"),
    Entry(
        "reward/frac_nonzero_std",
        "share of groups whose rewards differ: only they teach",
        "it stays near 0 before the task is solved: alarm `spread`; raise `sampler.temperature` or set "
        "`sampler.remasking=random`",
    ),
    Entry("reward/<part>", "mean of each named part of the grade", "`reward/format` falls"),
    Entry("response/length", "live tokens, up to and including the first end-of-text", "it collapses"),
    Entry(
        "response/anchors",
        "fixed tokens in a response",
        "it is below round(gamma L): too few tokens may become anchors",
    ),
    Entry("response/distinct", "different texts / responses", "it is near 1 / group: the group is one response"),
    Entry(
        "response/copies",
        "share of groups in which every response is a copy of the first, token by token and call by call",
        "above 0.95 before the task is solved: alarm `copies`",
    ),
    Entry(
        "response/repetition",
        "share of runs of four tokens that the same response has had before",
        "above 0.5: alarm `repetition`; the model loops",
    ),
    Entry(
        "response/confidence",
        "mean probability of a scored token when it was committed (low where entropy is high)",
        "near 1 before the task is solved: alarm `confidence`; no exploration",
    ),
    Entry("policy/loss", "eq. 1, negated", "it is not a number: alarm `diverged`, the run stops and dumps the step"),
    Entry("policy/ratio", "mean of rho of eq. 4; 1 in the first inner update", "it leaves 1 by more than the clip"),
    Entry("policy/ratio_max", "largest rho of the step", "above 30: alarm `ratio`"),
    Entry(
        "policy/clip_ratio",
        "share of scored tokens whose gradient the clip has stopped",
        "above 0.5: alarm `clipped`",
    ),
    Entry(
        "policy/kl",
        "distance to the reference in nats per token (only where `objective.beta` > 0)",
        "above 1: alarm `kl`",
    ),
    Entry(
        "variance/estimate",
        "variance of a response's estimate per counted token, over the independent views of the mu updates under one "
        "policy; needs `training.num_iterations` >= 2, an objective with a ratio and an estimator with noise",
        "it grows thirtyfold while less than 0.9 is solved: alarm `variance`",
    ),
    Entry(
        "variance/per_sample",
        "the same of a single view, over the K views of the first update (only where they are independent draws)",
        "it grows thirtyfold while less than 0.9 is solved: alarm `variance`, where there is no variance/estimate",
    ),
    Entry(
        "policy/grad_norm",
        "before clipping, mean over inner updates",
        "it grows fiftyfold: alarm `gradient`",
    ),
    Entry(
        "policy/frac_zero_advantage",
        "share of rows without advantage, neither scored nor updated (kl = 0)",
        "1.0 for many steps: nothing is learned",
    ),
    Entry("time/{rollout,logps,update,reward}", "wall seconds of the step (of many processes, the first one's)"),
    Entry("nfe/{rollout,logps,update}", "rows x model calls of the step, of all processes together"),
    Entry("{nfe,time}/total", "since the start of the run"),
    Entry("learning_rate", "of the step"),
    Entry("memory/peak", "GiB: the most that the GPU has held since the start, or the process on a CPU", "it grows"),
    Entry(
        "unpruned/{reward,accuracy}",
        "the step's problems rolled out once more without pruning (`training.unpruned_every`)",
        "far below `reward/mean`, `reward/accuracy`: the anchors do the work",
    ),
    Entry("unpruned/nfe", "rows x model calls that the audit took; in no other total"),
    Entry(
        "approximate/tokens",
        "with `sampler.confidence_threshold` or `sampler.cache`, every `training.agreement_every` steps: share of live tokens that "
        "exact rollouts from the same noise have too",
        "it falls: the model has moved to where the approximation is poor",
    ),
    Entry(
        "approximate/{accuracy,distinct}",
        "share solved, and share of a group's texts that are distinct, minus those of the exact rollouts",
        "`distinct` is far below 0: groups lose what advantages are made of",
    ),
    Entry("approximate/nfe", "rows x model calls of those exact rollouts; in no other total"),
    Entry("eval/{solved,total}", "greedy, unpruned, on held-out problems (`training.evaluate_every`)"),
    Entry("alarms", "alarms that ring at this step: name, key, value, limit, and a sentence with a remedy"),
)


def explain(key: str) -> Entry | None:
    """The entry of a logged key: its own before a family's."""
    return next((entry for entry in GLOSSARY if key == entry.key), None) or next(
        (entry for entry in GLOSSARY if entry.covers(key)), None
    )


def table() -> str:
    """The glossary as the table of docs/metrics.md."""
    rows = [f"| `{entry.key}` | {entry.meaning} | {entry.look} |".replace("  |", " |") for entry in GLOSSARY]
    return "\n".join(["| key | meaning | look closer when |", "|---|---|---|", *rows])
