"""Builds the report page: all data of the runs as JSON inside one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from stipule import __version__
from stipule.atomic_io import replace_file
from stipule.errors import RecipeError
from stipule.report.glossary import explain
from stipule.report.page.run_reader import Run, read_runs
from stipule.report.page.samples import select_rollouts
from stipule.report.page.savings import savings
from stipule.report.page.series import box_plot, downsample, finite_number, moving_average
from stipule.report.page.summary import verdict
from stipule.training.alarms import Alarms

SCRIPTS = ("elements.js", "charts.js", "curves.js", "viewer.js", "table.js", "page.js")
MAX_BYTES = 2_000_000  # of a page
MAX_ROLLOUT_BYTES = 1_300_000  # of them for saved responses
MAX_RESPONSES = 600
MAX_POINTS = 60_000  # of all curves together
MARKER = "<!-- a stipule report -->"


def write_page(paths: Sequence[Path], out: Path) -> int:
    """Writes the page of these runs; returns its size in bytes.

    Raises RecipeError if `out` is a file that is no report or a path is no run folder, CheckpointError if an earlier
    version wrote the run.
    """
    if out.exists():
        start = out.read_text(encoding="utf-8", errors="replace")[:200] if out.is_file() else ""
        if MARKER not in start:
            raise RecipeError(
                f"{out} already exists and is no report; it was not changed; give another file name with --out"
            )
    budget = MAX_ROLLOUT_BYTES
    while len(page := render_page(page_data(paths, budget=budget)).encode("utf-8", "replace")) > MAX_BYTES:
        if budget <= 1000:
            break
        budget //= 2  # characters that are escaped for HTML are longer in the page than in the estimate
    replace_file(out, lambda path: path.write_bytes(page))
    return len(page)


def page_data(paths: Sequence[Path], live: bool = False, budget: int = MAX_ROLLOUT_BYTES) -> dict[str, Any]:
    """All data of the page. `live`: the page asks its server for new data. `budget`: bytes of saved responses."""
    runs = read_runs(paths)
    num_keys = max((len(line) for run in runs for line in run.metrics[-1:]), default=1)
    points = min(500, max(40, MAX_POINTS // (num_keys * len(runs))))
    runs_data = [_run_data(run, points) for run in runs]
    keys = dict.fromkeys(key for run in runs_data for key in run["curves"]["y"])
    return {
        "version": __version__,
        "live": live,
        "runs": runs_data,
        "glossary": {k: [entry.meaning, entry.warning] for k in [*keys, "alarms"] if (entry := explain(k))},
        "rollouts": select_rollouts(runs, MAX_RESPONSES, budget),
    }


def render_page(data: Mapping[str, Any]) -> str:
    """The HTML. Its content security policy forbids all other scripts, so text of a response is never executed."""
    folder = files("stipule.report.page")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (folder / "page.css").read_text(encoding="utf-8")
    connect = "'self'" if data["live"] else "'none'"
    policy = (
        f"default-src 'none'; script-src {_csp_hash(script)}; style-src {_csp_hash(style)}; connect-src {connect}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    template = Environment(autoescape=True).from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        marker=Markup(MARKER),
        version=data["version"],
        title=" · ".join(run["name"] for run in data["runs"]),
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(json_for_html(data)),
    )


def json_for_html(data: Mapping[str, Any]) -> str:
    """JSON in which all characters that HTML could interpret are escaped, whatever text the responses contain."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _run_data(run: Run, points: int) -> dict[str, Any]:
    alarms, limits = _alarms(run)
    saved = savings(run)
    notes = list(run.notes)
    if len(run.metrics) > points:
        notes.append(f"To keep the page small, {len(run.metrics)} steps are drawn as {points} means over neighbours.")
    curves = downsample(run.metrics, points)
    bands = {"reward/mean": moving_average(run.metrics, "reward/mean", None)}
    bands["reward/accuracy"] = moving_average(run.metrics, "reward/accuracy", run.rows_per_step)
    variance = next((k for k in ("variance/estimate", "variance/per_sample") if k in curves["y"]), "variance/estimate")
    return {
        "name": run.name,
        "path": str(run.path),
        "steps": run.metrics[-1]["step"] if run.metrics else 0,
        "planned_steps": finite_number(run.section("training").get("steps")),
        "version": str(run.environment.get("stipule", "(version not known)")),
        "facts": _facts(run),
        "recipe": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True) if run.recipe else "",
        "notes": notes,
        "curves": curves,
        "bands": {key: band for key, band in bands.items() if band},
        "variance_box": box_plot(run.metrics, variance),
        "variance_key": variance,
        "alarms": alarms,
        "limits": limits,
        "savings": saved,
        "columns": 4 if run.section("task").get("kind") == "sudoku" else 0,
        "verdict": verdict(run, alarms, saved),
    }


def _kind_suffix(section: Any) -> str:
    """The kind of a pruning schedule; empty for the paper's constant one."""
    kind = section.get("kind") if isinstance(section, dict) else None
    return f" {kind.replace('_', ' ')}" if isinstance(kind, str) and kind != "constant" else ""


def _facts(run: Run) -> list[list[str]]:
    task, model, pruning = run.section("task"), run.section("model"), run.section("pruning")
    spatial, temporal = pruning.get("spatial") or {}, pruning.get("temporal") or {}
    kinds = [run.section(name).get("kind") for name in ("estimator", "advantage", "objective")]
    facts = {
        "task": task.get("kind"),
        "model": model.get("path"),
        "method": " · ".join(str(kind) for kind in kinds if kind) or None,
        "pruning": f"gamma {spatial['ratio']:g}{_kind_suffix(spatial.get('schedule'))}, "
        f"cutoff {temporal['cutoff']:g}{_kind_suffix(temporal)}"
        if isinstance(spatial.get("ratio"), int | float) and isinstance(temporal.get("cutoff"), int | float)
        else None,
        "seed": run.section("training").get("seed"),
        "machine": run.environment.get("platform"),
        "torch": run.environment.get("torch"),
    }
    return [[name, str(value)] for name, value in facts.items() if value is not None]


def _alarms(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The run's alarms, once each, and its limits. Without a readable recipe the default limits are applied."""
    names = {field.name for field in fields(Alarms)}
    try:
        alarms = Alarms(**{k: v for k, v in run.section("alarms").items() if k in names})
    except (RecipeError, TypeError):
        alarms = Alarms()
    by_name: dict[str, dict[str, Any]] = {}
    has_recorded_alarms = "alarms" in run.recipe
    for index, line in enumerate(run.metrics):
        events = line.get("alarms") if has_recorded_alarms else alarms.raised(run.metrics[: index + 1])
        for event in events if isinstance(events, list) else []:
            if not isinstance(event, dict):
                continue
            name, message = str(event.get("name")), str(event.get("message"))
            alarm = by_name.setdefault(name, {"name": name, "message": message, "first": line["step"], "count": 0})
            alarm["count"] += 1
    limits = {
        "policy/ratio_max": alarms.ratio,
        "policy/clip_ratio": alarms.clip_ratio,
        "policy/kl": alarms.kl,
        "response/confidence": alarms.confidence,
        "response/repetition": alarms.repetition,
        "response/copies": alarms.copies,
        "response/empty": alarms.empty,
        "response/same_text": alarms.same_text,
        "response/few_tokens": alarms.few_tokens,
    }
    return list(by_name.values()), {key: limit for key, limit in limits.items() if limit is not None}
