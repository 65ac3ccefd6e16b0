"""`stipule` as a model of lm-evaluation-harness (docs/lm-eval.md).

A release of lm_eval that looks for models of other packages finds this one by the entry point in pyproject.toml. For
every release, `python -m stipule.lm_eval` is the command `lm_eval` with this model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from stipule.config.recipe import recipe_for_model
from stipule.errors import RecipeError, StipuleError
from stipule.evaluation.evaluate import evaluation_sampler
from stipule.evaluation.likelihood import Request, are_greedy, elbos
from stipule.models.loading import ModelConfig, best_device, load_policy
from stipule.rng import make_generator
from stipule.rollouts.prompt_lengths import check_sequence_length
from stipule.rollouts.sampler import Noise, SemiAutoregressiveSampler

AUTO_BATCH_SIZE = 64  # rows of `stipule eval`
SAMPLER_SETTINGS = ("gen_length", "steps", "block_length")
NOT_FOR_EVALUATION = {"path", "lora", "gradient_checkpointing"}
MODEL_SETTINGS = tuple(f.name for f in fields(ModelConfig) if f.name not in NOT_FOR_EVALUATION)
OTHERS = ("path", "temperature", "num_samples", "seed", "batch_size", "device")


@register_model("stipule")
class StipuleLM(TemplateLM):
    """A masked diffusion language model: texts by our sampler, likelihoods by the ELBO.

    path: as in `stipule eval`: a folder, a run folder, a hub name, or a bundled model.
    gen_length, steps, block_length: of the sampler; the defaults are those of `stipule eval`.
    temperature: None: that of the task's generation_kwargs, which is 0 (greedy) unless they say otherwise.
    num_samples: mask samples of a likelihood. seed: of the masks, and of sampling at a temperature above 0.
    settings: also the settings of `model` in a recipe, such as dtype=bfloat16.
    Raises RecipeError for an unknown or invalid argument, before the model is loaded.
    """

    def __init__(
        self,
        path: str | None = None,
        temperature: float | None = None,
        num_samples: int = 128,
        seed: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        if path is None:
            raise RecipeError("model_args has no path; it names the model; try --model_args path=tiny/sudoku")
        recipe = recipe_for_model(str(path), None, _overrides(settings, temperature), needs_task=False)
        self.sampler = evaluation_sampler(recipe.sampler)
        self.temperature = None if temperature is None else recipe.sampler.temperature
        self.num_samples, self.seed = _integer("num_samples", num_samples, 1), _integer("seed", seed, 0)
        is_auto = str(batch_size).startswith("auto")
        self.batch_size = AUTO_BATCH_SIZE if is_auto else _integer("batch_size", batch_size, 1)
        chosen = _device(device)
        self.policy = load_policy(recipe.model, device=chosen)
        self.tokenizer = self.policy.tokenizer

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.policy.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.policy.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The context of a text without one."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """Tells cached requests of other tokenizers apart."""
        return f"stipule-{self.policy.tokenizer_fingerprint()}"

    def get_model_info(self) -> dict[str, Any]:
        """What the results file holds besides model_args."""
        sampler = {name: getattr(self.sampler, name) for name in SAMPLER_SETTINGS}
        return {**sampler, "num_samples": self.num_samples, "seed": self.seed, "model": self.policy.fingerprint()}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation. Raises RecipeError if the tokenizer has no template."""
        if self.tokenizer.chat_template is None:
            raise RecipeError("the model's tokenizer has no chat template; leave out --apply_chat_template")
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids. By default with the tokenizer's special tokens, unless the text begins with its first already."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = begin is None or not string.startswith(begin)
        try:
            return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        except Exception as cause:  # a tokenizer without a token for unknown words raises a plain Exception
            raise StipuleError(
                f"the text {string[:60]!r} ... cannot be encoded by the model's tokenizer: {cause}; a tiny base has "
                "only the words of its own task"
            ) from cause

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The response to each context: at most the task's max_gen_toks tokens of gen_length, cut at `until`."""
        prompts = [self.tok_encode(context) for context, _ in arguments(requests)]
        for prompt in prompts:
            check_sequence_length(self.policy, len(prompt), self.sampler.gen_length)
        options = [normalize_gen_kwargs(o, self.sampler.gen_length) for _, o in arguments(requests)]
        temperatures = [o.get("temperature", 0.0) if self.temperature is None else self.temperature for o in options]
        texts = [""] * len(requests)
        with _progress("denoising", len(requests), disable_tqdm) as progress:
            for temperature in sorted(set(temperatures)):
                sampler = evaluation_sampler(self.sampler, float(temperature))
                indices = [i for i, t in enumerate(temperatures) if t == temperature]
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    noise = noise_of_rows(sampler, self.seed, batch)
                    rollouts = sampler(self.policy, self.policy.pad_left([prompts[i] for i in batch]), noise)
                    for i, row in zip(batch, rollouts.completion_ids, strict=True):
                        (text,) = self.policy.decode(row[None, : options[i]["max_gen_toks"]])
                        texts[i] = cut_at(text, options[i]["until"])
                        self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    progress(len(batch))
        return texts

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        values = self._elbos(pairs, disable_tqdm)
        with _progress("greedy decoding", len(pairs), disable_tqdm) as progress:
            greedy = are_greedy(self.policy, pairs, self.batch_size, progress)
        results = list(zip(values, greedy, strict=True))
        for (texts, *_), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The ELBO of each whole text. A text longer than the model is split; each part sees what fits before it."""
        windows: list[Request] = []
        owners: list[int] = []
        for index, (text,) in enumerate(arguments(requests)):
            token_ids = self.tok_encode(text, add_special_tokens=False)
            limit = (self.policy.max_length or len(token_ids) + 1) - 1
            parts = get_rolling_token_windows(token_ids, self.prefix_token_id, max(1, limit), 1)
            windows += [make_disjoint_window(part) for part in parts]
            owners += [index] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for index, value in zip(owners, self._elbos(windows, disable_tqdm), strict=True):
            totals[index] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _elbos(self, pairs: Sequence[Request], disable_tqdm: bool) -> list[float]:
        with _progress("likelihoods", len(pairs), disable_tqdm) as progress:
            return elbos(self.policy, pairs, self.num_samples, self.seed, self.batch_size, progress)


def arguments(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    """The arguments of each request."""
    return [request.args for request in requests]


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first of the strings that end it."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text


def noise_of_rows(sampler: SemiAutoregressiveSampler, seed: int, indices: Sequence[int]) -> Noise:
    """The noise of requests, which depends on the index of each and on no other, so not on the batch size."""
    rows = [sampler.sample_noise(1, make_generator(seed, index, "generate_until")) for index in indices]
    return Noise(torch.cat([row.uniform for row in rows], 1), torch.cat([row.position_noise for row in rows]))


def main() -> None:
    """The command `lm_eval` with this model. A user's error is one sentence and exit code 2, as in `stipule`."""
    try:
        cli_evaluate()
    except StipuleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _overrides(settings: Mapping[str, Any], temperature: float | None) -> list[str]:
    """The settings as overrides of a recipe. Raises RecipeError for an unknown one, with the nearest."""
    allowed = (*OTHERS, *SAMPLER_SETTINGS, *MODEL_SETTINGS)
    for name in settings:
        if name not in SAMPLER_SETTINGS and name not in MODEL_SETTINGS:
            nearest = get_close_matches(name, allowed, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise RecipeError(f"model_args has {name}, which is no setting; {hint}allowed: {', '.join(allowed)}")
    sections = {name: "sampler" if name in SAMPLER_SETTINGS else "model" for name in settings}
    overrides = [f"{sections[name]}.{name}={json.dumps(value)}" for name, value in settings.items()]
    return [*overrides, f"sampler.temperature={json.dumps(0 if temperature is None else temperature)}"]


def _integer(name: str, value: object, lowest: int) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) < lowest:
        raise RecipeError(f"{name} is {value!r}; it must be a whole number, {lowest} or more")
    return int(text)


def _device(name: str | None) -> torch.device:
    """The device of this name. lm_eval asks for a GPU by default, also on a machine without one: there, the CPU."""
    try:
        device = torch.device(name or best_device())
    except RuntimeError as cause:
        raise RecipeError(f"device is {name!r}, which torch does not know; try cuda or cpu") from cause
    return device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def _progress(label: str, total: int, is_disabled: bool) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=label, disable=is_disabled) as bar:
        yield bar.update


if __name__ == "__main__":
    main()
