"""Every logged key is explained, once, in the same words in the page and in the docs."""

import ast
import re
from pathlib import Path

from stipule.report.glossary import GLOSSARY, explain, table

ROOT = Path(__file__).parents[2]
GROUPS = "reward|response|policy|variance|seconds|calls|audit|held_out|memory|approximate"


def test_the_docs_hold_the_glossary():
    assert table() in (ROOT / "docs" / "metrics.md").read_text()


def test_every_key_that_the_code_writes_is_explained():
    found = set()
    for file in (ROOT / "src" / "stipule" / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if re.fullmatch(rf"({GROUPS})/[a-z_]+", node.value) else set()
    for file in (ROOT / "src" / "stipule" / "objectives").rglob("*.py"):
        found |= {key for key, _ in re.findall(rf'"(({GROUPS})/[a-z_]+)"', file.read_text())}
    assert len(found) > 20
    assert not {key for key in found if explain(key) is None}


def test_families_cover_their_members_and_nothing_else():
    assert explain("time/rollout").key == "seconds/{rollout,score,update,reward}"
    assert explain("time/total").key == "{calls,seconds}/total"
    assert explain("reward/format").key == "reward/<part>"
    assert explain("reward/mean").key == "reward/mean"
    assert explain("reward/a/b") is None
    assert explain("nothing/known") is None


def test_keys_are_explained_once():
    assert len({entry.key for entry in GLOSSARY}) == len(GLOSSARY)
