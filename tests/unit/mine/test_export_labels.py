"""Labels of the review store, as training reads them."""

from __future__ import annotations

import json

import pytest

from rewardserve.mine import export_labels
from rewardserve.service.review.records import Turn
from rewardserve.service.review.store import ReviewStore
from rewardserve.training.dataset import counterexamples
from rewardserve.training.settings.data_config import CounterexamplesConfig, DataConfig, SourceConfig
from tests.unit.service.review.test_store import sample


@pytest.fixture
def store(tmp_path):
    store = ReviewStore.open(tmp_path / "review.db")
    store.add([
        sample(n, prompt=[Turn("system", "s"), Turn("user", f"p{n // 2}")] if n < 4 else f"<|user|>{n // 2}", missing_end=n == 1)
        for n in range(12)
    ])  # fmt: skip
    yield store
    store.close()


def label(store, annotator, verdict_of):
    for pair in store.labels.queue("a", annotator, "random", 99, 5.0).pairs:
        store.labels.add(pair.id, annotator, verdict_of(pair), 6.0)


def exported(store, capsys, *flags):
    code = export_labels.main([store.name, *flags])
    return code, *capsys.readouterr()


def test_training_reads_what_annotators_said(store, capsys, tmp_path):
    label(
        store, "ann", lambda pair: "first" if pair.first < pair.second else "second"
    )  # the text of the smaller number
    code, out, words = exported(store, capsys)
    assert (code, words) == (0, "rewardserve export-labels: 6 labelled pairs\n")
    file = tmp_path / "labels.jsonl"
    file.write_text(out)
    read = counterexamples.read(CounterexamplesConfig(str(file)), DataConfig((SourceConfig("x"),)), "score")
    assert len(read.pairs) == 6
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["labelled_by"] for row in rows} == {"ann"}
    for row in rows:
        better = min(row["a"], row["b"])
        assert row[row["verdict"]] == better
    assert [row["a_finish_reason"] for row in rows if row["a"] == "response 0"] == ["stop"]
    assert [row["b_finish_reason"] for row in rows if row["b"] == "response 1"] == ["length"]
    assert sum(isinstance(row["prompt"], str) for row in rows) == 4


def test_disagreement_and_skips_are_left_out_and_counted(store, capsys):
    label(store, "ann", lambda pair: "skip" if "response 0" in (pair.first, pair.second) else "tie")
    for pair in store.labels.labelled("a"):
        store.labels.add(pair.id, "bo", "skip" if pair.verdicts["ann"] == "skip" else "both_bad", 7.0)
    code, out, words = exported(store, capsys)
    assert (code, out) == (0, "")
    assert words == "rewardserve export-labels: 0 labelled pairs, 5 on which annotators disagree, 1 skipped\n"


def test_labels_of_another_run_are_not_exported(store, capsys):
    label(store, "ann", lambda pair: "tie")
    assert exported(store, capsys, "--run=b")[1] == ""
    assert exported(store, capsys, "--run=a")[1] != ""


def test_a_file_that_does_not_exist_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        export_labels.main([str(tmp_path / "none.db")])
    assert ended.value.code == 2
    assert "no such file" in capsys.readouterr().err
