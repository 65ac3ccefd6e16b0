"""Errors that a user can cause or must handle. The command line prints their message without a traceback."""


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
