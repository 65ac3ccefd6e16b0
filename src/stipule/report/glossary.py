"""The glossary of logged keys: docs/metrics.md lists it, and the report page shows it beside each curve."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One key, or a family of keys: `{a,b}` for alternatives, `<part>` for a name that the task defines."""

    key: str
    meaning: str
    warning: str = ""  # the value that is a sign of a problem

    def covers(self, key: str) -> bool:
        pattern = re.escape(self.key).replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
        return re.fullmatch(re.sub("<[a-z]+>", "[^/]+", pattern), key) is not None


GLOSSARY = (
    Entry("step", "RL steps finished"),
    Entry("reward/mean", "mean reward of the step's rollouts, sampled and pruned", "falls: alarm `collapse`"),
    Entry("reward/accuracy", "fraction of the step's rollouts that are correct"),
    Entry(
        "reward/frac_nonzero_std",
        "fraction of groups whose rewards differ; a group with equal rewards has no advantages",
        "stays near 0 before the task is solved: alarm `frac_nonzero_std`; raise `sampler.temperature` or set "
        "`sampler.remasking=random`",
    ),
    Entry(
        "reward/<part>",
        "mean of each named part of the reward, over the rollouts that have it",
        "`reward/format` falls",
    ),
    Entry("logged/<name>", "mean of a number that your reward function has logged with `log_metric`"),
    Entry(
        "response/length",
        "mean number of tokens in a response, up to and including the first end-of-text token",
        "drops sharply",
    ),
    Entry(
        "response/anchors",
        "mean number of anchors in a response",
        "is below round(gamma L): too few tokens are eligible as anchors",
    ),
    Entry("response/nfe_unpruned", "mean number of forward passes of a response without pruning, by the schedule"),
    Entry("response/nfe_with_anchors", "the same with the anchors of the response"),
    Entry("response/nfe_with_cutoff", "the same with the temporal cutoff too; what confidence saves is in no schedule"),
    Entry(
        "response/nfe_saved_by_eos",
        "mean number of scheduled forward passes of a response that were not needed because its text ended early",
    ),
    Entry(
        "response/distinct",
        "number of distinct texts / number of rollouts",
        "is near 1 / `training.num_generations`: all responses of a group are the same",
    ),
    Entry(
        "response/empty",
        "fraction of responses without text",
        "is above 0.5 before half of the responses are correct: alarm `empty`",
    ),
    Entry(
        "response/same_text",
        "fraction of the step's responses that are its most frequent text",
        "is above 0.9 before half of the responses are correct: alarm `same_text`",
    ),
    Entry(
        "response/few_tokens",
        "fraction of the sampled tokens that are one of the step's two most frequent ones, in responses of 4 tokens or "
        "more",
        "is above 0.75 before half of the responses are correct: alarm `few_tokens`",
    ),
    Entry(
        "response/copies",
        "fraction of groups in which every response has the tokens of the first one, unmasked in the same forward "
        "passes",
        "is above 0.95 before the task is solved: alarm `copies`",
    ),
    Entry(
        "response/repetition",
        "fraction of sequences of four tokens that occurred earlier in the same response",
        "is above 0.5: alarm `repetition`; the model loops",
    ),
    Entry(
        "response/confidence",
        "mean probability, when it was unmasked, of a token in the loss; low where entropy is high",
        "is near 1 before the task is solved: alarm `confidence`; the model does not explore",
    ),
    Entry(
        "policy/loss",
        "the loss: eq. 1, negated",
        "is not a finite number: alarm `diverged`; the run stops and saves the step's rollouts",
    ),
    Entry(
        "policy/ratio",
        "mean probability ratio (rho of eq. 4) over the rows in the update; 1 in the first inner update",
        "differs from 1 by more than `objective.epsilon`",
    ),
    Entry("policy/ratio_max", "largest probability ratio of the step", "is above 30: alarm `ratio`"),
    Entry(
        "policy/clip_ratio",
        "fraction of tokens in the loss whose gradient is 0 because of the clip",
        "is above 0.5: alarm `clip_ratio`",
    ),
    Entry(
        "policy/frac_bounded",
        "fraction of tokens in the loss (with `objective.kind=gspo`: of responses) whose log-ratio of new to old "
        "policy, or with `kl_estimator=k3` of reference to new policy, is above 20; there e^x is continued by its "
        "tangent, so that loss and gradient stay finite",
        "is above 0: the policy changes too much in a step; lower `optimizer.learning_rate`, or bound the loss weights "
        "with `estimator.masks=exact` or a larger `estimator.t_min`",
    ),
    Entry(
        "policy/kl",
        "KL to the reference policy in nats per token; only with `objective.beta` > 0",
        "is above 1: alarm `kl`",
    ),
    Entry(
        "variance/estimate",
        "variance of a response's log-probability estimate per token, over the independent mask samples of the mu "
        "inner updates, all under one policy; needs `training.num_iterations` >= 2, an objective with a ratio, and an "
        "estimator with random masks",
        "is 30 times its first values while accuracy is below 0.9: alarm `variance`",
    ),
    Entry(
        "variance/per_sample",
        "the same for a single mask sample, over the K mask samples of the first inner update; only if they are "
        "independent",
        "is 30 times its first values while accuracy is below 0.9: alarm `variance`, if `variance/estimate` is not "
        "logged",
    ),
    Entry(
        "policy/grad_norm",
        "gradient norm before clipping, mean over the inner updates",
        "is 50 times its first values: alarm `grad_norm`",
    ),
    Entry(
        "policy/frac_zero_advantage",
        "fraction of rollouts left out of the update because their advantage is 0; only with `objective.beta=0`",
        "is 1.0 for many steps: the policy does not change",
    ),
    Entry(
        "time/{rollout,logps,update,reward}",
        "seconds of each phase of the step; with several processes, of the main process",
    ),
    Entry("nfe/{rollout,logps,update}", "rows x forward passes of each phase of the step, summed over all processes"),
    Entry("nfe_tokens/{rollout,logps,update}", "tokens that these forward passes computed, without padding"),
    Entry(
        "{nfe,nfe_tokens,time}/total", "rows x forward passes, computed tokens, and seconds, since the start of the run"
    ),
    Entry("learning_rate", "learning rate of the step"),
    Entry(
        "memory/peak",
        "largest memory use since the start in GiB: of the GPU, or of the process on a CPU",
        "grows",
    ),
    Entry(
        "unpruned/{reward,accuracy}",
        "mean reward and accuracy of the same problems without pruning, every `training.unpruned_every` steps",
        "is far below `reward/mean` or `reward/accuracy`: much of the reward comes from the anchors",
    ),
    Entry("unpruned/nfe", "rows x forward passes of the rollouts without pruning; in no other total"),
    Entry(
        "approximate/tokens",
        "with `sampler.confidence_threshold` or `sampler.cache`, every `training.agreement_every` steps: fraction of "
        "response tokens that are the same in exact rollouts from the same noise",
        "falls: the approximation has become worse for this policy",
    ),
    Entry(
        "approximate/{accuracy,distinct}",
        "accuracy, and fraction of distinct texts in a group, minus those of the exact rollouts",
        "`approximate/distinct` is far below 0: fewer groups have rewards that differ",
    ),
    Entry("approximate/nfe", "rows x forward passes of the exact rollouts; in no other total"),
    Entry(
        "eval/{solved,total}",
        "eval problems solved, and all eval problems; greedy and unpruned, every `training.evaluate_every` steps",
    ),
    Entry("alarms", "alarms of this step: name, key, value, limit, and a message with advice"),
)


def explain(key: str) -> Entry | None:
    """The entry of a logged key; an exact entry comes before a family."""
    return next((entry for entry in GLOSSARY if key == entry.key), None) or next(
        (entry for entry in GLOSSARY if entry.covers(key)), None
    )


def table() -> str:
    """The glossary as the table of docs/metrics.md."""
    rows = [f"| `{entry.key}` | {entry.meaning} | {entry.warning} |".replace("  |", " |") for entry in GLOSSARY]
    return "\n".join(["| key | meaning | warning sign |", "|---|---|---|", *rows])
