"""Measure how much the responses to one prompt have in common: the intra-class correlation of scores and lengths.

python -m gym.streams.correlation --data FOLDER --prompts 60
python -m gym.streams.correlation --recorded RUN.jsonl.gz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks import tables
from gym.streams.scores import Model, ScoreTable, fill
from gym.streams.streams import read_recorded
from gym.streams.texts import Texts, read_pairs
from gym.streams.worlds import normal_of

_LEAST_GROUPS: Final = 8

Groups = Sequence[Sequence[float]]


def intraclass_correlation(groups: Iterable[Sequence[float]]) -> float:
    """Share of the variance that groups have in common, by the one-way analysis of variance; negative where they have none."""
    several = [group for group in groups if len(group) > 1]
    n, k = sum(map(len, several)), len(several)
    means = [fmean(group) for group in several]
    grand = fmean(value for group in several for value in group)
    between = sum(len(g) * (mean - grand) ** 2 for g, mean in zip(several, means, strict=True)) / (k - 1)
    within = sum((value - mean) ** 2 for g, mean in zip(several, means, strict=True) for value in g) / (n - k)
    size = (n - sum(len(group) ** 2 for group in several) / n) / (k - 1)
    spread = between + (size - 1.0) * within
    return (between - within) / spread if spread else 0.0


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m gym.streams.correlation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, help="folder of preference files, which are scored by the default model")
    parser.add_argument("--prompts", type=int, default=60, help="prompts of a file")
    parser.add_argument("--recorded", type=Path, nargs="*", default=(), help="recorded runs")
    parser.add_argument("--window", type=int, default=30, help="steps of a run that are one line")
    given = parser.parse_args()
    rows = [row for file in given.recorded for row in _of_run(file, given.window)]
    if given.data:
        rows += _of_files(given.data, given.prompts)
    print(tables.table(rows))
    return 0


def _row(name: str, scores: Groups, lengths: Groups) -> dict[str, str]:
    return {
        "texts": name,
        "groups": str(len(scores)),
        "responses": str(sum(map(len, scores))),
        "scores": f"{intraclass_correlation(scores):.2f}",
        "lengths": f"{intraclass_correlation(lengths):.2f}",
    }


def _of_run(file: Path, window: int) -> Iterator[dict[str, str]]:
    steps, rewards = read_recorded(file)
    for at in range(0, len(steps), window):
        scores: list[list[float]] = []
        lengths: list[list[float]] = []
        for step, of_step in zip(steps[at : at + window], rewards[at : at + window], strict=True):
            pairs = sorted(zip(step, of_step, strict=True), key=lambda pair: repr(pair[0].prompt))
            for _, group in groupby(pairs, key=lambda pair: pair[0].prompt):
                rows = list(group)
                scores.append([reward for _, reward in rows])
                lengths.append([float(len(sample.response)) for sample, _ in rows])
        if len(scores) >= _LEAST_GROUPS:
            yield _row(f"{file.name}, steps {at} to {min(at + window, len(steps)) - 1}", scores, lengths)


def _of_files(folder: Path, n: int) -> Iterator[dict[str, str]]:
    texts, model = Texts(read_pairs(folder)), Model.read()
    table = ScoreTable.open(model)
    chosen = {
        task: sorted((p for p in texts.pairs if p.task == task), key=lambda p: normal_of("icc", p.prompt))[:n]
        for task in texts.tasks
    }
    fill(table, [(p.prompt, text) for pairs in chosen.values() for p in pairs for text in p.responses])
    everything: tuple[list[list[float]], list[list[float]]] = ([], [])
    for task, pairs in sorted(chosen.items()):
        scores, lengths = [], []
        for pair in pairs:
            heads = [table.of(pair.prompt, text) for text in pair.responses]
            known = [model.normalised(each) for each in heads if each is not None]
            if len(known) == len(heads):
                scores.append(known)
                lengths.append([float(len(text)) for text in pair.responses])
        everything[0].extend(scores)
        everything[1].extend(lengths)
        yield _row(task, scores, lengths)
    yield _row("all files", *everything)


if __name__ == "__main__":
    raise SystemExit(main())
