"""The layout: which package imports which, how long files and functions are, and that nothing runs what it reads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "stipule"
FILES = sorted(SOURCE.rglob("*.py"))
# What each package may import of ours, besides itself. Every package has its line, and a package names only lines above
# its own, so no two packages can import each other. A file of ours outside any package counts as a package of one file.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "atomic_io": {"errors"},
    "file_lock": {"errors", "atomic_io"},
    "checksums": {"errors"},
    "rng": set(),
    "object_import": {"errors"},
    "tasks": {"errors", "object_import"},
    "models": {"errors", "types", "rng", "checksums"},
    "rollouts": {"errors", "object_import", "types", "rng", "atomic_io", "models", "tasks"},
    "estimators": {"errors", "types", "models"},
    "objectives": {"errors", "types"},
    "evaluation": {"errors", "types", "rng", "atomic_io", "file_lock", "models", "tasks", "rollouts", "estimators"},
    "training": {
        *("errors", "object_import", "types", "rng", "atomic_io", "file_lock", "checksums", "__version__"),
        *("models", "tasks", "rollouts", "estimators", "objectives", "evaluation"),
    },
    "plan": {"errors", "types", "rng", "models", "tasks", "rollouts", "estimators", "training"},
    "config": {"errors", "object_import", "tasks", "rollouts", "estimators", "objectives", "models", "training"},
    "report": {"errors", "atomic_io", "__version__", "models", "rollouts", "evaluation", "training", "plan"},
    "reproduce": {"errors", "atomic_io", "file_lock", "rollouts", "evaluation", "training", "config"},
    "commands": {
        *(
            "errors",
            "object_import",
            "types",
            "rng",
            "atomic_io",
            "__version__",
            "models",
            "tasks",
            "rollouts",
            "estimators",
        ),
        *("evaluation", "training", "config", "report"),
    },
    "cli": {
        *(
            "errors",
            "object_import",
            "rng",
            "atomic_io",
            "file_lock",
            "models",
            "rollouts",
            "evaluation",
            "training",
            "plan",
            "config",
        ),
        *("report", "reproduce", "commands"),
    },
    "__main__": {"cli"},
    "run": {"errors", "atomic_io", "models", "training", "config", "report"},
    "trainer": {
        *("errors", "atomic_io", "object_import", "models", "tasks", "rollouts", "estimators", "evaluation"),
        *("training", "config", "run"),
    },
    "lm_eval": {"errors", "rng", "models", "rollouts", "evaluation", "config"},
}
# The packages that may import a library which is slow to load or which only one part of ours should know.
OWNERS = {
    "peft": {"models"},
    "accelerate": {"training", "commands"},
    "pydantic": {"config"},
    "typer": {"cli"},
    "rich": {"report", "cli", "commands"},
    "matplotlib": {"report"},
    "math_verify": {"tasks"},
    "lm_eval": {"lm_eval"},
}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "stipule":
            yield from (f"stipule.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def package(file):
    return file.relative_to(SOURCE).with_suffix("").parts[0]


def test_every_package_has_a_line_and_none_imports_in_a_circle():
    assert {package(file) for file in FILES} - {"__init__"} == set(ALLOWED)
    above = {"__version__"}
    for name, allowed in ALLOWED.items():
        assert allowed <= above, f"{name} may import {allowed - above}, which stands below it"
        above.add(name)


def test_packages_import_only_what_their_line_allows():
    for file in FILES:
        for name in imports(file):
            if name.startswith("stipule.") and package(file) != "__init__":
                allowed = ALLOWED[package(file)] | {package(file)}
                assert name.split(".")[1] in allowed, f"{file} imports {name}"


def test_contributing_lists_the_same_packages_in_the_same_order():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    listed = [(name, set(re.findall(r"`(\w+)`", imported))) for name, imported in rows]
    assert listed == list(ALLOWED.items())


def test_the_report_page_and_most_tables_do_not_import_torch():
    """So that `stipule watch` and a report start at once. The three others describe models and their cost."""
    names = [file.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for file in FILES]
    names = [name for name in names if name.startswith("report.") and not name.endswith("__init__")]
    light = [n for n in names if n.split(".")[1] not in {"cost_table", "doctor_table", "plan_table"}]
    code = (
        "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *(f"stipule.{name}" for name in light)], check=True)
    assert len(light) >= 15


def test_no_permission_is_left_over():
    used = {name: set() for name in ALLOWED}
    for file in FILES:
        imported = {name.split(".")[1] for name in imports(file) if name.startswith("stipule.")}
        used.setdefault(package(file), set()).update(imported - {package(file)})
    for name, allowed in ALLOWED.items():
        assert allowed == used[name], f"{name} may import {allowed - used[name]}, and does not"


def test_heavy_libraries_are_imported_only_by_their_packages():
    for file in FILES:
        for name in imports(file):
            owners = OWNERS.get(name.split(".")[0])
            assert owners is None or package(file) in owners, f"{file} imports {name}"
            assert not (package(file) == "tasks" and name.split(".")[0] in {"torch", "transformers"})


def test_files_hold_one_idea():
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 300, file
        assert file.stem not in {"utils", "helpers", "common", "misc", "base"}


def test_nothing_can_run_what_it_reads():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, file
        assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in imports(file)}
        assert "trust_remote_code=True" not in file.read_text()


def functions(file):
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]


def lines(function):
    return function.end_lineno - function.lineno + 1


def test_functions_of_the_training_step_are_short():
    for file in [*SOURCE.glob("rollouts/*.py"), *SOURCE.glob("training/*.py")]:
        for function in functions(file):
            assert lines(function) <= 60, f"{function.name} in {file} has {lines(function)} lines"
    for function in functions(SOURCE / "training" / "rl_step.py"):  # rl_step and its inner updates
        assert lines(function) <= 50, f"{function.name} has {lines(function)} lines"


def test_the_listed_path_from_the_command_to_the_loss_is_the_real_one():
    """CONTRIBUTING.md lists at most 15 files; each is imported by a file above it; objectives/ is among them."""
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    (section,) = re.findall(r"## From `stipule train` to the loss\n(.*?)(?=\n## |\Z)", text, re.DOTALL)
    listed = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert 5 <= len(listed) <= 15 and listed[0] == "cli/train.py"
    reachable = {listed[0]}
    for name in listed:
        assert name in reachable, f"no file above {name} in the list imports it"
        for module in imports(SOURCE / name):
            path = module.removeprefix("stipule.").replace(".", "/")
            reachable |= {f"{path}.py", f"{path}/__init__.py"}
    assert "training/rl_step.py" in listed and any(name.startswith("objectives/") for name in listed)
