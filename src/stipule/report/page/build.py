"""The page itself: everything known of the runs as JSON inside one HTML file."""

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
from stipule.report.page.samples import samples
from stipule.report.page.savings import savings
from stipule.report.page.series import box, number, smoothed, thinned
from stipule.report.page.summary import verdict
from stipule.training.alarms import Alarms

SCRIPTS = ("elements.js", "charts.js", "curves.js", "viewer.js", "table.js", "page.js")
LARGEST = 2_000_000  # bytes of a page
SAMPLES_BYTES = 1_300_000  # of them
SAMPLES = 600  # responses
NUMBERS = 60_000  # points of all curves together
MARK = "<!-- a stipule report -->"


def write_page(paths: Sequence[Path], out: Path) -> int:
    """Writes the page of these runs; returns its bytes. Raises RecipeError over a file that is no such page."""
    if out.exists() and MARK not in (out.read_text(encoding="utf-8", errors="replace")[:200] if out.is_file() else ""):
        raise RecipeError(f"{out} already exists and is no report; it was left as it is; give another place with --out")
    budget = SAMPLES_BYTES
    while len(text := page(gather(paths, budget=budget)).encode("utf-8", "replace")) > LARGEST and budget > 1000:
        budget //= 2  # signs that HTML must not see are longer in the page than in the estimate
    replace_file(out, lambda place: place.write_bytes(text))
    return len(text)


def gather(paths: Sequence[Path], live: bool = False, budget: int = SAMPLES_BYTES) -> dict[str, Any]:
    """All that the page shows, as plain data. `live`: the page asks its server for news."""
    runs = read_runs(paths)
    widest = max((len(line) for run in runs for line in run.lines[-1:]), default=1)
    points = min(500, max(40, NUMBERS // (widest * len(runs))))
    shown = [_run(run, points) for run in runs]
    keys = dict.fromkeys(key for run in shown for key in run["curves"]["y"])
    return {
        "version": __version__,
        "live": live,
        "runs": shown,
        "glossary": {k: [entry.meaning, entry.look] for k in [*keys, "alarms"] if (entry := explain(k))},
        "samples": samples(runs, SAMPLES, budget),
    }


def page(data: Mapping[str, Any]) -> str:
    """The HTML. Its policy lets nothing run or load but what is in it, so a response is text whatever it holds."""
    here = files("stipule.report.page")
    script = "\n".join((here / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (here / "page.css").read_text(encoding="utf-8")
    connect = "'self'" if data["live"] else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src {connect}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    template = Environment(autoescape=True).from_string((here / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        mark=Markup(MARK),
        version=data["version"],
        title=" · ".join(run["name"] for run in data["runs"]),
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded(data)),
    )


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser takes for anything else, whatever the responses hold."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _run(run: Run, points: int) -> dict[str, Any]:
    alarms, limits = _alarms(run)
    saved = savings(run)
    training = run.section("training")
    notes = list(run.notes)
    if len(run.lines) > points:
        notes.append(f"To keep the page small, {len(run.lines)} steps are drawn as {points} means of neighbours.")
    curves = thinned(run.lines, points)
    bands = {"reward/mean": smoothed(run.lines, "reward/mean", None)}
    bands["reward/accuracy"] = smoothed(run.lines, "reward/accuracy", run.rows)
    variance = next((k for k in ("variance/estimate", "variance/per_sample") if k in curves["y"]), "variance/estimate")
    return {
        "name": run.name,
        "path": str(run.path),
        "steps": run.lines[-1]["step"] if run.lines else 0,
        "planned": number(training.get("steps")),
        "made_by": str(run.environment.get("stipule", "an unknown version")),
        "facts": _facts(run),
        "recipe": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True) if run.recipe else "",
        "notes": notes,
        "curves": curves,
        "bands": {key: band for key, band in bands.items() if band},
        "box": box(run.lines, variance),
        "box_key": variance,
        "alarms": alarms,
        "limits": limits,
        "savings": saved,
        "columns": 4 if run.section("task").get("kind") == "sudoku" else 0,
        "verdict": verdict(run, alarms, saved),
    }


def _how(section: Any) -> str:
    """The kind of a pruning that is not the paper's constant."""
    kind = section.get("kind") if isinstance(section, dict) else None
    return f" {kind.replace('_', ' ')}" if isinstance(kind, str) and kind != "constant" else ""


def _facts(run: Run) -> list[list[str]]:
    task, model, pruning = run.section("task"), run.section("model"), run.section("pruning")
    spatial, temporal = pruning.get("spatial") or {}, pruning.get("temporal") or {}
    parts = [run.section(name).get("kind") for name in ("estimator", "advantage", "objective")]
    found = {
        "task": task.get("kind"),
        "model": model.get("path"),
        "method": " · ".join(str(part) for part in parts if part) or None,
        "pruning": f"gamma {spatial['ratio']:g}{_how(spatial.get('schedule'))}, "
        f"cut-off {temporal['cutoff']:g}{_how(temporal)}"
        if isinstance(spatial.get("ratio"), int | float) and isinstance(temporal.get("cutoff"), int | float)
        else None,
        "seed": run.section("training").get("seed"),
        "machine": run.environment.get("platform"),
        "torch": run.environment.get("torch"),
    }
    return [[name, str(value)] for name, value in found.items() if value is not None]


def _alarms(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The run's alarms, once each, and its limits. A run from before there were alarms is judged by the defaults."""
    known = {field.name for field in fields(Alarms)}
    try:
        alarms = Alarms(**{k: v for k, v in run.section("alarms").items() if k in known})
    except (RecipeError, TypeError):
        alarms = Alarms()
    found: dict[str, dict[str, Any]] = {}
    for place, line in enumerate(run.lines):
        kept = "alarms" in run.recipe
        events = line.get("alarms") if kept else alarms.raised(run.lines[: place + 1])
        for event in events if isinstance(events, list) else []:
            if not isinstance(event, dict):
                continue
            name, words = str(event.get("name")), str(event.get("message"))
            seen = found.setdefault(name, {"name": name, "words": words, "first": line["step"], "count": 0})
            seen["count"] += 1
    limits = {
        "policy/ratio_max": alarms.ratio,
        "policy/clip_ratio": alarms.clip_ratio,
        "policy/kl": alarms.kl,
        "response/confidence": alarms.confidence,
        "response/repetition": alarms.repetition,
        "response/copies": alarms.copies,
    }
    return list(found.values()), {key: limit for key, limit in limits.items() if limit is not None}
