"""`stipule grade`: grades saved responses again."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import app, console


class Rules(StrEnum):
    """The rules of grading."""

    d1 = "d1"
    strict = "strict"


@app.command(
    epilog="Examples:  stipule grade responses.jsonl.gz --protocol d1  ·  "
    "stipule grade responses.jsonl --task gsm8k --protocol strict --against d1 --disagreements --json grades.json"
)
def grade(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON lines, plain or .gz, with question, gold, response (and task)."),
    ],
    protocol: Annotated[Rules, typer.Option(help="d1: the rules of d1's code; strict: exact ones.")] = Rules.strict,
    task: Annotated[
        str | None, typer.Option(help="gsm8k, math, countdown, sudoku or arithmetic. Default: the column task.")
    ] = None,
    against: Annotated[
        Rules | None, typer.Option(help="Also grade by these rules, and count the disagreements by kind.")
    ] = None,
    disagreements: Annotated[
        bool, typer.Option("--disagreements", help="List the responses that the two rules grade differently.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts there.")] = None,
) -> None:
    """Grade saved responses by d1's rules or by the strict rules, and show where the two differ."""
    from stipule.atomic_io import replace_file
    from stipule.evaluation.grader_disagreements import find_disagreements
    from stipule.evaluation.regrade import as_json, grade_file, read_saved_responses
    from stipule.report.grade_table import disagreement_lines, disagreement_table, grade_table
    from stipule.report.progress import bar

    if disagreements and against is None:
        against = Rules.strict if protocol == Rules.d1 else Rules.d1
    started = time.perf_counter()
    responses = read_saved_responses(file, task)
    with bar(console, "grading") as progress:
        grades, tallies = grade_file(responses, protocol.value, progress)
    data = as_json(file, protocol.value, tallies, time.perf_counter() - started)
    console.print(grade_table(tallies, protocol))
    if against is not None and against != protocol:
        with bar(console, f"grading by {against}") as progress:
            others, other_tallies = grade_file(responses, against.value, progress)
        console.print(grade_table(other_tallies, against))
        d1, strict = (grades, others) if protocol == Rules.d1 else (others, grades)
        disputed = find_disagreements(responses, d1, strict)
        counts: dict[str, int] = {}
        for response in responses:
            counts[response.task] = counts.get(response.task, 0) + 1
        console.print(disagreement_table(disputed, counts))
        if disagreements:
            for line in disagreement_lines(disputed):
                console.print(line, markup=False, highlight=False)
        data["against"] = as_json(file, against.value, other_tallies, 0.0)["tasks"]
        data["differences"] = [
            {
                "where": d.response.location,
                "task": d.response.task,
                "above": d.higher_protocol,
                "kind": d.kind,
                "d1": d.d1,
                "strict": d.strict,
            }
            for d in disputed
        ]
    console.print(f"{len(responses):,} responses in {time.perf_counter() - started:.1f} s")
    if json_file:
        replace_file(json_file, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))
