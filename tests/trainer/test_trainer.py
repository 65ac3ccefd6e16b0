"""The trainer: its run is that of its recipe, it continues after Ctrl-C, and bad input is refused before a load."""

import signal
import sys

import pytest
from transformers import TrainerCallback

import stipule
from stipule import STP, DiffusionGRPOConfig, DiffusionGRPOTrainer, Sudoku
from stipule.errors import RecipeError, StipuleError
from tests.training.processes import in_ranks

REWARDS = """
def cells(completions, solution, **kwargs):
    return [sum(a == b for a, b in zip(text, answer)) / 16 for text, answer in zip(completions, solution)]

def texts(completions, **kwargs):
    return ["good"] * len(completions)

def one(completions, **kwargs):
    return [1.0]
"""
TASK = Sudoku(prompt="compact")


def rows(split, count):
    return [{"prompt": p.prompt, "solution": TASK.reference(p)} for p in TASK.problems(split)[:count]]


def arguments(folder, **more):
    return DiffusionGRPOConfig(
        **{
            **{"output_dir": folder, "max_completion_length": 16, "num_generations": 4, "num_iterations": 2},
            **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "beta": 0.0},
            **{"learning_rate": 1e-3, "logging_steps": 2, "save_steps": 2, "disable_tqdm": True, "remasking": "random"},
            **more,
        }
    )


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)
    yield
    sys.modules.pop("rewards", None)


def trainer(folder="run", reward="rewards:cells", model="tiny/sudoku", data=None, **more):
    names = ("eval_dataset", "processing_class", "peft_config", "callbacks", "tools")
    others = {name: more.pop(name) for name in names if name in more}
    data = rows("train", 8) if data is None else data
    return DiffusionGRPOTrainer(model, reward, arguments(folder, **more), data, **others)


def weights(run):
    return [(p.parent.parent.name, p.read_bytes()) for p in sorted(run.path.glob("checkpoints/*/model/*.safetensors"))]


def without_seconds(run):
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in run.metrics]


class Recorder(TrainerCallback):
    """Writes down what is called; asks to stop after a step."""

    def __init__(self, stop_after=None, interrupt_after=None):
        self.calls, self.stop_after, self.interrupt_after = [], stop_after, interrupt_after

    def on_train_begin(self, args, state, control, **kwargs):
        self.calls.append("begin")

    def on_step_end(self, args, state, control, **kwargs):
        self.calls.append(("step", state.global_step))
        control.should_training_stop = state.global_step == self.stop_after
        if state.global_step == self.interrupt_after:
            signal.raise_signal(signal.SIGINT)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.calls.append(("log", logs["step"], len(state.log_history)))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.calls.append(("evaluate", metrics["eval/total"]))

    def on_save(self, args, state, control, **kwargs):
        self.calls.append("save")

    def on_train_end(self, args, state, control, **kwargs):
        self.calls.append("end")


def test_an_interrupted_and_continued_run_equals_one_in_one_go(capfd):
    whole = trainer("whole", pruning=STP(0.125, 0.125)).train()
    interrupted = trainer("parts", pruning=STP(0.125, 0.125), callbacks=[Recorder(interrupt_after=1)])
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    assert [line["step"] for line in stipule.Run("parts").metrics] == [1]
    parts = trainer("parts", pruning=STP(0.125, 0.125)).train(resume_from_checkpoint=True)
    assert weights(parts)[-1] == weights(whole)[-1]
    assert without_seconds(parts) == without_seconds(whole)
    with pytest.raises(RecipeError, match="already holds a run"):
        trainer("parts").train()


def test_callbacks_are_called_and_can_end_the_run():
    recorder = Recorder(stop_after=2)
    other = {"eval_dataset": rows("test", 4), "eval_strategy": "steps", "eval_steps": 4}
    run = trainer(callbacks=[recorder], **other).train()
    step_2 = [("step", 2), ("evaluate", 4), ("log", 2, 2)]
    assert recorder.calls == ["begin", ("step", 1), ("log", 1, 1), "save", *step_2, "save", "end"]
    assert run.checkpoint.name == "step-000002" and len(run.metrics) == 2


def test_evaluate_and_save_model():
    made = trainer(eval_dataset=rows("test", 16), max_steps=2)
    before = made.evaluate()
    assert before["eval/total"] == 16 and 0.5 < before["eval/reward"] < 1
    run = made.train()
    policy, task = run.load_policy(), run.recipe.task
    expected = stipule.evaluate(policy, task, task.problems("test"), run.recipe.sampler)
    assert made.evaluate() == {"eval/solved": expected.solved, "eval/total": 16, "eval/reward": expected.reward}
    made.save_model("saved")
    assert stipule.load_policy("saved").fingerprint() == policy.fingerprint()


def test_a_dataset_of_the_library_datasets_gives_the_same_recipe():
    datasets = pytest.importorskip("datasets")
    assert trainer(data=datasets.Dataset.from_list(rows("train", 8))).recipe == trainer().recipe
    assert trainer(data=rows("train", 9)).recipe != trainer().recipe


def test_lora_of_peft_is_the_section_of_the_recipe():
    peft = pytest.importorskip("peft")
    made = trainer(peft_config=peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), max_steps=2)
    assert (made.recipe.model.lora.rank, made.recipe.model.lora.alpha, made.recipe.model.lora.targets) == (4, 8, "all")
    named = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "up_proj"])
    assert trainer(peft_config=named).recipe.model.lora.targets == "published"
    assert (made.train().checkpoint / "model" / "adapter_config.json").exists()
    for config, message in (
        (peft.LoraConfig(target_modules=["c_attn"]), "target_modules is ['c_attn']; for a model of family llada"),
        (peft.LoraConfig(use_dora=True), "peft_config sets use_dora=True; only plain LoRA"),
        (peft.PrefixTuningConfig(), "peft_config is a PrefixTuningConfig"),
    ):
        with pytest.raises(RecipeError) as raised:
            trainer(peft_config=config)
        assert message in str(raised.value)


def test_the_tokenizer_must_be_that_of_the_model():
    own = stipule.load_policy("tiny/sudoku").tokenizer
    assert trainer(processing_class=own).recipe == trainer().recipe
    with pytest.raises(RecipeError, match="does not fit tiny/sudoku: the tokenizer has ids up to 11"):
        trainer(processing_class=stipule.load_policy("tiny/sudoku_worked").tokenizer)
    with pytest.raises(RecipeError, match="processing_class has another vocabulary"):
        trainer(model="tiny/sudoku_worked", processing_class=own)
    own.chat_template = "{{ messages }}"
    with pytest.raises(RecipeError, match="processing_class has another chat template"):
        trainer(processing_class=own)


def a_closure():
    def reward(completions, **kwargs):
        return [0.0] * len(completions)

    return reward


class OnEpochEnd(TrainerCallback):
    def on_epoch_end(self, *arguments, **kwargs): ...


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": [{"question": "1"}]},
            "train_dataset[0] is not an object with a prompt column; its columns: question",
        ),
        ({"data": [{"prompt": "1"}, {"prompt": "1"}]}, "train_dataset[1] repeats an earlier prompt"),
        ({"data": [{"prompt": "1", "solution": {1}}]}, "train_dataset[0] has a value that JSON cannot hold"),
        ({"data": [{"prompt": "1"}]}, "needs solution; it gets prompts"),
        ({"data": "train.jsonl"}, "train_dataset is a str; it must be a list of rows"),
        ({"data": []}, "train_dataset contains no problem"),
        ({"eval_dataset": rows("train", 3)}, "share 3 prompts"),
        ({"eval_strategy": "steps"}, "eval_strategy is 'steps' but there is no eval_dataset"),
        ({"reward": lambda completions: []}, "which cannot be imported by a name"),
        ({"reward": a_closure()}, "which cannot be imported by a name"),
        ({"reward": "rewards:cels"}, "but rewards has no cels; it has cells"),
        ({"reward": ["rewards:cells", "rewards:cells"]}, "names a function twice"),
        ({"reward_weights": [1.0, 2.0]}, "reward.weights has 2 numbers for 1 functions"),
        ({"model": object()}, "model is a object; give its folder or hub name"),
        ({"callbacks": [object()]}, "callbacks[0] is a object; it must be a transformers.TrainerCallback"),
        ({"callbacks": [OnEpochEnd]}, "callbacks[0] (OnEpochEnd) has on_epoch_end, which would never be called"),
        ({"tools": [print]}, "tools is not offered"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(change, message, monkeypatch):
    monkeypatch.setattr("stipule.models.loading.load_network", None)
    with pytest.raises(RecipeError) as raised:
        trainer(**change)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("rewards:texts", "the reward 'rewards:texts' returned 'good'; a reward is a number"),
        ("rewards:one", "returned 1 rewards for 8 completions; give one each"),
    ],
)
def test_rewards_that_are_no_numbers_stop_the_run(reward, message):
    with pytest.raises(StipuleError) as raised:
        trainer(reward=reward).train()
    assert message in str(raised.value)


def _train_on_a_rank(folder):
    made = trainer(folder, per_device_train_batch_size=2)  # times two processes: the same 8 responses in each update
    made.train()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    one = trainer("one", per_device_train_batch_size=4).train()
    in_ranks(2, _train_on_a_rank, "two")
    two = stipule.Run("two")
    assert [line["reward/mean"] for line in two.metrics] == [line["reward/mean"] for line in one.metrics]
    losses = [[line["policy/loss"] for line in run.metrics] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
