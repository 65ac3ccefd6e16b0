"""The report page of a run, as a file."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from stipule.errors import CheckpointError, RecipeError
from stipule.evaluation.statistics import wilson
from stipule.report.page.build import json_for_html, page_data, render_page, write_page
from stipule.report.page.run_reader import read_run
from stipule.report.page.samples import select_groups, select_rollouts
from stipule.report.page.savings import savings
from stipule.report.page.series import downsample, moving_average
from stipule.report.page.summary import verdict
from stipule.training.checkpoint import TrainState
from stipule.training.run_folder import STATE_FILE
from tests.report.made_runs import HOSTILE, RECIPE, write_run

SOURCE = Path(__file__).parents[2] / "src" / "stipule"


def run_with(path, lines, **options):
    """A run whose metrics are these lines."""
    write_run(path, **options)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(path, path.name)


def rewards(values):
    return [{"step": i + 1, "reward/mean": v, "reward/accuracy": v} for i, v in enumerate(values)]


def test_hostile_text_stays_text_and_is_unchanged(tmp_path):
    data = page_data([write_run(tmp_path / "run", hostile=True)])
    text = render_page(data)
    assert "window.owned" in text  # present, but as text
    assert "<script>window" not in text and "onerror='window" not in text.replace("\\u003c", "<").split("<img")[0]
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(block) == data
    assert any(HOSTILE in text for text in data["rollouts"]["token_texts"])
    assert not set("<>&\u2028\u2029") & set(json_for_html(data))


def test_a_run_name_is_escaped_too(tmp_path):
    text = render_page(page_data([write_run(tmp_path / "<b>bold")]))
    assert "<b>bold" not in text and "&lt;b&gt;bold" in text


def test_incomplete_lines_are_left_out_and_counted(tmp_path):
    path = write_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"no": "step"}\n{"step": 41, "reward/me')
    with next((path / "rollouts").glob("*.jsonl")).open("a") as file:
        file.write('{"key": "x", "completion_ids": [1], "unmask_step": [0], "confidence": []}\n{"key"')
    data = page_data([path])
    assert data["runs"][0]["steps"] == 40
    assert any("3 incomplete" in note for note in data["runs"][0]["notes"])
    assert any("2 incomplete" in note for note in data["rollouts"]["notes"])


def test_a_run_without_a_step_is_shown_with_notes(tmp_path):
    path = write_run(tmp_path / "run", steps=4)
    (path / "metrics.jsonl").unlink()
    data = page_data([path])
    assert "Too early" in data["runs"][0]["verdict"]["message"]
    assert any("No step" in note for note in data["runs"][0]["notes"])
    assert any("No responses" in note for note in data["runs"][0]["notes"])
    assert render_page(data)


def test_a_run_with_missing_sections_and_keys_is_shown_without_them(tmp_path):
    recipe = {key: value for key, value in RECIPE.items() if key not in ("alarms", "tracking", "pruning")}
    path = write_run(tmp_path / "run", recipe=recipe)
    (path / "environment.json").write_text('{"format": 2, "stipule": "0.0.1"}')
    for file in (path / "rollouts").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        reduced = [
            {k: v for k, v in row.items() if k not in ("token_texts", "completion_length", "parts")} for row in rows
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in reduced))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["policy/ratio_max"] = 50.0
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = page_data([path])
    run, group = data["runs"][0], data["rollouts"]["groups"][0]
    assert run["version"] == "0.0.1" and run["savings"] is None
    assert [alarm["name"] for alarm in run["alarms"]] == ["ratio"]  # by the default limits
    assert [data["rollouts"]["token_texts"][t] for t in group["responses"][0]["t"]] == list(first_response(path))
    assert render_page(data)


def first_response(path):
    file = min((path / "rollouts").iterdir())
    return json.loads(file.read_text().splitlines()[0])["response"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no run folder"):
        page_data([tmp_path])


def test_a_run_of_an_earlier_format_is_refused(tmp_path):
    path = write_run(tmp_path / "run", steps=4)
    (path / "environment.json").write_text('{"stipule": "0.0.1"}')
    with pytest.raises(CheckpointError, match="earlier version"):
        write_page([path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_report_is_replaced_and_anything_else_is_not(tmp_path):
    path = write_run(tmp_path / "run", steps=10)
    write_page([path], tmp_path / "page.html")
    write_page([path], tmp_path / "page.html")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(RecipeError, match="is no report"):
        write_page([path], tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("runs", [1, 3])
def test_thousands_of_steps_stay_below_two_megabytes_and_the_page_says_so(tmp_path, runs):
    paths = [write_run(tmp_path / f"run-{i}", steps=3000, every=25, length=256, seed=i) for i in range(runs)]
    data = page_data(paths)
    assert len(render_page(data).encode()) < 2_000_000
    assert any("3000 steps are drawn as" in note for note in data["runs"][0]["notes"])
    assert any("of the 120 saved steps" in note for note in data["rollouts"]["notes"])
    steps = [group["step"] for group in data["rollouts"]["groups"] if group["run"] == 0]
    assert (min(steps), max(steps)) == (25, 3000)


def test_a_value_that_is_not_finite_leaves_a_gap(tmp_path):
    run = run_with(tmp_path / "run", [{"step": 1, "a": 1.0}, {"step": 2, "a": float("nan")}, {"step": 3, "a": 3.0}])
    assert downsample(run.metrics, 10) == {"x": [1, 2, 3], "y": {"a": [1.0, None, 3.0]}}
    assert render_page(page_data([tmp_path / "run"]))


def test_downsampling_averages_and_keeps_the_maximum_of_a_maximum():
    lines = [{"step": s, "a": float(s), "b_max": float(s)} for s in (1, 2, 3, 4)]
    assert downsample(lines, 2) == {"x": [2, 4], "y": {"a": [1.5, 3.5], "b_max": [2.0, 4.0]}}


def test_a_fraction_has_wilsons_interval_over_its_window():
    lines = [{"step": s, "reward/accuracy": 0.25} for s in range(1, 6)]
    curve = moving_average(lines, "reward/accuracy", 8, points=5)
    low, high = wilson(10, 40)  # the window of the middle step has all five: 10 of 40
    assert curve["x"][2] == 3
    assert (curve["mean"][2], curve["low"][2], curve["high"][2]) == (0.25, float(f"{low:.4g}"), float(f"{high:.4g}"))


def test_savings_follow_from_the_schedule(tmp_path):
    # L = N = 16, 2 anchors: 14 forward passes; the last 2 masks in one forward pass: 13. 8 rows, 40 steps.
    assert savings(read_run(write_run(tmp_path / "run"), "run")) == {
        "unpruned": 16 * 8 * 40,
        "spatial": 2 * 8 * 40,
        "temporal": 1 * 8 * 40,
        "confidence": 0,
        "eos": 0,
        "hints": 0,
        "spent": 13 * 8 * 40,
        "pregeneration": 0,
    }


@pytest.mark.parametrize(
    ("temporal", "when", "scheduled", "nfe", "saved"),
    [
        # 16 forward passes, 2 anchors. A row saves 1 by its early end and the rest as the recipe prunes.
        ({"cutoff": 0.125, "scope": "global"}, "always", 13, 12, {"temporal": 1, "eos": 1}),
        ({"kind": "confident", "cutoff": 0.125, "threshold": 0.9}, "always", 14, 11, {"eos": 1, "confidence": 2}),
        ({"cutoff": 0.125, "scope": "global"}, "group_failed", 13, 20, {"temporal": 1, "eos": 1, "hints": 8}),
        ({"cutoff": 0.0, "scope": "global"}, "always", 14, 13, {"eos": 1}),
    ],
)
def test_what_early_ends_confidence_and_hints_change_is_told_apart(tmp_path, temporal, when, scheduled, nfe, saved):
    spatial = {**RECIPE["pruning"]["spatial"], "when": when}
    path = write_run(tmp_path / "run", recipe={**RECIPE, "pruning": {"spatial": spatial, "temporal": temporal}})
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    changed = {"nfe/rollout": 8 * nfe, "response/nfe_saved_by_eos": 1.0, "response/nfe_with_cutoff": float(scheduled)}
    lines = [{**line, **changed} for line in lines]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = savings(read_run(path, "run"))
    expected = {"spatial": 2, "temporal": 0, "confidence": 0, "eos": 0, "hints": 0, "spent": nfe, **saved}
    assert {name: result[name] for name in expected} == {name: count * 8 * 40 for name, count in expected.items()}
    savings_sum = sum(expected[name] for name in ("spatial", "temporal", "confidence", "eos"))
    assert expected["spent"] + savings_sum - expected["hints"] == 16


def test_blocks_begin_where_those_of_the_model_do_and_their_cut_is_known(tmp_path):
    """The prompt of 6 tokens leaves 2 for the first block of 4. The cut of each block unmasks its last 2 tokens."""
    path = write_run(tmp_path / "run", steps=5)
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    recipe["sampler"] = {"gen_length": 8, "steps": 8, "block_length": 4, "block_schedule": "separate"}
    recipe["pruning"]["temporal"] = {"cutoff": 0.5, "scope": "block"}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    unmask_step = [0, 0, 1, 2, 3, 3, 4, 4]
    for file in (path / "rollouts").iterdir():
        line = json.loads(file.read_text().splitlines()[0])
        tokens = {name: line[name][:8] for name in ("completion_ids", "token_texts", "confidence")}
        line |= {**tokens, "prompt_length": 6, "completion_length": 8, "unmask_step": unmask_step}
        file.write_text(json.dumps(line) + "\n")
    response = page_data([path])["rollouts"]["groups"][0]["responses"][0]
    assert response["b"] == [2, 6]
    assert response["cut"] == [0, 3, 4]
    assert "first token of a block" in render_page(page_data([path]))


@pytest.mark.parametrize(
    ("values", "tone", "message"),
    [
        ([0.1, 0.12, 0.1] * 4 + [0.8, 0.82, 0.8] * 4, "good", "levelled off"),
        ([i / 24 for i in range(24)], "good", "still rising"),
        ([0.8, 0.82, 0.8] * 4 + [0.1, 0.12, 0.1] * 4, "bad", "It got worse"),
        ([0.5, 0.6, 0.4] * 8, "flat", "No clear change"),
        ([0.1, 0.9], "early", "Too early to say: 2 steps"),
    ],
)
def test_the_verdict_says_whether_the_run_learns(tmp_path, values, tone, message):
    result = verdict(run_with(tmp_path / "run", rewards(values)), [], None)
    assert result["tone"] == tone and message in result["message"]


def test_alarms_come_first_among_the_checks(tmp_path):
    event = {"name": "ratio", "key": "policy/ratio_max", "value": 50.0, "limit": 10.0, "message": "it jumped; lower it"}
    lines = [{**line, **({"alarms": [event]} if line["step"] in (7, 8) else {})} for line in rewards([0.5] * 10)]
    run_with(tmp_path / "run", lines)
    data = page_data([tmp_path / "run"])["runs"][0]
    assert data["verdict"]["checks"][0] == "Alarm at step 7, 2 times: it jumped; lower it."


def test_the_forward_passes_of_the_one_step_cut_are_marked(tmp_path):
    run = read_run(write_run(tmp_path / "run"), "run")
    response = select_rollouts([run], 100, 1_000_000)["groups"][0]["responses"][0]
    assert response["cut"] == [12]  # the 13th and last
    assert sum(v == 12 for v in response["v"]) == 2 and sum(v == -1 for v in response["v"]) == 2


def test_the_cost_of_the_anchors_is_read_from_the_newest_checkpoint(tmp_path):
    path = write_run(tmp_path / "run", steps=4)
    for step, calls in ((2, 100), (4, 200)):
        checkpoint = path / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        state = TrainState(step=step, pregeneration_calls=calls)
        (checkpoint / STATE_FILE).write_text(json.dumps(asdict(state)))
    assert read_run(path, "run").pregeneration_calls == 200


def test_the_page_is_made_without_torch(tmp_path):
    path = write_run(tmp_path / "run", steps=5)
    code = (
        "import sys; from pathlib import Path; from stipule.report.page.build import write_page; "
        "import stipule.report.page.serve; "
        f"write_page([Path({str(path)!r})], Path({str(tmp_path / 'page.html')!r})); "
        "print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_file_of_the_report_imports_torch():
    for file in (SOURCE / "report").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (torch|transformers)", file.read_text(), re.MULTILINE), file


def test_text_that_grows_when_it_is_escaped_does_not_break_the_limit(tmp_path):
    path = write_run(tmp_path / "run", steps=100, every=5, length=16)
    for file in (path / "rollouts").iterdir():
        rows = [json.loads(line) | {"response": "<&>" * 2500} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert 1_000 < write_page([path], tmp_path / "page.html") < 2_000_000


def test_groups_whose_rewards_differ_are_preferred():
    groups = [{"key": key, "responses": [{"r": r} for r in rewards]} for key, *rewards in ("a00", "b11", "c01", "d00")]
    assert [group["key"] for group in select_groups(groups, 2)] == ["a", "c"]
    assert [group["key"] for group in select_groups(groups, 9)] == ["a", "b", "c", "d"]
