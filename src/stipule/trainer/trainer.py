"""TRL's GRPOTrainer for diffusion language models: a recipe from Python objects, and the same training loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stipule.atomic_io import replace_folder
from stipule.errors import CheckpointError, RecipeError
from stipule.evaluation.evaluate import evaluate
from stipule.models.families import Family, family_of
from stipule.models.loading import ModelConfig, best_device, load_policy, read_model_files
from stipule.models.peft_config import lora_of
from stipule.models.special_tokens import find_special_tokens
from stipule.models.tokenizer_loading import load_tokenizer
from stipule.object_import import reference_of
from stipule.run import Run, train
from stipule.tasks.custom import Custom, check_splits
from stipule.trainer.arguments import NOT_OFFERED_BY_THE_TRAINER
from stipule.trainer.callbacks import Callbacks
from stipule.trainer.config import DiffusionGRPOConfig
from stipule.trainer.dataset import dataset_file
from stipule.trainer.to_recipe import recipe_of, rl_steps
from stipule.training.checkpoint import newest_checkpoint
from stipule.training.distributed import is_main_process
from stipule.training.interrupt import Interrupted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

RewardFunction = Callable[..., Any] | str


class DiffusionGRPOTrainer:
    """GRPO with STP under the constructor of TRL's GRPOTrainer (docs/from-trl.md has all arguments).

    It writes a recipe (`trainer.recipe`) and the rows of the datasets into the run folder and starts the loop of
    `stipule train`, so `stipule train OUTPUT_DIR/recipe.yaml` gives the same weights. Everything is checked here,
    before a model is loaded.
    """

    def __init__(
        self,
        model: str | Path,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        args: DiffusionGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **not_offered: Any,
    ):
        """`model`: a folder, a hub name or a bundled `tiny/...`. Datasets: rows with `prompt` (docs/rewards.md).

        `processing_class` must be the model's own tokenizer, `peft_config` a `peft.LoraConfig`. Raises RecipeError for
        arguments that do not fit.
        """
        _check_other_arguments(not_offered)
        self.args = args or DiffusionGRPOConfig()
        if not isinstance(self.args, DiffusionGRPOConfig):
            raise RecipeError(
                f"args is a {type(args).__name__}; it must be a DiffusionGRPOConfig, which has the same names"
            )
        if not isinstance(model, str | Path):
            raise RecipeError(
                f"model is a {type(model).__name__}; give its folder or hub name, so that the run can be continued "
                "and evaluated; save_policy and save_pretrained write a folder"
            )
        if train_dataset is None:
            raise RecipeError("train_dataset is missing; give a list of rows with a prompt, or a datasets.Dataset")
        train_file = dataset_file("train_dataset", train_dataset)
        eval_file = dataset_file("eval_dataset", eval_dataset) if eval_dataset is not None else None
        self._files = {f"data/{file.name}": file.content for file in (train_file, eval_file) if file}
        folder = Path(self.args.output_dir)
        task = {
            "kind": "custom",
            "train": str(folder / "data" / train_file.name),
            "test": str(folder / "data" / eval_file.name) if eval_file else None,
            "answer": self.args.answer_column,
            "reward": {"functions": _reward_names(reward_funcs), "weights": self.args.reward_weights},
        }
        recipe = recipe_of(self.args, str(model), task, len(train_file.problems))
        assert isinstance(recipe.task, Custom)
        check_splits(recipe.task, train_file.problems, eval_file.problems if eval_file else ())
        self._eval_problems = eval_file.problems if eval_file else ()
        family = _check_tokenizer(recipe.model, processing_class)
        if peft_config is not None:
            recipe = replace(recipe, model=replace(recipe.model, lora=lora_of(peft_config, family)))
        self.recipe = recipe
        self._callbacks = Callbacks(
            callbacks or (), self.args, rl_steps(self.args, max(1, self.args.logging_steps)), self.recipe.training.steps
        )
        self._callbacks.call("on_init_end")

    @property
    def state(self) -> Any:
        """A `transformers.TrainerState`; `log_history` has the metrics of each RL step of this process."""
        return self._callbacks.state

    @property
    def run(self) -> Run:
        """The run folder. Raises RecipeError before `train`."""
        return Run(self.args.output_dir)

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> Run:
        """Trains, and returns the run. With `resume_from_checkpoint` it continues from the newest checkpoint.

        Ctrl-C ends it after the step, with a checkpoint, and raises KeyboardInterrupt.
        """
        folder = Path(self.args.output_dir)
        if not isinstance(resume_from_checkpoint, bool | None) and folder not in Path(resume_from_checkpoint).parents:
            raise RecipeError(
                f"resume_from_checkpoint is {resume_from_checkpoint!r}; a run continues from the newest checkpoint in "
                f"its own folder {folder}; give True, or another output_dir and that checkpoint as the model"
            )
        self._callbacks.call("on_train_begin")
        try:
            train(
                self.recipe,
                folder,
                resume=bool(resume_from_checkpoint),
                show_progress=not self.args.disable_tqdm,
                watch=self._callbacks,
                files=self._files,
            )
        except Interrupted:
            if not self._callbacks.control.should_training_stop:
                raise
        self._callbacks.call("on_train_end")
        return self.run

    def evaluate(self) -> dict[str, Any]:
        """Solved problems and mean reward of greedy responses to `eval_dataset`, by the newest checkpoint if any."""
        if not self._eval_problems:
            raise RecipeError("there is no eval_dataset; give one to the trainer")
        is_trained = newest_checkpoint(Path(self.args.output_dir) / "checkpoints") is not None
        policy = self.run.load_policy() if is_trained else load_policy(self.recipe.model, device=best_device())
        result = evaluate(policy, self.recipe.task, self._eval_problems, self.recipe.sampler)
        return {"eval/solved": result.solved, "eval/total": result.total, "eval/reward": result.reward}

    def save_model(self, output_dir: str | Path) -> None:
        """Copies the model of the newest checkpoint, or its adapter, to a new folder; in the main process only."""
        if not is_main_process():
            return
        checkpoint = self.run.checkpoint
        if checkpoint is None:
            raise CheckpointError(f"{self.args.output_dir} has no checkpoint yet; call train first")
        replace_folder(Path(output_dir), lambda path: shutil.copytree(checkpoint / "model", path, dirs_exist_ok=True))


def _check_other_arguments(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name not in NOT_OFFERED_BY_THE_TRAINER:
            raise RecipeError(f"{name} is no argument of DiffusionGRPOTrainer; docs/from-trl.md has all arguments")
        if value is not None and value != (None, None):
            raise RecipeError(f"{name} is not offered: {NOT_OFFERED_BY_THE_TRAINER[name]}; leave it out")


def _reward_names(reward_funcs: RewardFunction | Sequence[RewardFunction]) -> list[str]:
    """The names by which the recipe, and every process, can import the functions."""
    functions = [reward_funcs] if callable(reward_funcs) or isinstance(reward_funcs, str) else list(reward_funcs)
    names = []
    for number, function in enumerate(functions):
        name = function if isinstance(function, str) else reference_of(function)
        if name is None:
            raise RecipeError(
                f"reward_funcs[{number}] is {function!r}, which cannot be imported by a name; the recipe of the run "
                "names each function; define it with def at the top level of a file (no lambda, closure or object)"
            )
        names.append(name)
    return names


def _check_tokenizer(config: ModelConfig, processing_class: PreTrainedTokenizerBase | None) -> Family:
    """The family of the model. Raises RecipeError if the tokenizer has no mask token or is not the model's own."""
    path, _, published_config = read_model_files(config)
    family = family_of(published_config)
    if processing_class is None:
        return family
    network_config = family.read_config(published_config)
    try:
        find_special_tokens(published_config, processing_class, family, network_config.vocab_size)
    except CheckpointError as cause:
        raise RecipeError(f"processing_class does not fit {config.path}: {cause}") from cause
    own = load_tokenizer(path, network_config)
    for name, same in (
        ("vocabulary", own.get_vocab() == processing_class.get_vocab()),
        ("chat template", own.chat_template == processing_class.chat_template),
    ):
        if not same:
            raise RecipeError(
                f"processing_class has another {name} than the tokenizer of {config.path}; save it in the folder of "
                "the model (processing_class.save_pretrained), and leave processing_class out"
            )
    return family
