"""Mutation testing of a random sample: score and surviving mutants of each core folder. `make mutation` runs it.

mutmut makes and runs the mutants ([tool.mutmut] in pyproject.toml); it has no sampling and no score per folder.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from math import sqrt
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

NOT_RUN = {"not checked", "check was interrupted by user"}


def mutants_by_folder() -> dict[str, dict[str, Path]]:
    """The names of all mutants and their files, by folder; the same names as `mutmut run` gives them."""
    folders: dict[str, dict[str, Path]] = defaultdict(dict)
    paths = sorted(walk_mutatable_files())
    with ProcessPoolExecutor() as pool:
        for path, names in zip(paths, pool.map(mutants_of_file, paths), strict=True):
            folders[path.parent.name] |= dict.fromkeys(names, path)
    return dict(folders)


def mutants_of_file(path: Path) -> list[str]:
    names = mutate_file_contents(str(path), path.read_text()).mutant_names
    return [get_mutant_name(path, name) for name in names]


def run_mutmut(names: list[str], processes: int, seconds: float) -> None:
    """Runs mutmut on these mutants and ends it after `seconds`; what it has finished by then is on disk."""
    mutmut = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()"]
    command = [*mutmut, "run", "--max-children", str(processes), *names]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def describe(name: str, path: Path) -> dict[str, object]:
    """The status of a mutant, its change, and the line of the change."""
    data = SourceFileMutationData(path=path)
    data.load()
    diff = [line for line in get_diff_for_mutant(name, path=path).splitlines()[3:] if line[:1] in "+-"]
    removed = [line[1:].strip() for line in diff if line[0] == "-"]
    source = [line.strip() for line in path.read_text().splitlines()]
    line = source.index(removed[0]) + 1 if removed and removed[0] in source else None
    status = status_by_exit_code[data.exit_code_by_key.get(name)]
    return {"name": name, "file": str(path), "line": line, "change": diff, "status": status}


def wilson_interval(successes: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    z = 1.96
    center = (successes + z * z / 2) / (number + z * z)
    half = z * sqrt(successes * (number - successes) / number + z * z / 4) / (number + z * z)
    return center - half, center + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=40, help="mutants of each folder")
    parser.add_argument("--folders", nargs="*", help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=3600, help="mutants that are not done by then are not counted")
    parser.add_argument("--out", type=Path, default=Path("runs/mutation.json"))
    arguments = parser.parse_args()

    folders = mutants_by_folder()
    sample: dict[str, Path] = {}
    for folder in arguments.folders or sorted(folders):
        names = sorted(folders[folder])
        generator = random.Random(f"{arguments.seed} {folder}")
        chosen = generator.sample(names, min(arguments.sample, len(names)))
        sample |= {name: folders[folder][name] for name in chosen}
    run_mutmut(list(sample), arguments.processes, arguments.seconds)

    results = [describe(name, path) for name, path in sample.items()]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1))
    for folder in sorted({path.parent.name for path in sample.values()}):
        statuses = [str(result["status"]) for result in results if Path(str(result["file"])).parent.name == folder]
        counts = Counter(status for status in statuses if status not in NOT_RUN)
        number = sum(counts.values())
        if number:
            killed = counts["killed"] + counts["timeout"] + counts["segfault"]
            low, high = wilson_interval(killed, number)
            print(
                f"{folder}: {killed / number:.1%} of {number} mutants ({low:.0%} to {high:.0%}), "
                f"of {len(folders[folder])} in the folder: {dict(counts)}"
            )
    for result in results:
        if result["status"] in {"survived", "no tests"}:
            print(
                f"\n{result['status']}: {result['file']}:{result['line']}  {result['name']}",
                *result["change"],
                sep="\n",
            )
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
