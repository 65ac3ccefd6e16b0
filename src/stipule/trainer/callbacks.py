"""Callbacks of transformers in a run: which of their methods are called, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from stipule.errors import RecipeError

CALLED = ("on_init_end", "on_train_begin", "on_step_end", "on_log", "on_evaluate", "on_save", "on_train_end")


class Callbacks:
    """Passes the events of a run on to callbacks, in the main process. `global_step` counts RL steps.

    After each RL step `on_step_end`, after an evaluation `on_evaluate`, every `log_every` RL steps `on_log` with the
    step's line of metrics.jsonl, after a checkpoint `on_save`. `control.should_training_stop` ends the run after its
    step, with a checkpoint; other fields of `control` have no effect.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback], args: Any, log_every: int, max_steps: int):
        """Raises RecipeError for an object that is no callback, or has a method that would never be called."""
        self.callbacks = [callback() if isinstance(callback, type) else callback for callback in callbacks]
        for number, callback in enumerate(self.callbacks):
            if not isinstance(callback, TrainerCallback):
                raise RecipeError(
                    f"callbacks[{number}] is a {type(callback).__name__}; it must be a transformers.TrainerCallback"
                )
            uncalled = [name for name in _own_events(callback) if name not in CALLED]
            if uncalled:
                raise RecipeError(
                    f"callbacks[{number}] ({type(callback).__name__}) has {', '.join(uncalled)}, which would never be "
                    f"called; called are {', '.join(CALLED)}"
                )
        self.args, self.log_every = args, log_every
        self.state, self.control = TrainerState(max_steps=max_steps), TrainerControl()

    def __call__(self, event: str, data: Mapping[str, Any]) -> bool:
        """An event of the loop (`training.anchor_source.Watch`); true asks it to end."""
        if event == "step" and "reward/mean" in data:
            self.state.global_step = data["step"]
            self.state.log_history.append(dict(data))
            self.call("on_step_end")
            if any(name.startswith("eval/") for name in data):
                self.call("on_evaluate", metrics={k: v for k, v in data.items() if k.startswith("eval/")})
            if data["step"] % self.log_every == 0:
                self.call("on_log", logs=dict(data))
        if event == "saved":
            self.call("on_save")
        return self.control.should_training_stop

    def call(self, event: str, **arguments: Any) -> None:
        """Calls this method of every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, **arguments)


def _own_events(callback: TrainerCallback) -> list[str]:
    """The `on_...` methods that the callback's class, or one above it, overrides."""
    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]
    return [name for name in events if getattr(type(callback), name) is not getattr(TrainerCallback, name)]
