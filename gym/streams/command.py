"""Replay streams of real text through the trip wires of the server, and print which are paged, when, and by which wires.

python -m gym.streams --data FOLDER
python -m gym.streams --data FOLDER --exploits FILE.py --honest FILE.py --seeds 0 22 --judge-share 0.1 0 --json runs/streams.json
python -m gym.streams --data FOLDER --world real --rows 200
python -m gym.streams --recorded RUN.jsonl.gz
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import machine, tables
from gym.streams import cherrl, outcomes
from gym.streams.honest import HONEST
from gym.streams.learning import LESSONS
from gym.streams.outcomes import StreamOutcome
from gym.streams.replay import Traffic
from gym.streams.runs import World, run, start
from gym.streams.scores import fill
from gym.streams.streams import StreamSpec, functions_of
from gym.streams.worlds import Planted


def main() -> int:
    """Command-line entry."""
    given = _arguments()
    if given.show:
        _print([outcome for file in given.show for outcome in outcomes.load(file)])
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    specs = list(_specs(given))
    if given.world == "cherrl":
        runs = cherrl.read_runs(given.signals)
        specs = [replace(spec, n_steps=len(runs[spec.name].shares)) for spec in specs]
    if given.world == "real":
        specs = _fill_tables(given, specs)
    replayed = _run_all(given, specs)
    _print(replayed)
    if given.json:
        outcomes.save(given.json, replayed)
    return 0


def _run_all(given: argparse.Namespace, specs: Sequence[StreamSpec]) -> list[StreamOutcome]:
    """Run all streams, the longest ones first; return them in their order."""
    if given.processes == 1:
        start(given)
        return list(_counted(map(run, specs), len(specs)))
    order = sorted(range(len(specs)), key=lambda i: -specs[i].n_steps)
    with ProcessPoolExecutor(given.processes, get_context("spawn"), start, (given,)) as pool:
        replayed = _counted(pool.map(run, [specs[i] for i in order]), len(specs))
        done = dict(zip(order, replayed, strict=True))
    return [done[i] for i in range(len(specs))]


def _counted(replayed: Iterable[StreamOutcome], n: int) -> Iterator[StreamOutcome]:
    """Print a line for each stream on stderr, because a table comes only at the end."""
    for i, each in enumerate(replayed, 1):
        print(
            f"{i}/{n} {each.stream[:60]}: {f'page at {each.page}' if each.page is not None else 'no page'}",
            file=sys.stderr,
        )
        yield each


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gym.streams", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of preference files: JSONL, also gzipped, with prompt, chosen and rejected")
    add("--recorded", type=Path, help="replay this recorded run alone (JSONL, gzipped: prompts, responses, rewards)")
    add("--exploits", type=Path, help="Python file with a dict EXPLOITS of functions (prompt, response) -> response")
    add("--honest", type=Path, help="Python file with a dict HONEST of functions seed -> steps of (prompt, response)")
    add("--seeds", nargs=2, type=int, default=(0, 11), help="seeds of the exploits that are drawn: first and end")
    add(
        "--repeats",
        type=int,
        default=1,
        help="seeds of each honest stream and each exploit of a file, from the first on",
    )
    add("--only", nargs="+", default=(), help="names of streams: others are left out")
    add("--steps", nargs="+", type=int, default=[60], help="lengths of streams: 60 is fast, 480 slow")
    add("--batch", type=int, default=128, help="samples of a step")
    add("--top", type=float, default=0.8, help="share of exploiting responses at the end")
    add("--per-request", nargs="+", type=int, default=[0], help="samples of a request; 0: a whole step")
    add(
        "--tasks",
        nargs="+",
        choices=("none", "named"),
        default=["none"],
        help="whether samples name the file of their prompt",
    )
    add(
        "--world",
        choices=("planted", "real", "learned", "cherrl"),
        default="planted",
        help="source of scores; learned: a policy that is trained, with a known true reward; cherrl: three published runs",
    )
    add("--signals", type=Path, help="cherrl: its file reference_onset_definition.json")
    add("--quality", choices=("model", "noise"), default="model",
        help="honest scores of the planted world: those that the model has given to base texts before, or random ones")  # fmt: skip
    add("--bonus", nargs="+", type=float, default=[2.0, 0.8], help="planted: pay of an exploit, in sd of honest scores")
    add(
        "--penalty",
        nargs="+",
        type=float,
        default=[0.7, 0.3],
        help="planted: its cost with the judge; as many as --bonus",
    )
    add("--judge-share", nargs="+", type=float, default=[0.1], help="share of the samples with an audit; 0: no judge")
    add(
        "--judge-correlation",
        type=float,
        default=0.6,
        help="planted: correlation of judge and score on honest responses",
    )
    add("--judge-wander", type=float, default=0.0, help="planted: sd of the judge's common error, an AR(1) process")
    add("--model", default="", help="checkpoint of the served model; empty: the default model")
    add("--judge", default="", help="real: checkpoint of the judge; empty: none")
    add("--scores", type=Path, help="folder of the files of scores; default: the user's cache")
    add(
        "--rows",
        type=int,
        help="real: texts of a stream that are scored, besides base texts; default: all, else imputed",
    )
    add("--base-rows", type=int, help="base texts that are scored; default: all")
    add("--score-edits", action="store_true", help="recorded: score edited responses of attribution by the model")
    add("--until-page", action="store_true", help="end a stream with the step of its first page")
    add("--config", type=Path, help="TOML file of the trip wires")
    add("--processes", type=int, default=min(2, os.cpu_count() or 1))
    add(
        "--show",
        nargs="+",
        type=Path,
        default=(),
        help="print the tables of these outcomes of --json, and replay nothing",
    )
    add("--json", type=Path, help="file for the outcome of every stream")
    given = parser.parse_args()
    if given.data is None and given.recorded is None and not given.show:
        parser.error("give --data, --recorded or --show")
    if len(given.bonus) != len(given.penalty):
        parser.error("give as many --penalty as --bonus")
    if given.world == "cherrl" and given.signals is None:
        parser.error("--world cherrl needs --signals")
    return given


# -- streams ----------------------------------------------------------------------------------------------------------


def _specs(given: argparse.Namespace) -> Iterator[StreamSpec]:
    """Streams with all settings. Honest ones do not depend on the pay of an exploit."""
    traffics = [
        Traffic(size, share, given.config, tasks == "named")
        for share, size, tasks in product(given.judge_share, given.per_request, given.tasks)
    ]
    is_real = given.world == "real"
    pays = (
        [(cherrl.PAY / cherrl.SCORE_SD if given.world == "cherrl" else 0.0, 0.0)]
        if given.world != "planted"
        else list(zip(given.bonus, given.penalty, strict=True))
    )
    for traffic, n_steps, (bonus, penalty) in product(traffics, given.steps, pays):
        planted = Planted(bonus, penalty, given.judge_correlation, given.judge_wander)
        settings: dict[str, Any] = {
            "n_steps": n_steps, "batch": given.batch, "top": given.top, "is_real": is_real, "planted": planted, "traffic": traffic,
            "until_page": given.until_page,
        }  # fmt: skip
        for spec in _streams(given):
            if spec.is_exploit or (bonus, penalty) == pays[0]:
                yield replace(spec, **settings)


def _streams(given: argparse.Namespace) -> Iterator[StreamSpec]:
    if given.recorded:
        yield StreamSpec("recorded", given.recorded.name, given.recorded)
        return
    first, end = given.seeds
    if given.world == "learned":
        kinds = [name for name in LESSONS if not given.only or name in given.only]
        yield from (StreamSpec("learned", name, None, seed) for name in kinds for seed in range(first, end))
        return
    if given.world == "cherrl":
        names = [name for name in cherrl.read_runs(given.signals) if not given.only or name in given.only]
        yield from (StreamSpec("cherrl", name, given.signals, seed) for name in names for seed in range(first, end))
        return
    again = range(first, first + given.repeats)
    named = [
        *(
            StreamSpec("exploits", name, given.exploits, seed)
            for name in _names(given.exploits, "EXPLOITS")
            for seed in again
        ),
        *(
            StreamSpec("honest file", name, given.honest, seed)
            for name in _names(given.honest, "HONEST")
            for seed in again
        ),
        *(StreamSpec("honest", name, None, seed) for name in HONEST for seed in again),
    ]
    if not given.only or "drawn" in given.only:
        yield from (StreamSpec("drawn", "drawn", None, seed) for seed in range(first, end))
    yield from (spec for spec in named if not given.only or spec.name in given.only)


def _names(file: Path | None, name: str) -> list[str]:
    return [] if file is None else list(functions_of(file, name))


def _fill_tables(given: argparse.Namespace, specs: Sequence[StreamSpec]) -> list[StreamSpec]:
    """Score the texts that the real world needs. Return the streams that can be made.

    A stream that chooses responses by their score needs those of all base texts: an imputed one does not depend on the text.
    """
    world = World.of(given)
    for scored, checkpoint in ((world.served, given.model), (world.judge, given.judge)):
        if scored is None:
            continue
        texts = scored.table.missing(world.base.some(given.base_rows))
        for spec in specs:
            texts += world.base.missing(world.source.steps(spec), scored, given.rows)
        if rate := fill(scored.table, texts, checkpoint):
            print(f"scored {rate:.1f} rows/s; the table {scored.table.path} has {len(scored.table.heads):,} rows")
    if not world.served.table.missing(world.base.some(None)):
        return list(specs)
    if any(spec.chooses_by_score for spec in specs):
        print("improvement is left out: it needs the scores of all base texts (no --base-rows)", file=sys.stderr)
    return [spec for spec in specs if not spec.chooses_by_score]


def _print(replayed: Sequence[StreamOutcome]) -> None:
    print(tables.facts(machine.facts()))
    for settings, of_settings in outcomes.by_settings(replayed).items():
        for pay, of_pay in outcomes.by_pay(of_settings).items():
            print(f"\n{settings}: {pay or 'without an exploit'}")
            print(tables.table([outcomes.stream_row(each) for each in of_pay]))
    if any(each.gold is not None for each in replayed):
        print("\nby the true reward: runs that fall, and runs that never do")
        print(tables.table(list(outcomes.gold_rows(replayed))))
    else:
        print("\nby settings, with the honest streams of the same settings")
        print(tables.table(list(outcomes.class_rows(replayed))))
    if any(each.onset for each in replayed):
        print("\nby the published onset")
        print(tables.table(list(outcomes.onset_rows(replayed))))
    print("\nby wire, over all streams")
    print(tables.table(list(outcomes.wire_rows(replayed))))
    seconds, samples = sum(each.seconds for each in replayed), sum(each.samples for each in replayed)
    print(
        f"\n{len(replayed)} streams, {samples:,} samples, {seconds:.0f} s of CPU, {1e6 * seconds / samples:.0f} us a sample"
    )
    if imputed := max(each.imputed for each in replayed):
        print(f"up to {imputed:.1%} of the scores of a stream are imputed from scored texts")
