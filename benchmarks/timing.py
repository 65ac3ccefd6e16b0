"""Fair comparisons on a busy machine: all sides in one process, in turns, with medians and seconds per component."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stipule.models.masked_policy import MaskedPolicy

REPEATS = 5


class Meter:
    """Model calls, rows x calls and seconds of a policy's forward passes, of its backbone and its lm_head."""

    def __init__(self, policy: MaskedPolicy):
        self.calls = self.row_forwards = 0
        self.backbone = self.lm_head = 0.0
        self._started = 0.0
        backbone, lm_head = policy.unwrapped_model.base_model, policy.unwrapped_model.get_output_embeddings()
        self._hooks = [
            backbone.register_forward_pre_hook(self._enter_backbone, with_kwargs=True),
            backbone.register_forward_hook(self._leave_backbone),
            lm_head.register_forward_pre_hook(self._enter),
            lm_head.register_forward_hook(self._leave_lm_head),
        ]

    def _enter(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _enter_backbone(self, module: Any, arguments: Any, named: Any) -> None:
        self.calls += 1
        self.row_forwards += len(named["input_ids"])
        self._enter()

    def _leave_backbone(self, *_: Any) -> None:
        self.backbone += time.perf_counter() - self._started

    def _leave_lm_head(self, *_: Any) -> None:
        self.lm_head += time.perf_counter() - self._started

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def alternate(
    policy: MaskedPolicy,
    sides: dict[str, Callable[[], object]],
    repeats: int = REPEATS,
    others: Mapping[str, MaskedPolicy] | None = None,
) -> dict[str, Any]:
    """Runs the sides in turns, after one turn that is not counted; medians of seconds per component, and of ratios.

    The ratio of a turn is first side / this side, so a slow period of the machine affects both. `others` are
    the policies of sides that do not use `policy`.
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            meter = Meter((others or {}).get(name, policy))
            started = time.perf_counter()
            run()
            seconds = time.perf_counter() - started
            meter.close()
            if turn:
                taken[name].append(
                    {
                        "seconds": seconds,
                        "backbone": meter.backbone,
                        "lm_head": meter.lm_head,
                        "elsewhere": seconds - meter.backbone - meter.lm_head,
                        "elsewhere_fraction": 1 - (meter.backbone + meter.lm_head) / seconds,
                        "calls": meter.calls,
                        "row_forwards": meter.row_forwards,
                    }
                )
    first = [turn["seconds"] for turn in next(iter(taken.values()))]
    results = {}
    for name, turns in taken.items():
        middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        ratios = [one / turn["seconds"] for one, turn in zip(first, turns, strict=True)]
        results[name] = middle | {"times_faster": statistics.median(ratios), "all_ratios": ratios}
    return results


def table(title: str, results: dict[str, dict[str, Any]]) -> str:
    """The comparison as a table, the first side being the one compared with."""
    lines = [
        f"### {title}\n",
        "| | seconds | in the backbone | in the lm_head | elsewhere | model calls | rows x calls | times faster |",
        "|---" * 8 + "|",
    ]
    for name, row in results.items():
        low, high = min(row["all_ratios"]), max(row["all_ratios"])
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {row['backbone']:.3f} | {row['lm_head']:.3f} | {row['elsewhere']:.3f} "
            f"({row['elsewhere_fraction']:.0%}) | {row['calls']:,.0f} | {row['row_forwards']:,.0f} | "
            f"{row['times_faster']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def write(name: str, results: Any, out: Path = Path("runs/bench")) -> None:
    """The numbers as json."""
    out.mkdir(parents=True, exist_ok=True)
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "repeats": REPEATS}
    (out / f"{name}.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


def within(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """measured / predicted, both relative to their first entry."""
    return [(m / measured[0]) / (p / predicted[0]) for p, m in zip(predicted, measured, strict=True)]
