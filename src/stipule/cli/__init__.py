"""The `stipule` command. Each command parses its arguments, then imports and calls the code that does the work."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

# Importing a module registers its command; `stipule --help` lists the commands in this order.
# isort: off
from stipule.cli import doctor  # noqa: F401
from stipule.cli import export  # noqa: F401
from stipule.cli import convert_adapter  # noqa: F401
from stipule.cli import generate  # noqa: F401
from stipule.cli import grade  # noqa: F401
from stipule.cli import eval  # noqa: F401
from stipule.cli import compare  # noqa: F401
from stipule.cli import variance  # noqa: F401
from stipule.cli import report  # noqa: F401
from stipule.cli import watch  # noqa: F401
from stipule.cli import plan  # noqa: F401
from stipule.cli import reproduce  # noqa: F401
from stipule.cli import quickstart  # noqa: F401
from stipule.cli import train  # noqa: F401
from stipule.cli import check  # noqa: F401
from stipule.cli import pretrain  # noqa: F401
from stipule.cli import anchors  # noqa: F401

# isort: on
from stipule.cli.app import app
from stipule.errors import AlarmError, DivergenceError, StipuleError, out_of_memory_message


def main() -> None:
    """Runs the command. A user's error prints one message and exits with 2, a run that diverged exits with 1."""
    try:
        app()
    except (AlarmError, DivergenceError) as error:
        _print_error(error)
        sys.exit(1)
    except StipuleError as error:
        _print_error(error)
        sys.exit(2)
    except (RuntimeError, MemoryError, OSError) as error:
        message = out_of_memory_message(error)
        if message is None:
            raise
        _print_error(StipuleError(message))
        sys.exit(2)


def _print_error(error: StipuleError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
