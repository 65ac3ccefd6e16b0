"""An evaluation on disk: what was asked, the responses so far, the result. It can be cut off and go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipule.atomic_io import replace_file, write_error
from stipule.errors import CheckpointError, RecipeError
from stipule.evaluation.evaluate import Evaluation, evaluate
from stipule.evaluation.statistics import wilson
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem, Task
from stipule.tasks.sudoku import Sudoku, blank_cells


def split_hash(problems: Iterable[Problem]) -> str:
    """Which problems, in which order, asked in which words."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.key, problem.prompt]).encode())
    return digest.hexdigest()[:16]


class EvaluationFolder:
    """`asked.json`, `responses.jsonl` and, once all are there, `result.json`."""

    def __init__(self, path: Path, asked: Mapping[str, Any]):
        self.path, self.request = path, json.loads(json.dumps(asked))
        before = self._read("asked.json")
        if before is None and path.exists() and any(path.iterdir()):
            raise RecipeError(f"{path} holds other files and was left as it is; give another place with --out")
        if before is not None and before != self.request:
            changed = [k for k in {**before, **self.request} if before.get(k) != self.request.get(k)]
            raise RecipeError(
                f"{path} holds an evaluation that differs in {', '.join(changed)} and was left as it is; "
                "give another place with --out"
            )

    def done(self) -> dict[str, dict[str, Any]]:
        """The responses so far by key; a half-written last line, as a killed process leaves it, is asked again."""
        return {line["key"]: line for line in read_lines(self.path / "responses.jsonl", broken_end=True)}

    def run(
        self,
        policy: MaskedPolicy,
        task: Task,
        problems: Sequence[Problem],
        sampler: SemiAutoregressiveSampler,
        rows: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
        environment: Mapping[str, Any] | None = None,
        cut: bool = True,
    ) -> dict[str, Any]:
        """Evaluates what is not there yet, `rows` at once, and writes the result. Batches change no response."""
        self._write("asked.json", self.request)  # not before: what fails to load a model leaves nothing behind
        done = self.done()
        place = self.path / "responses.jsonl"
        replace_file(place, lambda p: p.write_text("".join(json.dumps(line) + "\n" for line in done.values())))
        left = [problem for problem in problems if problem.key not in done]
        for start in range(0, len(left), rows):
            part = left[start : start + rows]
            found = evaluate(policy, task, part, sampler, rows, cut=cut)
            lines = _lines(part, found)
            try:
                with place.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in lines))
            except OSError as cause:
                raise write_error(place, cause) from cause
            done |= {line["key"]: line for line in lines}
            progress(len(done), len(problems))
        result = {**self.request, **summarise([done[p.key] for p in problems]), "environment": dict(environment or {})}
        if isinstance(task, Sudoku):
            cells = [blank_cells(p, done[p.key]["parts"]) for p in problems]
            result["blank_cells"] = {"correct": sum(r for r, _ in cells), "total": sum(t for _, t in cells)}
        self._write("result.json", result)
        return result

    def _read(self, name: str) -> Any:
        place = self.path / name
        return json.loads(place.read_text(encoding="utf-8")) if place.exists() else None

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        replace_file(self.path / name, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))


def _lines(problems: Sequence[Problem], found: Evaluation) -> list[dict[str, Any]]:
    each = found.seconds / len(problems)
    columns = zip(problems, found.texts, found.grades, found.nfe, strict=True)
    return [
        {
            "key": problem.key,
            "response": text,
            "correct": grade.correct,
            "reward": grade.reward,
            "parts": dict(grade.parts),
            "model_calls": calls,
            "seconds": round(each, 4),
        }
        for problem, text, grade, calls in columns
    ]


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, accuracy with its interval, and what it cost."""
    solved, total = sum(line["correct"] for line in lines), len(lines)
    return {
        "solved": solved,
        "total": total,
        "accuracy": solved / total,
        "interval": [round(edge, 6) for edge in wilson(solved, total)],
        "reward": sum(line["reward"] for line in lines) / total,
        "parts": {name: sum(line["parts"][name] for line in lines) / total for name in lines[0]["parts"]},
        "model_calls": sum(line["model_calls"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 2),
    }


def read_lines(path: Path, broken_end: bool = False) -> list[dict[str, Any]]:
    """JSON lines. Raises CheckpointError with file and line on damage, but for the last line if `broken_end`."""
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as cause:
            if broken_end and number == len(texts):
                break
            raise CheckpointError(f"{path}, line {number} is not JSON: {cause}") from cause
    return lines


def read_correct(path: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    """What a finished evaluation asked, and which problems it solved. Raises CheckpointError if it is not finished."""
    if not (path / "result.json").exists() or not (path / "responses.jsonl").exists():
        raise CheckpointError(
            f"{path} is not a finished evaluation (result.json and responses.jsonl); make one with: "
            f"stipule eval MODEL --out {path}"
        )
    result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    lines = read_lines(path / "responses.jsonl")
    return result, {line["key"]: bool(line["correct"]) for line in lines}
