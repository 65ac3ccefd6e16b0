"""Parts of your own in a recipe: what is accepted, what is refused and how, entry points, and the round trip."""

import sys
from dataclasses import dataclass

import pytest

from stipule import cli
from stipule.config.recipe import dump_recipe, load_recipe, parse_recipe
from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.object_import import settings_of

CODE = """
from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from stipule.estimators.elbo import Elbo
from stipule.types import Loss


@dataclass(frozen=True, kw_only=True)
class Copy(Elbo):
    extra: float = 0.5


class Undecorated(Elbo):
    extra: float = 0.5


@dataclass
class Thawed:
    has_both_signs = True

    def __call__(self, rewards, num_generations):
        return rewards


@dataclass(frozen=True)
class Inner:
    size: int = 1


class Color(enum.Enum):
    RED = 1


@dataclass(frozen=True)
class Median:
    scale: float
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    names: dict[str, int] = field(default_factory=dict)
    has_both_signs: ClassVar[bool] = True

    def __post_init__(self):
        if self.scale <= 0:
            raise ValueError("scale must be above 0")

    def __call__(self, rewards, num_generations):
        return self.scale * (rewards - rewards.median())


@dataclass(frozen=True)
class NotPlain(Median):
    color: Color = Color.RED


@dataclass(frozen=True)
class Loss1:
    beta: ClassVar[float] = 0.0
    uses_old_policy: ClassVar[bool] = False

    def averages_tokens(self):
        return False

    def __call__(self):
        return 1


@dataclass(frozen=True)
class NeedsMore:
    has_both_signs: bool = True

    def __call__(self, rewards, num_generations, step, *, seed, power=1):
        return rewards


@dataclass(frozen=True)
class Empty:
    pass


@dataclass(frozen=True)
class Broken:
    scale: Unknown = 1
    has_both_signs: ClassVar[bool] = True

    def __call__(self, rewards, num_generations):
        return rewards


@dataclass(frozen=True)
class NoSchema(Median):
    tensor: torch.Tensor = None


@dataclass(frozen=True)
class StrictFirst:
    def priority(self, log_probs, token, confidence, position_noise):
        return confidence


@dataclass(frozen=True)
class AnyArguments:
    power: int = 2

    def priority(self, *arguments):
        return arguments[2] ** self.power


NUMBER = 3
"""
TASK = {"task": {"kind": "sudoku"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    yield tmp_path
    for name in [name for name in sys.modules if name.split("_")[0] in ("mine", "packaged")]:
        del sys.modules[name]


def test_a_class_of_a_file_takes_the_place_of_a_built_in_part():
    recipe = parse_recipe(TASK, ["estimator.kind=mine.py:Copy", "estimator.num_samples=4", "estimator.extra=2"])
    assert isinstance(recipe.estimator, Elbo) and (recipe.estimator.num_samples, recipe.estimator.extra) == (4, 2.0)
    by_module = parse_recipe(TASK, ["estimator.kind=mine:Copy"]).estimator
    assert by_module.extra == 0.5 and isinstance(by_module, Elbo)


def test_a_rule_may_be_written_as_a_name_or_with_settings():
    assert parse_recipe(TASK, ["sampler.remasking=mine.py:AnyArguments"]).sampler.remasking.power == 2
    rule = parse_recipe(TASK, ["sampler.remasking.kind=mine.py:AnyArguments", "sampler.remasking.power=5"])
    assert rule.sampler.remasking.power == 5
    assert parse_recipe(TASK, ["sampler.remasking.kind=random"]).sampler.remasking == "random"


def test_the_data_are_left_as_they_are():
    data = {**TASK, "sampler": {"remasking": "mine.py:StrictFirst"}}
    parse_recipe(data)
    assert data["sampler"] == {"remasking": "mine.py:StrictFirst"}


def test_a_recipe_with_own_parts_is_written_and_read_back(folder):
    recipe = parse_recipe(
        TASK
        | {
            "estimator": {"kind": "./mine.py:Copy", "num_samples": 5},
            "advantage": {"kind": "mine.py:Median", "scale": 2, "sizes": [3], "inner": {"size": 7}, "names": {"a": 1}},
            "sampler": {"remasking": {"kind": "mine.py:AnyArguments", "power": 3}},
        }
    )
    text = dump_recipe(recipe)
    (folder / "written.yaml").write_text(text)
    assert load_recipe("written.yaml") == recipe
    assert dump_recipe(load_recipe("written.yaml")) == text
    assert settings_of(recipe)["advantage"] == {
        "kind": "mine.py:Median",
        **{"scale": 2.0, "sizes": [3], "mode": "a", "inner": {"size": 7}, "names": {"a": 1}},
    }
    assert settings_of(recipe)["estimator"]["kind"] == "mine.py:Copy"  # not elbo, the kind that the class inherits


def test_a_class_without_a_name_cannot_be_written():
    @dataclass(frozen=True)
    class Local(Elbo):
        pass

    with pytest.raises(RecipeError, match="Local has no name under which it can be imported again; define it at the"):
        settings_of(Local())


BAD = [
    (["estimator.kind=absent.py:Copy"], "estimator is 'absent.py:Copy', which cannot be imported.*no file absent.py"),
    (["estimator.kind=mine.py:Copi"], "mine.py has no Copi; it has Copy; correct the name"),
    (["estimator.kind=elob"], "estimator.kind is 'elob'; allowed: elbo, .*, or a class of your own: path/to/file.py"),
    (["estimator.kind=mine.py:NUMBER"], "'mine.py:NUMBER', which is not a frozen dataclass; its fields are"),
    (["estimator.kind=mine.py:Undecorated"], "Undecorated', which is not a frozen dataclass"),
    (["advantage.kind=mine.py:Thawed"], "Thawed', which is not a frozen dataclass.*write @dataclass\\(frozen=True\\)"),
    (["sampler.remasking=mine.py:Empty"], "not follow the protocol UnmaskingRule in stipule.rollouts.unmasking: it has "
     "no method priority\\(log_probs, token, confidence, position_noise\\); add it"),
    (["pruning.temporal.kind=mine.py:Empty"], "it has no attribute planned_cutoff.* it has no method finish_window"),
    (["pruning.spatial.keep=mine.py:Empty"], "AnchorRule.*no method priority\\(token_ids, eligible, confidence, noise"),
    (["pruning.spatial.kind=mine.py:Empty"], "spatial pruning has none; set pruning.spatial.keep"),
    (["pruning.spatial.ratio=0.1", "pruning.spatial.schedule.kind=mine.py:Empty"], "no attribute uses_accuracy"),
    (["task.kind=mine.py:Empty"], "Task in stipule.tasks.problem: it has no attribute name; .* no method problems"),
    (["objective.kind=mine.py:Loss1"], "its averages_tokens is a method, but is read as an attribute; write @property"),
    (["objective.kind=mine.py:Loss1"], "its method __call__ lacks inputs; the arguments are \\(inputs\\)"),
    (["advantage.kind=mine.py:NeedsMore"], "its method __call__ needs step, seed, which it does not get; the arguments "
     "are \\(rewards, num_generations\\); give others a default"),
    (["advantage.kind=mine.py:Median", "advantage.scael=1"], "advantage.scael is not a setting of advantage; did you "
     "mean scale\\? allowed: scale, sizes, mode, inner, names"),
    (["advantage.kind=mine.py:Median", "advantage.scale=x"], "advantage.scale is 'x': input should be a valid number"),
    (["advantage.kind=mine.py:Median"], "field required"),
    (["advantage.kind=mine.py:Median", "advantage.scale=1", "advantage.inner.size=x"], "advantage.inner.size is 'x'"),
    (["advantage.kind=mine.py:Median", "advantage.scale=-1"], "scale must be above 0"),
    (["advantage.kind=mine.py:NotPlain", "advantage.scale=1"], "whose settings are not all plain values"),
    (["advantage.kind=mine.py:NoSchema"], "cannot be made from its settings: PydanticSchemaGenerationError: .*Tensor"),
    (["advantage.kind=mine.py:Broken"], "cannot be made from its settings.*Unknown"),
    (["sampler.remasking.power=2"], "sampler.remasking has settings and no kind; set sampler.remasking.kind"),
    (["sampler.remasking=3"], "^sampler.remasking is 3: input should be 'low_confidence' or 'random'$"),
    (["sampler.remasking=lowest"], "sampler.remasking is 'lowest'; allowed: low_confidence, random, or a class"),
    (["sampler.remasking.kind=random", "sampler.remasking.power=2"], "sampler.remasking is random, which has no setting"
     " power"),
    (["estimator=3"], "estimator is 3; it is a section with settings, e.g. estimator.kind=elbo; allowed kinds: elbo, "),
    (["estimator=mine.py:Copy"], "estimator is 'mine.py:Copy'; it is a section with settings, e.g. estimator.kind="),
    (["estimator.kind=mine.py:Copy", "estimator.num_samples=0"], "estimator.num_samples is 0; it is the number of"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_a_wrong_part_is_one_sentence_before_a_model_loads(overrides, message):
    with pytest.raises(RecipeError, match=f"(?s){message}") as caught:
        parse_recipe(TASK | {"model": {"path": "absent"}}, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["check", "train", "plan"])
def test_every_command_refuses_it_with_status_2(command, monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "argv", ["stipule", command, "quickstart", "estimator.kind=mine.py:Empty"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: estimator is 'mine.py:Empty', which does not follow the protocol Estimator")
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["mine.py"]


def install(folder, monkeypatch, package, *lines):
    """A package with entry points, as pip would install it."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / f"{package}.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)


def test_an_installed_package_makes_a_plain_name_available(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("site")
    lines = ["[stipule.estimators]", "copy = packaged_a:Copy", "[stipule.remasking]", "power = packaged_a:AnyArguments"]
    install(folder, monkeypatch, "packaged_a", *lines)
    recipe = parse_recipe(TASK, ["estimator.kind=copy", "estimator.extra=3", "sampler.remasking=power"])
    assert (recipe.estimator.extra, recipe.sampler.remasking.power) == (3.0, 2)
    # With the full name, the recipe of a run does not depend on the name that the package registers.
    assert settings_of(recipe)["estimator"]["kind"] == "packaged_a:Copy"
    assert parse_recipe(settings_of(recipe)) == recipe
    with pytest.raises(RecipeError, match="'copi'; allowed: elbo, .*autoregressive, copy, or a class of your own"):
        parse_recipe(TASK, ["estimator.kind=copi"])


def test_a_name_that_two_have_is_refused(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("site")
    both = ["[stipule.estimators]", "elbo = packaged_b:Copy"]
    install(folder, monkeypatch, "packaged_b", *both, "twice = packaged_b:Copy")
    install(folder, monkeypatch, "packaged_c", "[stipule.estimators]", "twice = packaged_c:Copy")
    with pytest.raises(
        RecipeError, match="'elbo', and stipule itself and packaged_b \\(packaged_b:Copy\\) have a part"
    ):
        parse_recipe(TASK, ["estimator.kind=elbo"])
    with pytest.raises(RecipeError, match="'twice', and packaged_[bc] .* and packaged_[bc] .*; write the class itself"):
        parse_recipe(TASK, ["estimator.kind=twice"])
    assert parse_recipe(TASK, ["estimator.kind=packaged_c:Copy"]).estimator.extra == 0.5
