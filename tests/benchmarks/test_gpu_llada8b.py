"""The benchmark for a GPU, at a size that a CPU can do."""

import json

from benchmarks.gpu_llada8b import main


def test_a_step_of_every_kind_is_timed_and_its_calls_are_the_planned_ones(tmp_path, capsys):
    # Random weights end a text now and then: without early ends the calls are exactly the plan's.
    settings = ["sampler.stop_at_eos=false", "estimator.num_samples=2"]
    methods = ["grpo_elbo_stp", "spg_stp"]
    main(["--size", "tiny", "--methods", *methods, "--set", *settings, "--json", str(tmp_path / "found.json")])
    assert "tokens/s" in capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["calls"]["rollout"] == row["planned_calls"]["rollout"] == 2 * 3 * 30  # (64 - 3 - 3) / 2 + 1
        assert row["calls"]["update"] <= row["planned_calls"]["update"]
        assert 0 < row["fraction_of_matmul"]["rollout"] < 1
