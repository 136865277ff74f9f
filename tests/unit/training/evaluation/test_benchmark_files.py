"""Benchmark files, and the figures of their authors."""

from __future__ import annotations

import json
from statistics import fmean

import numpy as np
import pytest

from rewardserve.model.conversation import Message
from rewardserve.training.evaluation.benchmark_files import (
    BenchmarkRow,
    read_benchmark,
    row_result,
    style_matrix,
    subset_scores,
    ties_score,
)
from rewardserve.training.results import style_table
from rewardserve.training.settings.validation import ConfigError
from tests.support.planted_pairs import write_jsonl

RB = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "hep-cpp", "id": 7, "chosen_model": "m"}
RB2 = {"id": "3", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"}
RM = {"id": "x", "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}


@pytest.mark.parametrize(
    ("row", "kind", "n", "subset"),
    [(RB, "rewardbench", 2, "hep-cpp"), (RB2, "rewardbench2", 4, "Math"), (RM, "rm-bench", 6, "chat")],
)
def test_a_file_is_known_by_its_rows(tmp_path, row, kind, n, subset):
    as_array = tmp_path / "f.json"
    as_array.write_text(json.dumps([row, row]))
    for path in (write_jsonl(tmp_path / "f.jsonl", [row, row]), as_array):
        found = read_benchmark(path)
        assert (found.format, found.rows[0].id, found.rows[0].subset) == (kind, str(row["id"]), subset)
        samples = found.samples()
        assert len(samples) == 2 * n
        assert samples[0].messages == (Message("user", "q"), Message("assistant", "a"))
        numbers = [float(i) for i in range(2 * n)]
        chosen, rejected = found.by_row(numbers)[1]
        assert [*chosen, *rejected] == numbers[n:]


def test_turns_of_a_prompt_are_kept(tmp_path):
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}]
    (row,) = read_benchmark(write_jsonl(tmp_path / "f.jsonl", [RB | {"prompt": turns}])).rows
    assert [m.content for m in row.samples()[1].messages] == ["1", "2", "3", "b"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "q", "chosen": "a"}], "f.jsonl:1: column 'rejected' is missing"),
        ([RB, {k: v for k, v in RB.items() if k != "subset"}], "f.jsonl:2: column 'subset'"),
        ([RB, RB2], "several formats"),
        ([RM | {"chosen": ["a"]}], "1 chosen and 3 rejected"),
        ([RB2 | {"num_correct": 2}], "num_correct is 2, with 1"),
        ([RB | {"chosen": 3}], "one of chosen and rejected is a text"),
        ([RB | {"chosen": 3, "rejected": 4}], "chosen is no text and no list of texts"),
        ([RB | {"chosen": {"text": "a"}, "rejected": {"text": "b"}}], "chosen is no text and no list of texts"),
        ([RB | {"rejected": ["r1", "r2"]}], "one of chosen and rejected is a text and the other a list"),
        ([RB | {"subset": None}], "subset is None and no text"),
        ([RB | {"prompt": []}], "prompt is no text and no list of turns"),
        ([RB | {"prompt": None}], "prompt is no text and no list of turns"),
        ([RB | {"prompt": [{"role": "user", "content": None}]}], "prompt is no text and no list of turns"),
        ([], "no rows"),
    ],
)
def test_a_file_of_another_format_is_refused_with_its_row(tmp_path, rows, says):
    with pytest.raises(ConfigError, match=says):
        read_benchmark(write_jsonl(tmp_path / "f.jsonl", rows))


def test_equal_scores_are_counted_as_the_authors_count_them():
    assert row_result("rewardbench", ([1.0], [1.0])) == 0.0, "run_rm.py: chosen > rejected"
    assert row_result("rewardbench2", ([2.0], [2.0, 2.0, 1.0])) == pytest.approx(1 / 3), (
        "utils.reroll_and_score_dataset"
    )
    assert row_result("rewardbench2", ([2.0], [3.0, 2.0, 1.0])) == 0.0


def ties(*rows):
    return [
        (BenchmarkRow(id, (), ("c",) * n, ("r",) * (len(scores) - n), "Ties"), (scores[:n], scores[n:]))
        for id, n, scores in rows
    ]


def test_the_subset_ties_is_scored_as_its_authors_do_it(tmp_path):
    """The number is that of `rewardbench.utils.process_single_model` (0.1.4) on the same scores."""
    rows = ties(
        ("ref:0", 1, [3.0, 1.0, 0.5]), ("tied:0", 3, [2.0, 2.5, 1.5, 0.25, 0.0]),
        ("ref:1", 1, [0.0, 1.0]), ("tied:1", 2, [1.0, 4.0, 0.75]),
        ("ref:2", 1, [5.0, 1.0]), ("tied:2", 2, [2.0, 2.0, 1.0]),
    )  # fmt: skip
    assert ties_score(rows) == pytest.approx(0.7635409516699718, abs=1e-12)
    assert ties_score(ties(("tied:0", 2, [1.0, 2.0, 0.0]))) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="ref:N or tied:N"):
        ties_score(ties(("7", 1, [1.0, 0.0])))
    with pytest.raises(ConfigError, match="two rows of the subset Ties have the id 'ref:0'"):
        ties_score([*rows, *ties(("ref:0", 1, [1.0, 0.0]))])
    path = write_jsonl(
        tmp_path / "f.jsonl",
        [RB2, *(RB2 | {"id": r.id, "chosen": r.chosen, "rejected": r.rejected, "num_correct": len(r.chosen), "subset": "Ties"}
                for r, _ in rows)],
    )  # fmt: skip
    benchmark = read_benchmark(path)
    scores = [([0.0], [1.0, -1.0, -2.0]), *(own for _, own in rows)]
    assert subset_scores(benchmark, scores) == {"Math": 0.0, "Ties": pytest.approx(0.7635409516699718)}


def test_the_style_matrix_is_that_of_rm_bench():
    rng = np.random.default_rng(0)
    scores = [(rng.normal(0.3, 1, 3).round(1).tolist(), rng.normal(0, 1, 3).round(1).tolist()) for _ in range(50)]
    found = style_matrix(scores, "here")
    for i in range(3):
        for j in range(3):
            assert found.accuracy[i][j] == pytest.approx(fmean(c[i] > r[j] for c, r in scores))
    assert found.hard == pytest.approx(fmean(found.accuracy[i][j] for i, j in ((0, 1), (0, 2), (1, 2))))
    assert found.easy == pytest.approx(fmean(found.accuracy[i][j] for i, j in ((1, 0), (2, 0), (2, 1))))
    assert found.normal == pytest.approx(fmean(found.accuracy[i][i] for i in range(3)))
    page = style_table.section(found)
    assert f"{found.accuracy[2][0]:.3f}" in page
    assert f"normal (equal styles) {found.normal:.3f}" in page
    assert style_table.section(None) == ""
