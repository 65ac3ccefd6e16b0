"""Retired names stay retired: no code, recipe or page may use a name that this list replaced (docs/names.md)."""

import io
import re
import subprocess
import tokenize
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The change log and the decisions record how a name changed, so they may hold the old one.
HISTORY = {"CHANGELOG.md", "docs/decisions.md", "tests/test_names.py"}


def listed(text):
    return text.split()


# Identifiers that no Python file may hold.
IDENTIFIERS = listed("""
    Responses Views hidden_prompt hidden_log_probabilities target_log_probabilities bernoulli_hidden
    exact_hidden circular_hidden views_of Graded join_graded BlockDenoiser Denoiser early_end redraw
    within_reach sure_rows quota quotas Pace Turn Recall share_of anchors_for even_masks published_quotas
    Confident Temporal Spatial at_least choose_fixed fixed_from_text Surprise profiled_counts
    tiled_log_probability draw_variance LOGITS_AT_ONCE credit Credit AnyCredit LeaveOneOut Exponential
    SequenceRatio PolicyGradient clip_high explore learn Ranks gather_ranks leads portions Clock read_progress
    Guard forget_after score_rows rollout_rows matrix_rate vector_rate max_norm ModelChoice Holding remembers
    check_remembers goes_on idle_call SEVEN BY_PLACE conformance box_spans last_box habit Turns worded wording
    stand_in standin rehearse rehearsal work_of may_take_fewer by_place looked_at views view_of hidden
    revealed forwards busy scored compat free audited_store examine
    attend pick reach origin portions spread levels rehearse surprise
    found place asked share shares worth held thing told
""")

# Class -> fields that it had under names of our own.
FIELDS = {
    "types.Prompts": "tokens mask",
    "types.Rollouts": "prompt tokens free live revealed forwards scored",
    "types.MaskSamples": "hidden weight hidden_prompt counted busy",
    "rollouts.sampler.Noise": "order",
    "rollouts.sampler.SemiAutoregressiveSampler": "length block order redraw early_end parallel",
    "rollouts.pruning.Anchors": "tokens fixed",
    "rollouts.pruning.SpatialPruning": "vary only",
    "rollouts.pruning.ConfidenceCutoff": "at_least",
    "rollouts.anchor_ratio_schedule.Annealed": "to",
    "estimators.elbo.Elbo": "samples levels profile",
    "estimators.spg.Spg": "samples block beta prompt_mask compat",
    "estimators.one_step.OneStep": "prompt_mask",
    "estimators.coupled.Coupled": "compat",
    "objectives.advantage.GroupRelative": "scale",
    "objectives.advantage.Wd1Weights": "positive",
    "objectives.grpo.Grpo": "clip clip_high kl divergence average",
    "objectives.gspo.Gspo": "clip clip_high kl divergence",
    "objectives.reinforce.Reinforce": "kl average",
    "models.loading.ModelConfig": "shift checkpointing",
    "training.settings.Optimizer": "max_norm warmup",
    "training.settings.Training": "problems group updates rollout_rows score_rows keep audit_every",
    "training.settings.Recipe": "credit",
    "training.alarms.Alarms": "clipped gradient spread",
    "training.checkpoint.TrainState": "surprise solved",
    "training.pretrain.Pretraining": "length batch matrix_rate vector_rate warmup",
    "tasks.sudoku.Sudoku": "habit",
    "tasks.countdown.Countdown": "habit",
}

# Section of a recipe -> settings that it had, and `setting=value` pairs; refused in every file that users read or run.
SETTINGS = {
    "sampler": "length block order redraw early_end parallel",
    "pruning.spatial": "vary only",
    "pruning.temporal": "at_least",
    "estimator": "samples levels profile compat block prompt_mask",
    "credit": "kind",
    "objective": "clip clip_high kl divergence average",
    "optimizer": "max_norm warmup",
    "training": "problems group updates rollout_rows score_rows keep audit_every",
    "model": "shift checkpointing",
    "task": "habit",
    "alarms": "clipped gradient spread",
}
VALUES = listed("""
    timestep_sampling=systematic timestep_sampling=jittered subsets=circular kind=leave_one_out
    kind=exponential kind=sequence_ratio kind=policy_gradient source=last_visit when=all_wrong
""")

METRICS = listed("""
    reward/spread policy/clipped policy/skipped policy/gradient_norm variance/draw held_out/solved
    held_out/total calls/rollout calls/score calls/update calls/total seconds/rollout seconds/score
    seconds/update seconds/reward seconds/total audit/reward audit/solved audit/calls
    approximate/solved approximate/calls
""")

# Modules below src/stipule that moved.
MODULES = listed("""
    streams files recipe protocol quickstart export variance evidence estimators/levels estimators/profile
    estimators/score estimators/spread estimators/tiles estimators/views models/ids models/memory
    models/merging models/conformance objectives/credit objectives/policy_gradient objectives/sequence
    objectives/aggregate objectives/divergence objectives/ratio plan/memory plan/rehearsal plan/standin
    plan/work rollouts/commits rollouts/denoise rollouts/fixing rollouts/gamma rollouts/grading rollouts/pace
    rollouts/pick rollouts/recall tasks/boxes tasks/rows tasks/wording tasks/quantities training/anchoring
    training/clock training/explore training/folder training/guard training/learn training/origin
    training/ranks cli/interface cli/look cli/pages cli/run
""")


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    if not names:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names if name not in HISTORY and (ROOT / name).exists()]


def texts():
    """Every file that a user reads or runs: code, recipes, pages, scripts of the report page."""
    suffixes = {".py", ".yaml", ".md", ".js", ".html", ".css", ".toml", ""}
    return [path for path in tracked() if path.suffix in suffixes]


def found_in(pattern, paths):
    compiled = re.compile(pattern)
    for path in paths:
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            if compiled.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"


def test_no_identifier_is_a_retired_name():
    retired = set(IDENTIFIERS)
    uses = []
    for path in tracked("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME and token.string in retired:
                uses.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}")
    assert not uses, "\n".join(uses)


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_has_its_retired_name(name):
    module, _, member = name.rpartition(".")
    current = {field.name for field in fields(getattr(import_module(f"stipule.{module}"), member))}
    assert current and not current & set(FIELDS[name].split())


def test_no_file_sets_a_retired_setting():
    settings = [rf"{re.escape(section)}\.(?:{'|'.join(old.split())})" for section, old in SETTINGS.items()]
    pattern = rf"(?<![\w./])(?:{'|'.join(settings)})(?![\w(/.])|\b(?:{'|'.join(VALUES)})\b"
    uses = list(found_in(pattern, texts()))
    assert not uses, "\n".join(uses)


def test_no_recipe_has_a_retired_key():
    retired = {setting for old in SETTINGS.values() for setting in old.split()} - {"gradient", "kind", "block", "only"}
    # Beside the sections, `profile` is a key of today; inside of one it is the retired setting of an estimator.
    everywhere = "|".join(sorted(retired - {"profile"}))
    uses = list(found_in(rf"^(?:\s*(?:{everywhere})|\s+profile):", tracked("recipes/*.yaml")))
    assert not uses, "\n".join(uses)


def test_no_file_names_a_retired_metric():
    pattern = rf"(?<![\w/])(?:{'|'.join(map(re.escape, METRICS))})(?!\w)"
    uses = list(found_in(pattern, texts()))
    assert not uses, "\n".join(uses)


def test_no_module_or_path_has_its_retired_name():
    source = ROOT / "src" / "stipule"
    assert not [
        name for name in MODULES if (source / f"{name}.py").exists() or (source / name / "__init__.py").exists()
    ]
    paths = "|".join(re.escape(name) for name in MODULES if "/" in name)
    dotted = "|".join(name.replace("/", r"\.") for name in MODULES)
    pattern = rf"(?<![\w/])(?:stipule/)?(?:{paths})\.py\b|\bstipule\.(?:{dotted})\b(?!\.yaml)"
    uses = list(found_in(pattern, texts()))
    assert not uses, "\n".join(uses)
