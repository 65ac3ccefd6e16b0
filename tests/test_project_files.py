"""Workflows, citation and packaging agree with each other: what no run on this machine would notice."""

import re
import tomllib
from pathlib import Path

import yaml

import stipule

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_every_yaml_file_of_the_project_can_be_read():
    files = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) >= 6
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict), file


def test_ci_tests_the_python_versions_that_the_package_claims():
    claimed = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert read(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_workflows_and_hooks_call_commands_that_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    workflows = "".join(file.read_text() for file in ROOT.glob(".github/workflows/*.yml"))
    called = set(re.findall(r"run: make (\S+)", workflows))
    assert called == {"lint", "test", "docs"} and called <= targets
    hooks = [hook["entry"] for repository in read(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2]
    assert all(f".venv/bin/{entry}" in lint for entry in hooks) and len(hooks) == 3


def test_the_citation_names_this_version_and_the_paper():
    citation = read("CITATION.cff")
    assert citation["version"] == stipule.__version__ and citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert "2602.08905" in paper["url"] and paper["url"] in (ROOT / "README.md").read_text()
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_every_installed_extra_of_dev_exists():
    extras = PROJECT["optional-dependencies"]
    (named,) = re.findall(r"stipule\[(.+)\]", " ".join(extras["dev"]))
    assert set(named.split(",")) <= set(extras)
