"""Renames modules, symbols, fields, settings and metrics as tools/renames.yaml says: python tools/rename.py [--attributes]

Without an option: moves files, then edits definitions, imports, constructor keywords, recipes and quoted keys. With
`--attributes`: asks mypy which attributes no longer exist, and renames those of the classes in the file until mypy finds
no more. Running either again changes nothing.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
MAP: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("renames.yaml").read_text())
SOURCE, TESTS = ROOT / "src" / "stipule", ROOT / "tests"
Edit = tuple[int, int, int, str]  # line from 1, first and last column, new text


def python_files() -> list[Path]:
    folders = (SOURCE, TESTS, ROOT / "benchmarks", ROOT / "docs")
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def text_files() -> list[Path]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        *pages,
        *sorted((ROOT / "recipes").rglob("*.*")),
        *sorted(SOURCE.rglob("*.yaml")),
        *sorted(SOURCE.rglob("*.js")),
    ]


# ---- files


def move_files() -> None:
    for folder, moves in ((SOURCE, MAP["modules"]), (TESTS, MAP["tests"])):
        for old, new in moves.items():
            before, after = folder / f"{old}.py", folder / f"{new}.py"
            if before.exists():
                after.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["git", "mv", str(before), str(after)], check=True, cwd=ROOT)


def module_patterns() -> list[tuple[re.Pattern[str], str]]:
    """Dotted names in code, and paths in comments and pages, the longest first."""
    patterns = []
    for old, new in sorted(MAP["modules"].items(), key=lambda pair: -len(pair[0].removesuffix("__init__"))):
        one, other = (name.removesuffix("/__init__").replace("/", ".") for name in (old, new))
        patterns.append((re.compile(rf"\bstipule\.{re.escape(one)}\b(?!\()"), f"stipule.{other}"))
        if "/" in old and not old.endswith("__init__"):
            patterns.append((re.compile(rf"(?<![\w/]){re.escape(old)}\.py\b"), f"{new}.py"))
        if one.count(".") and one.rpartition(".")[0] == other.rpartition(".")[0]:
            package, name, instead = (
                f"stipule.{one.rpartition('.')[0]}",
                one.rpartition(".")[2],
                other.rpartition(".")[2],
            )
            patterns.append((re.compile(rf"(from {re.escape(package)} import (?:\w+, )*){name}\b"), rf"\g<1>{instead}"))
    for old, new in MAP["tests"].items():
        one, other = old.replace("/", "."), new.replace("/", ".")
        patterns.append((re.compile(rf"\btests\.{re.escape(one)}\b"), f"tests.{other}"))
        patterns.append((re.compile(rf"\btests/{re.escape(old)}\.py"), f"tests/{new}.py"))
    return patterns


# ---- python


def apply(file: Path, edits: list[Edit]) -> int:
    lines = file.read_text().splitlines(keepends=True)
    for line, start, end, new in sorted(set(edits), reverse=True):
        row = lines[line - 1].encode()
        lines[line - 1] = (row[:start] + new.encode() + row[end:]).decode()
    if edits:
        file.write_text("".join(lines))
    return len(set(edits))


def module_of(file: Path) -> str:
    if not file.is_relative_to(SOURCE):
        return ""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def symbol_edits(file: Path, tree: ast.Module) -> Iterator[Edit]:
    """Functions, classes and constants by the module that they are imported from or defined in."""
    renamed: dict[str, str] = {}
    aliases: dict[str, Mapping[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stipule"):
            module = node.module.removeprefix("stipule").lstrip(".")
            for alias in node.names:
                new = MAP["symbols"].get(module, {}).get(alias.name)
                if new:
                    yield alias.lineno, alias.col_offset, alias.col_offset + len(alias.name), new
                    if alias.asname is None:
                        renamed[alias.name] = new
                inner = f"{module}.{alias.name}".lstrip(".")
                if inner in MAP["symbols"]:
                    aliases[alias.asname or alias.name] = MAP["symbols"][inner]
    own = MAP["symbols"].get(module_of(file), {})
    renamed |= own
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in renamed:
            yield node.lineno, node.col_offset, node.col_offset + len(node.id), renamed[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            new = aliases[node.value.id].get(node.attr)
            if new:
                assert node.end_col_offset is not None and node.end_lineno is not None
                yield node.end_lineno, node.end_col_offset - len(node.attr), node.end_col_offset, new
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in own:
            column = node.col_offset + len("def " if isinstance(node, ast.FunctionDef) else "class ")
            yield node.lineno, column, column + len(node.name), own[node.name]


def field_edits(tree: ast.Module) -> Iterator[Edit]:
    """Attributes where their class is defined, and keywords of constructors and of `replace`."""
    everywhere: dict[str, str] = {}
    for fields in MAP["fields"].values():
        everywhere |= fields
    everywhere.pop("reward", None)  # a grade keeps its `reward`, only a batch has `rewards`
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in MAP["fields"]:
            yield from class_edits(node, MAP["fields"][node.name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            fields = everywhere if node.func.id == "replace" else MAP["fields"].get(node.func.id, {})
            for keyword in node.keywords:
                if keyword.arg in fields:
                    yield keyword.lineno, keyword.col_offset, keyword.col_offset + len(keyword.arg), fields[keyword.arg]


def class_edits(node: ast.ClassDef, fields: Mapping[str, str]) -> Iterator[Edit]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id in fields:
            target = item.target
            yield target.lineno, target.col_offset, target.col_offset + len(target.id), fields[target.id]
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id in fields:
            target = item.targets[0]
            yield target.lineno, target.col_offset, target.col_offset + len(target.id), fields[target.id]
        if isinstance(item, ast.FunctionDef) and item.name in fields:
            column = item.col_offset + len("def ")
            yield item.lineno, column, column + len(item.name), fields[item.name]
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id in ("self", "cls"):
            if inner.attr in fields:
                assert inner.end_col_offset is not None and inner.end_lineno is not None
                yield inner.end_lineno, inner.end_col_offset - len(inner.attr), inner.end_col_offset, fields[inner.attr]


def settings() -> dict[str, dict[str, str]]:
    """Section -> old key -> new key."""
    return {
        section: {old: new for name in classes for old, new in MAP["fields"][name].items()}
        for section, classes in MAP["sections"].items()
    }


def dictionary_edits(tree: ast.Module) -> Iterator[Edit]:
    """Recipes written as dictionaries: {"sampler": {"length": 8}}."""
    sections = settings()
    leaf = {section.rpartition(".")[2]: keys for section, keys in sections.items()}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and key.value in leaf):
                continue
            inner = value.left if isinstance(value, ast.BinOp) else value
            for k in inner.keys if isinstance(inner, ast.Dict) else []:
                if isinstance(k, ast.Constant) and k.value in leaf[key.value]:
                    assert k.end_col_offset is not None
                    yield k.lineno, k.col_offset + 1, k.end_col_offset - 1, leaf[key.value][k.value]


def edit_python() -> None:
    for file in python_files():
        for find in (symbol_edits, None):
            tree = ast.parse(file.read_text())
            edits = list(symbol_edits(file, tree)) if find else [*field_edits(tree), *dictionary_edits(tree)]
            apply(file, edits)


# ---- text: dotted settings, values, metrics, modules


def text_patterns() -> list[tuple[re.Pattern[str], str]]:
    patterns = module_patterns()
    patterns += [
        (re.compile(r"\bcredit\.(?=[a-z])"), "advantage."),
        (re.compile(r"pruning\.spatial\.vary\b"), "pruning.spatial.schedule"),
    ]
    for section, keys in settings().items():
        for old, new in keys.items():
            patterns.append((re.compile(rf"\b{re.escape(section)}\.{old}\b(?!\()"), f"{section}.{new}"))
    for setting, values in MAP["values"].items():
        for old, new in values.items():
            patterns.append((re.compile(rf"\b{re.escape(setting)}=\"?{old}\b"), f"{setting}={new}"))
    patterns.append((re.compile(r"pruning\.spatial\.only=rewarded"), "pruning.spatial.only_correct=true"))
    for old, new in MAP["metrics"].items():
        patterns.append((re.compile(rf"(?<![\w/.]){re.escape(old)}\b(?!/|\.py)"), new))
    return patterns


def edit_text() -> None:
    patterns = text_patterns()
    for file in [*python_files(), *text_files()]:
        if file.suffix in (".png", ".safetensors"):
            continue
        text = before = file.read_text()
        for pattern, new in patterns:
            text = pattern.sub(new, text)
        if file.suffix == ".yaml" and file.parent.name != "launch":
            text = recipe_keys(text)
        if text != before:
            file.write_text(text)


def recipe_keys(text: str) -> str:
    """Keys of a YAML recipe, section by section; a section is a line at the margin and what is indented below it."""
    sections = settings()
    leaf = {section.rpartition(".")[2]: keys for section, keys in sections.items()}
    blocks = re.split(r"(?m)^(?=[a-z_]+:)", text)
    edited = []
    for block in blocks:
        block = re.sub(r"^credit:", "advantage:", block)
        name = block.partition(":")[0]
        keys = dict(leaf.get(name, {})) if name != "pruning" else {}
        for old, new in keys.items():
            block = re.sub(rf"(?m)(?<=[{{, ]){old}(?=: )", new, block)
        if name == "pruning":
            for old, new in {**leaf["spatial"], **leaf["temporal"]}.items():
                block = re.sub(rf"(?<=[{{, ]){old}(?=: )", new, block)
        for setting, values in MAP["values"].items():
            if setting.startswith(f"{name}."):
                key = setting.rpartition(".")[2]
                for old, new in values.items():
                    block = re.sub(rf"\b{key}: {old}\b", f"{key}: {new}", block)
        edited.append(block)
    return "".join(edited)


# ---- attributes, as mypy finds them missing


def edit_attributes() -> None:
    """Renames what mypy reports as missing, again and again: a renamed attribute lets it see the next one."""
    for _ in range(12):
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--show-column-numbers", "--show-error-end", "--no-error-summary", "--no-pretty",
             "--check-untyped-defs", "--allow-untyped-defs", "--allow-incomplete-defs", "--explicit-package-bases", "src", "benchmarks", "tests"],
            cwd=ROOT, capture_output=True, text=True, env={"MYPYPATH": "src", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        edits: dict[Path, list[Edit]] = {}
        for line in done.stdout.splitlines():
            missing = re.match(
                r'(.+?):(\d+):(\d+):(\d+):(\d+): error: .*?"(\w+)(?:\[.*?\])?"(?: of ".*")? has no attribute "(\w+)"',
                line,
            )
            if not missing:
                continue
            file, _, _, end_line, end_column, name, attribute = missing.groups()
            new = MAP["fields"].get(name, {}).get(attribute)
            if new:
                end = int(end_column)
                edits.setdefault(ROOT / file, []).append((int(end_line), end - len(attribute), end, new))
        count = 0
        for path, found in edits.items():
            rows = path.read_text().splitlines()
            sure = [
                e
                for e in found
                if rows[e[0] - 1].encode()[e[1] : e[2]].decode() in {o for f in MAP["fields"].values() for o in f}
            ]
            count += apply(path, sure)
        print(f"{count} attributes renamed")
        if not count:
            rest = [line for line in done.stdout.splitlines() if "error:" in line]
            print("\n".join(rest))
            return


if __name__ == "__main__":
    if "--attributes" in sys.argv:
        edit_attributes()
    else:
        move_files()
        edit_text()
        edit_python()
