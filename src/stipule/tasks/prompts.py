"""Prompts as versioned text files: `prompt_templates/<task>.<version>.txt`, with the puzzle's own words in braces."""

import re
from functools import cache
from pathlib import Path

PREFILL = "<reasoning>"
"""What d1's evaluation puts in front of every response."""


@cache
def prompt_template(task: str, version: str) -> str:
    """The text of a prompt file."""
    return (
        (Path(__file__).parent / "prompt_templates" / f"{task}.{version}.txt").read_text(encoding="utf-8").rstrip("\n")
    )


def format_prompt(task: str, version: str, **words: object) -> str:
    """The prompt with its words filled in; braces that name none of them (LaTeX has many) stay as they are."""
    names = "|".join(words)
    return re.sub(rf"\{{({names})\}}", lambda name: str(words[name.group(1)]), prompt_template(task, version))


def prefill(version: str) -> str:
    """What the response starts after, besides the chat template's own header."""
    return PREFILL if version == "d1_eval" else ""


def format_response(version: str, reasoning: str, answer: str) -> str:
    """A response in the format that the prompts ask for, as it goes on after the prefill."""
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>".removeprefix(prefill(version))
