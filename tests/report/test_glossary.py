"""Every logged key is explained once, with the same text on the page and in the docs."""

import ast
import re
from pathlib import Path

from stipule.report.glossary import GLOSSARY, explain, table

ROOT = Path(__file__).parents[2]
GROUPS = "reward|response|policy|variance|time|nfe|unpruned|eval|memory|approximate"


def test_the_docs_contain_the_glossary():
    assert table() in (ROOT / "docs" / "metrics.md").read_text()


def test_every_key_that_the_code_logs_is_explained():
    keys = set()
    for file in (ROOT / "src" / "stipule" / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                keys |= {node.value} if re.fullmatch(rf"({GROUPS})/[a-z_]+", node.value) else set()
    for file in (ROOT / "src" / "stipule" / "objectives").rglob("*.py"):
        keys |= {key for key, _ in re.findall(rf'"(({GROUPS})/[a-z_]+)"', file.read_text())}
    assert len(keys) > 20
    assert not {key for key in keys if explain(key) is None}


def test_a_family_covers_its_members_and_nothing_else():
    assert explain("time/rollout").key == "time/{rollout,logps,update,reward}"
    assert explain("time/total").key == "{nfe,nfe_tokens,time}/total"
    assert explain("reward/format").key == "reward/<part>"
    assert explain("reward/mean").key == "reward/mean"
    assert explain("reward/a/b") is None
    assert explain("nothing/known") is None


def test_no_key_is_explained_twice():
    assert len({entry.key for entry in GLOSSARY}) == len(GLOSSARY)
