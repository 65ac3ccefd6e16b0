"""Errors that a user can cause or must handle. The command line prints their message without a traceback."""

import errno
import re


class StipuleError(Exception):
    """An error that the user can fix; the message says what was given, what is allowed and what to do."""


class RecipeError(StipuleError, ValueError):
    """An invalid recipe, override or argument."""


class CheckpointError(StipuleError):
    """A model, anchor file or run folder that is missing, damaged or of the wrong kind."""


class DivergenceError(StipuleError):
    """A loss or gradient of training is not finite; the rollouts of the step were saved."""


class RewardError(StipuleError):
    """A reward is not finite; its step did not update the weights."""


class AlarmError(StipuleError):
    """An alarm stopped the run (`alarms.stop`); the message names the checkpoint to go back to."""


def out_of_memory_message(error: BaseException) -> str | None:
    """One sentence for an error that means that memory ran out, with the settings to change; else None.

    PyTorch has an exception of its own for GPUs only, and this module does not import it.
    """
    text = str(error)
    is_out_of_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )
    if not is_out_of_memory:
        return None
    amount = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    return (
        f"out of memory{f' (the last request was for {amount[1]})' if amount else ''}; stipule plan RECIPE shows what "
        "a recipe needs and changes these until it fits: training.micro_batch_size and training.rollout_batch_size "
        "lower (eval: --rows), model.gradient_checkpointing=true, model.lora.rank=128, model.dtype=bfloat16, "
        "model.quantize=nf4; or launch it on more GPUs with recipes/launch/fsdp2.yaml; no finished checkpoint is lost"
    )
