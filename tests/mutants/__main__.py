"""Run mutmut over the areas of `areas`, and compare the mutants that survive with those that `survivors.toml` explains.

Each area is mutated in a copy of the working tree under `.bench/mutants/`. Mutants of unchanged functions that were killed are not
tested again, unless the area has changed; survivors are. Delete the folder to test all of them. The exit code is 1 where an area
has less than 95 % of its mutants killed, or a survivor without a reason.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from benchmarks.peers.install import ROOT
from tests.mutants.areas import AREAS, Area

JUDGE = Path(__file__).with_name("judge.py")
REASONS = Path(__file__).with_name("survivors.toml")
HOME = ROOT / ".bench" / "mutants"
LINKED = ("model", "service", "training")
"""Folders that the package `rewardserve` links to."""
LEAST_KILLED = 0.95
_SURVIVED = (0, 5, 33)
"""mutmut's exit codes: every test passed, or none reaches the mutant."""


@dataclass(frozen=True, slots=True)
class Survivor:
    """A change of one function that no test noticed; named by what changed, not by a number that other changes shift."""

    function: str
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one area."""

    n_mutants: int
    survivors: tuple[Survivor, ...]

    @property
    def killed(self) -> float:
        """The share of mutants that some test noticed."""
        return 1 - len(self.survivors) / self.n_mutants if self.n_mutants else 0.0


def main() -> int:
    """Command-line entry."""
    given = _parser().parse_args()
    explained = reasons()
    found: set[Survivor] = set()
    failed = False
    for name in given.areas or AREAS:
        outcome = run(name, AREAS[name])
        found.update(outcome.survivors)
        strange = [survivor for survivor in outcome.survivors if survivor not in explained]
        n_killed = outcome.n_mutants - len(outcome.survivors)
        print(f"{name}: {n_killed} of {outcome.n_mutants} mutants killed ({outcome.killed:.1%})", flush=True)
        for survivor in strange:
            print(_as_toml(survivor), flush=True)
        failed |= outcome.killed < LEAST_KILLED or bool(strange)
    if not given.areas and (stale := [survivor for survivor in explained if survivor not in found]):
        print(f"{REASONS.name} explains mutants that are killed by now, or are none:", *map(_as_toml, stale), sep="\n")
        failed = True
    return int(failed)


def run(name: str, area: Area) -> Outcome:
    """Mutate one area and run its tests. Raise `RuntimeError` with mutmut's last words where it cannot."""
    folder = HOME / name
    project, configuration = folder / "pyproject.toml", _configuration(area)
    if project.exists() and configuration not in project.read_text():
        shutil.rmtree(folder)  # other tests, or other files
    _copy_tree(folder)
    with project.open("a") as file:
        file.write(configuration)
    # The checkout must not be on the path beside the mutated copy.
    command = [sys.executable, "-P", JUDGE, str(os.cpu_count() or 1)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "HYPOTHESIS_PROFILE": "same 50", "SWEEPS": "all"}
    _forget_survivors(folder)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    codes = {name: code for path in _results(folder) for name, code in _exit_codes(path).items()}
    if not codes or None in codes.values():
        raise RuntimeError(f"mutmut stopped in {name}: {(done.stdout + done.stderr)[-2000:]}")
    return Outcome(len(codes), tuple(survivor for path in _results(folder) for survivor in _survivors(path)))


def reasons() -> dict[Survivor, str]:
    """What `survivors.toml` says of each mutant that may survive."""
    listed = tomllib.loads(REASONS.read_text()).get("survivor", [])
    return {Survivor(each["function"], each["was"], each["now"]): each["reason"] for each in listed}


def _tree() -> list[Path]:
    """Files of the working tree as git sees it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    return [Path(each) for each in listed if each]


def files_of(area: Area) -> list[str]:
    """The files that the patterns of an area match, by the place from which they are imported; `*` crosses no folder."""
    places = {_place(path) for path in _tree()}
    return sorted(str(place) for place in places if any(place.match(pattern) for pattern in area.files))


def _copy_tree(folder: Path) -> None:
    """The working tree, with what is built in place. Packages stand where they are imported from."""
    built = (path.relative_to(ROOT) for path in (ROOT / "model").rglob("*.so"))
    for path in [*_tree(), *built]:
        if (ROOT / path).is_file():
            target = folder / _place(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target)


def _place(path: Path) -> Path:
    """Where a file of the repository is imported from: mutmut names mutants by their paths."""
    if path.parts[0] in LINKED:
        return Path("rewardserve", *path.parts)
    return Path(*path.parts[1:]) if path.parts[:2] == ("client", "rewardserve_client") else path


def _configuration(area: Area) -> str:
    top = ["rewardserve", "rewardserve_client"]
    others = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    beside = sorted(others - {*top, *LINKED, "tests", "client"})
    return f"""
[tool.mutmut]
source_paths = {json.dumps(top)}
only_mutate = {json.dumps(files_of(area))}
also_copy = {json.dumps(beside)}
pytest_add_cli_args = ["-n0", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {json.dumps(area.tests)}
"""


def _results(folder: Path) -> list[Path]:
    """The files in which mutmut keeps results, each beside the mutated source that it is of."""
    return sorted((folder / "mutants").rglob("*.meta"))


def _exit_codes(result: Path) -> dict[str, int | None]:
    codes: dict[str, int | None] = json.loads(result.read_text())["exit_code_by_key"]
    return codes


def _forget_survivors(folder: Path) -> None:
    """Have mutmut test survivors again, by all tests that reach them now: it keeps what it knew of unchanged functions."""
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    for path in _results(folder):
        kept = json.loads(path.read_text())
        kept["exit_code_by_key"] = {
            name: None if code in _SURVIVED else code for name, code in kept["exit_code_by_key"].items()
        }
        path.write_text(json.dumps(kept))


def _survivors(result: Path) -> Iterator[Survivor]:
    tree = ast.parse(result.with_suffix("").read_text())
    bodies = {
        node.name: lines_of(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for mutant, code in _exit_codes(result).items():
        if code in _SURVIVED:
            name = mutant.rpartition(".")[2]
            original = bodies[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"]
            lines = list(unified_diff(original, bodies[name], n=0, lineterm=""))[2:]
            was, now = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
            yield Survivor(_function(mutant), was, now)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The lines of a function, in the form in which survivors are written."""
    return [ast.unparse(function.args), *ast.unparse(ast.Module(function.body, [])).splitlines()]


def _function(mutant: str) -> str:
    """`rewardserve.service.auth.api_keys.xǁKeyRingǁwarnings__mutmut_5` -> `rewardserve.service.auth.api_keys.ApiKeys.warnings`."""
    module, _, name = mutant.rpartition("__mutmut_")[0].rpartition(".")
    return f"{module}.{re.sub('^x_', '', name.removeprefix('xǁ')).replace('ǁ', '.')}"


def _as_toml(survivor: Survivor) -> str:
    fields = {"function": survivor.function, "was": survivor.was, "now": survivor.now, "reason": ""}
    return "[[survivor]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def _area(name: str) -> str:
    if name not in AREAS:
        raise argparse.ArgumentTypeError(f"no area is called {name!r}; there are {', '.join(AREAS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", type=_area, help=f"of {', '.join(AREAS)}; all by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
