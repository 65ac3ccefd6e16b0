"""What can go wrong for a user, as few names as the command line needs to tell apart."""


class StipuleError(Exception):
    """Something the user can mend; the message says what was given, what is allowed, what to do."""


class RecipeError(StipuleError, ValueError):
    """A recipe, an override or an argument that cannot work."""


class CheckpointError(StipuleError):
    """A model, anchor or run folder that is missing, incomplete or of another kind than needed."""


class DivergenceError(StipuleError):
    """Training met a loss or gradient that is not a number; the step's rollouts were saved."""


class RewardError(StipuleError):
    """A reward that is not a finite number; nothing was learned from its step."""


class AlarmError(StipuleError):
    """A run that its alarms have ended (`alarms.stop`); the message names the checkpoint to go back to."""
