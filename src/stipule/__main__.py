"""`python -m stipule` runs the `stipule` command."""

from stipule.cli import main

main()
