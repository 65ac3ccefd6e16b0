"""Prompts as versioned text files: `prompt_templates/<task>.<version>.txt`, with placeholders in braces."""

import re
from functools import cache
from pathlib import Path

PREFILL = "<reasoning>"
"""d1's evaluation starts every response with this text."""


@cache
def prompt_template(task: str, version: str) -> str:
    """The text of a prompt file."""
    return (
        (Path(__file__).parent / "prompt_templates" / f"{task}.{version}.txt").read_text(encoding="utf-8").rstrip("\n")
    )


def format_prompt(task: str, version: str, **values: object) -> str:
    """The prompt with `values` in its placeholders; other braces (LaTeX has many) do not change."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda name: str(values[name.group(1)]), prompt_template(task, version))


def prefill(version: str) -> str:
    """The given start of the response, after the header of the chat template."""
    return PREFILL if version == "d1_eval" else ""


def format_response(version: str, reasoning: str, answer: str) -> str:
    """A response in the format of the prompts, without the prefill."""
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>".removeprefix(prefill(version))
