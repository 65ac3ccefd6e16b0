"""`python -m stipule` is the `stipule` command."""

from stipule.cli import main

main()
