"""An evaluation on disk: its request, the responses so far, and the result. It can be interrupted and continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipule.atomic_io import append_text, replace_file
from stipule.errors import CheckpointError, RecipeError
from stipule.evaluation.evaluate import Evaluation, evaluate
from stipule.evaluation.statistics import wilson
from stipule.file_lock import LOCK, sole_writer
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.prompt_lengths import check_prompt_lengths
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem, Task, mean_parts
from stipule.tasks.sudoku import Sudoku, blank_cells


def split_hash(problems: Iterable[Problem]) -> str:
    """A hash of the problems, their order and their prompts."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.key, problem.prompt]).encode())
    return digest.hexdigest()[:16]


class EvaluationFolder:
    """`request.json`, `responses.jsonl` and, once all responses are there, `result.json`.

    Raises RecipeError if the folder holds other files, another request, or was written by an earlier version.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]):
        self.path, self.request = path, json.loads(json.dumps(request))
        if (path / "asked.json").exists():
            raise RecipeError(
                f"{path} was written by an earlier version of stipule, which used other names (asked.json for "
                "request.json), and cannot be continued; give another place with --out, or delete the folder"
            )
        existing = self._read("request.json")
        if existing is None and path.exists() and any(file.name != LOCK for file in path.iterdir()):
            raise RecipeError(f"{path} holds other files and was left as it is; give another place with --out")
        if existing is not None and existing != self.request:
            changed = [k for k in {**existing, **self.request} if existing.get(k) != self.request.get(k)]
            raise RecipeError(
                f"{path} holds an evaluation that differs in {', '.join(changed)} and was left as it is; "
                "give another place with --out"
            )

    def done(self) -> dict[str, dict[str, Any]]:
        """The responses so far by key. An incomplete last line, left by a killed process, is ignored."""
        return {line["key"]: line for line in read_lines(self.path / "responses.jsonl", allow_incomplete_end=True)}

    def run(
        self,
        policy: MaskedPolicy,
        task: Task,
        problems: Sequence[Problem],
        sampler: SemiAutoregressiveSampler,
        batch_size: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
        environment: Mapping[str, Any] | None = None,
        stop_at_eos: bool = True,
    ) -> dict[str, Any]:
        """Evaluates the problems that have no response yet, and writes the result. `batch_size` changes no response.

        Raises RecipeError if another process evaluates into the folder.
        """
        check_prompt_lengths(policy, problems, sampler.gen_length)
        self._write("request.json", self.request)  # not earlier: a model that fails to load leaves no folder
        with sole_writer(self.path):
            lines = self._responses(policy, task, problems, sampler, batch_size, progress, stop_at_eos)
            result = {**self.request, **summarise(lines), "environment": dict(environment or {})}
            if isinstance(task, Sudoku):
                cells = [blank_cells(p, line["parts"]) for p, line in zip(problems, lines, strict=True)]
                result["blank_cells"] = {"correct": sum(r for r, _ in cells), "total": sum(t for _, t in cells)}
            self._write("result.json", result)
        return result

    def _responses(
        self,
        policy: MaskedPolicy,
        task: Task,
        problems: Sequence[Problem],
        sampler: SemiAutoregressiveSampler,
        batch_size: int,
        progress: Callable[[int, int], None],
        stop_at_eos: bool,
    ) -> list[dict[str, Any]]:
        """The lines of responses.jsonl, in the order of the problems, with those that were missing."""
        done = self.done()
        path = self.path / "responses.jsonl"
        replace_file(path, lambda p: p.write_text("".join(json.dumps(line) + "\n" for line in done.values())))
        remaining = [problem for problem in problems if problem.key not in done]
        progress(len(done), len(problems))
        for start in range(0, len(remaining), batch_size):
            batch = remaining[start : start + batch_size]
            lines = _lines(batch, evaluate(policy, task, batch, sampler, batch_size, stop_at_eos=stop_at_eos))
            append_text(path, "".join(json.dumps(line) + "\n" for line in lines))
            done |= {line["key"]: line for line in lines}
            progress(len(done), len(problems))
        return [done[p.key] for p in problems]

    def _read(self, name: str) -> Any:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        replace_file(self.path / name, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))


def _lines(problems: Sequence[Problem], evaluation: Evaluation) -> list[dict[str, Any]]:
    seconds = evaluation.seconds / len(problems)
    columns = zip(problems, evaluation.texts, evaluation.grades, evaluation.nfe, strict=True)
    return [
        {
            "key": problem.key,
            "response": text,
            "correct": grade.correct,
            "reward": grade.reward,
            "parts": dict(grade.parts),
            "model_calls": nfe,
            "seconds": round(seconds, 4),
        }
        for problem, text, grade, nfe in columns
    ]


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, accuracy with its interval, mean reward, model calls and seconds."""
    solved, total = sum(line["correct"] for line in lines), len(lines)
    return {
        "solved": solved,
        "total": total,
        "accuracy": solved / total,
        "interval": [round(edge, 6) for edge in wilson(solved, total)],
        "reward": sum(line["reward"] for line in lines) / total,
        "parts": mean_parts(line["parts"] for line in lines),
        "model_calls": sum(line["model_calls"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 2),
    }


def read_lines(path: Path, allow_incomplete_end: bool = False) -> list[dict[str, Any]]:
    """JSON lines. Raises CheckpointError for a damaged line, except the last one with `allow_incomplete_end`."""
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as cause:
            if allow_incomplete_end and number == len(texts):
                break
            raise CheckpointError(f"{path}, line {number} is not JSON: {cause}") from cause
    return lines


def read_correct(path: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    """The result of a finished evaluation, and whether each problem is solved. Raises CheckpointError if unfinished."""
    if not (path / "result.json").exists() or not (path / "responses.jsonl").exists():
        raise CheckpointError(
            f"{path} is not a finished evaluation: it lacks result.json or responses.jsonl; make one with: "
            f"stipule eval MODEL --out {path}"
        )
    result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    lines = read_lines(path / "responses.jsonl")
    return result, {line["key"]: bool(line["correct"]) for line in lines}
