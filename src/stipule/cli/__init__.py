"""The `stipule` command. Thin: every command is a function somewhere else, imported when it is called."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from stipule.cli import (  # noqa: F401  (they register their commands)
    doctor,
    eval,
    export,
    generate,
    grade,
    plan,
    report,
    reproduce,
    train,
)
from stipule.cli.app import app
from stipule.errors import AlarmError, DivergenceError, StipuleError


def main() -> None:
    """Runs the command; a user's error is one message and exit code 2, a run that went wrong exit code 1."""
    try:
        app()
    except (AlarmError, DivergenceError) as error:
        _complain(error)
        sys.exit(1)
    except StipuleError as error:
        _complain(error)
        sys.exit(2)


def _complain(error: StipuleError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
