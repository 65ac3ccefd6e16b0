"""Every argument of TRL's GRPOConfig is offered or refused with a reason; what it sets in the recipe."""

import inspect
from dataclasses import fields, replace
from pathlib import Path

import pytest

from stipule import STP, DiffusionGRPOConfig, Elbo
from stipule.errors import RecipeError
from stipule.object_import import import_object, settings_of
from stipule.trainer.arguments import NOT_OFFERED, NOT_OFFERED_BY_THE_TRAINER
from stipule.trainer.tables import not_offered_table, offered_table
from stipule.trainer.to_recipe import recipe_of
from stipule.trainer.trainer import DiffusionGRPOTrainer

PAGE = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text()
OFFERED = {field.name for field in fields(DiffusionGRPOConfig)}
TASK = {"kind": "custom", "train": "train.jsonl", "test": "test.jsonl", "reward": {"functions": ["my:reward"]}}


def recipe(**arguments):
    return recipe_of(DiffusionGRPOConfig(**arguments), "tiny/sudoku", TASK, num_problems=100)


def test_every_argument_of_trl_is_offered_or_refused_with_a_reason():
    trl = pytest.importorskip("trl")
    defaults = {field.name: field.default for field in fields(trl.GRPOConfig)}
    assert set(defaults) - OFFERED == set(NOT_OFFERED) - {"group_by_length"}  # of earlier versions
    assert not OFFERED & set(NOT_OFFERED)
    only_here = set(inspect.signature(DiffusionGRPOTrainer).parameters)
    assert set(inspect.signature(trl.GRPOTrainer).parameters) - only_here == set(NOT_OFFERED_BY_THE_TRAINER)
    # The defaults of TRL that are not what happens here: a script that gives them is refused.
    refused = {name for name, (accepted, _) in NOT_OFFERED.items() if defaults.get(name, accepted[0]) not in accepted}
    assert {name for name in refused if isinstance(defaults[name], (str, int, float, type(None)))} == {
        "lr_scheduler_type"
    }


def test_the_page_has_the_tables_of_the_code():
    trl = pytest.importorskip("trl")
    defaults = {f.name: f.default for f in fields(trl.GRPOConfig)}
    for line in [*offered_table(defaults), *not_offered_table()]:
        assert line in PAGE, f"run: python -m stipule.trainer.tables; docs/from-trl.md lacks: {line}"


def test_the_defaults_are_those_of_a_recipe():
    from stipule.config.recipe import parse_recipe

    standard, made = parse_recipe({"task": TASK}), recipe()
    assert made.sampler == standard.sampler and made.model == replace(standard.model, path="tiny/sudoku")
    assert recipe(estimator="elbo").estimator == standard.estimator
    assert made.estimator.masks == "exact"  # the one exception, as in the quickstart
    assert (made.objective, made.advantage, made.optimizer) == (
        *(standard.objective, standard.advantage, standard.optimizer),
    )
    same = ("prompts_per_step", "num_generations", "num_iterations", "micro_batch_size", "seed", "rollout_batch_size")
    assert all(getattr(made.training, name) == getattr(standard.training, name) for name in same)
    assert made.training.steps == 150  # 3 epochs of 100 problems, 2 in each RL step


def test_arguments_reach_the_setting_of_the_same_meaning():
    made = recipe(
        **{"max_completion_length": 64, "block_length": 16, "diffusion_steps": 32, "temperature": 1.0, "seed": 7},
        **{"pruning": STP(0.1, 0.2), "estimator": Elbo(num_samples=5), "remasking": "random", "bf16": True},
        **{"loss_type": "dapo", "scale_rewards": "none", "beta": 0.0, "epsilon_high": 0.28, "warmup_steps": 9},
        **{"num_iterations": 2, "max_steps": 7, "save_steps": 3, "logging_steps": 5, "eval_strategy": "steps"},
        **{"model_init_kwargs": {"attn_implementation": "eager"}, "report_to": ["tensorboard"]},
        overrides=["advantage.kind=rloo"],
    )
    sampler = made.sampler
    assert (sampler.gen_length, sampler.block_length, sampler.steps, sampler.remasking) == (64, 16, 32, "random")
    assert (made.pruning.spatial.ratio, made.pruning.temporal.cutoff, made.estimator.num_samples) == (0.1, 0.2, 5)
    assert (made.objective.loss_aggregation, made.objective.beta, made.objective.epsilon_high) == ("token", 0.0, 0.28)
    assert made.advantage.kind == "rloo" and made.tracking == ("tensorboard",)
    assert made.model.autocast and made.model.attention == "eager"
    training = made.training  # updates of the optimizer, in RL steps of two
    assert (training.steps, training.save_every, training.rollouts_every, training.evaluate_every) == (4, 2, 3, 3)
    assert made.optimizer.warmup_steps == 5
    assert recipe(importance_sampling_level="sequence").objective.kind == "gspo"
    assert recipe(loss_type="bnpo").objective.match_published_code


def test_parts_of_your_own_are_named_in_the_recipe():
    examples = Path(__file__).parents[2] / "examples"
    margin = import_object(f"{examples}/custom_remasking.py:Margin", "it")(exponent=0.5)
    mean = import_object(f"{examples}/custom_estimator.py:MeanOfOneStepAndElbo", "it")
    made = recipe(remasking=margin, estimator=mean(num_samples=4))
    assert (made.sampler.remasking, made.estimator) == (margin, mean(num_samples=4))
    assert settings_of(made)["estimator"]["kind"].endswith("custom_estimator.py:MeanOfOneStepAndElbo")


def test_the_number_of_processes_raises_the_number_of_prompts(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert recipe().training.prompts_per_step == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_vllm": True}, "use_vllm is True, which is not offered (False is): vLLM and continuous batching"),
        ({"lr_scheduler_type": "linear"}, "constant after a linear warm-up"),
        ({"max_step": 3}, "max_step is no argument of DiffusionGRPOConfig; did you mean max_steps?"),
        ({"num_generations": 5}, "= 12 responses per update; it must be a multiple of num_generations, which is 5"),
        ({"loss_type": "cispo"}, "loss_type is 'cispo'; allowed are grpo, dapo, bnpo"),
        ({"scale_rewards": "batch"}, "scale_rewards is 'batch'"),
        ({"eval_strategy": "epoch"}, "eval_strategy is 'epoch'; allowed: no, steps"),
        ({"report_to": "all"}, "name the trackers"),
        ({"model_init_kwargs": {"revision": "x"}}, "model_init_kwargs has revision; allowed are dtype"),
        ({"max_completion_length": 64, "block_length": 24}, "sampler.block_length is 24; it must divide"),
        ({"estimator": "elbow"}, "estimator.kind is 'elbow'; allowed: elbo"),
        ({"num_iterations": 0}, "num_iterations is 0; it must be 1 or more"),
        ({"overrides": ["sampler.gen_lenght=3"]}, "did you mean gen_length?"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(RecipeError) as raised:
        recipe(**arguments)
    assert message in str(raised.value)
