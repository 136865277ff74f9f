"""Labelled queues as pairs: what counts as a preference, what is left out and counted, what is refused, what is held out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rewardserve.training.dataset import counterexamples
from rewardserve.training.dataset.counterexamples import QueueResponse, queue_id, scores_path
from rewardserve.training.dataset.data import DataError, Split
from rewardserve.training.dataset.leakage import prompt_key
from rewardserve.training.objective.feedback_loss import fitted
from rewardserve.training.settings.data_config import CounterexamplesConfig, DataConfig, SourceConfig
from rewardserve.training.settings.loss_config import LossConfig
from rewardserve.training.settings.recipe import parse
from rewardserve.training.settings.validation import ConfigError

DATA = DataConfig((SourceConfig("pairs.jsonl"),))


def row(number, verdict=None, **changed):
    prompt, a, b = f"question {number}", f"first {number}", f"second {number}"
    values = {
        "id": queue_id(prompt, QueueResponse(a), QueueResponse(b)),
        "prompt": prompt,
        "a": a,
        "b": b,
        "verdict": verdict,
    }
    return values | {"labelled_by": None, "labelled_at": None} | changed


def write(tmp_path, rows):
    path = tmp_path / "queue.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def read(path, data=DATA, **settings):
    return counterexamples.read(CounterexamplesConfig(str(path), **settings), data, "score")


def test_a_verdict_makes_its_response_the_chosen_one_with_the_weight(tmp_path):
    found = read(write(tmp_path, [row(1, "a"), row(2, "b")]), weight=3.0)
    assert [(p.chosen_text, p.rejected_text) for p in found.pairs] == [("first 1", "second 1"), ("second 2", "first 2")]
    assert {(p.weight, p.source, p.head) for p in found.pairs} == {(3.0, "counterexamples", "score")}
    assert found.pairs[0].chosen.prompt[0].content == "question 1"
    assert found.pairs[0].group != found.pairs[1].group


def test_rows_without_a_preference_are_counted_by_reason(tmp_path):
    swapped = row(5, "a", a="second 5", b="first 5")
    rows = [row(1, "a"), row(2), row(3, "b"), row(4, "both_bad"), row(5, "a"), swapped, row(6, "skip"), row(7, "")]
    found = read(write(tmp_path, rows))
    assert [p.chosen_text for p in found.pairs] == ["first 1", "second 3"]
    assert found.left_out == {
        "both bad": 1, "skipped by all annotators": 1, "with contradicting verdicts": 2, "without a verdict": 2,
    }  # fmt: skip
    assert "8 rows, 2 pairs with a preference, 1 both bad" in str(found)


def test_two_bad_responses_are_two_bad_labels_where_the_recipe_wants_them(tmp_path):
    more = [row(number, "a") for number in range(5, 13)]
    path = write(tmp_path, [row(1, "a"), row(2, "both_bad"), row(2, "both_bad"), row(3, "tie"), row(4, "skip"), *more])
    found = read(path, both_bad="labels", weight=3.0)
    assert [p.chosen_text for p in found.pairs[:2]] == ["first 1", "first 3"]
    assert [(i.texts, i.values, i.kind, i.weight) for i in found.bad] == [
        (("first 2",), (0.0,), "labels", 3.0), (("second 2",), (0.0,), "labels", 3.0),
    ]  # fmt: skip
    assert len({item.id for item in found.bad}) == 2
    assert found.left_out == {"more of the same id": 1, "skipped by all annotators": 1}
    assert "2 bad labels" in str(found)
    for fraction, n_train in ((0.0, 12), (0.5, None)):
        config = CounterexamplesConfig(str(path), both_bad="labels", eval_fraction=fraction)
        parts = counterexamples.split(found, config, DATA, Split((), (), ()))
        assert len(parts.train) + len(parts.held_out) == 12
        assert n_train is None or len(parts.train) == n_train
        assert not {i.group for i in parts.train} & {i.group for i in parts.held_out}, "a prompt is on one side"
    assert fitted(LossConfig(), (*found.pairs, *found.bad)).label_offset == 0


def test_a_tie_is_trained_as_one(tmp_path):
    swapped = row(2, "tie", a="second 2", b="first 2")
    path = write(tmp_path, [row(1, "a"), row(2, "tie"), swapped, row(2, "skip"), row(3, "tie")])
    write_scores(path, [row(1), row(2), row(3)], model=[2.0, 2.0, 2.0], judge=[1.0, 1.0, 1.0])
    found = read(path)
    assert [(p.chosen_text, p.values, p.weight) for p in found.pairs] == [
        ("first 1", (1.0, 0.0), 4.0), ("first 2", (0.0, 0.0), 4.0), ("first 3", (0.0, 0.0), 4.0),
    ]  # fmt: skip
    assert "5 rows, 1 pair with a preference, 2 ties, 2 more of the same id" in str(found)
    assert counterexamples.mined_accuracy(found, found.pairs) == 1.0, "of decided pairs"


def test_ties_of_a_queue_do_not_say_how_often_annotators_tie(tmp_path):
    queue = read(write(tmp_path, [row(1, "a"), row(2, "tie")])).pairs
    data = tuple(replace(queue[0], source="data", tie=i < 1) for i in range(5))
    assert fitted(LossConfig(), (*data, *queue)).tie == pytest.approx(2 * 0.2 / 0.8)


def test_annotators_who_agree_make_one_pair_whatever_the_order_of_the_responses(tmp_path):
    swapped = row(1, "b", a="second 1", b="first 1")
    found = read(write(tmp_path, [row(1, "a"), swapped, row(1, "skip")]))
    assert [p.chosen_text for p in found.pairs] == ["first 1"]
    assert found.left_out == {"more of the same id": 2}


def cut_row(verdict, a, b):
    """A row whose response `first` was cut off."""
    sides = [QueueResponse(text, "length" if text == "first" else "stop") for text in (a, b)]
    ends = {f"{name}_finish_reason": side.finish_reason for name, side in zip("ab", sides, strict=True)}
    return {"id": queue_id("q", *sides), "prompt": "q", "a": a, "b": b, **ends, "verdict": verdict}


@pytest.mark.parametrize("verdict", ["a", "b", "tie"])
def test_a_response_of_a_queue_that_was_cut_off_is_trained_without_an_end(tmp_path, verdict):
    same = {"a": "b", "b": "a", "tie": "tie"}[verdict]
    (pair,) = read(write(tmp_path, [cut_row(verdict, "first", "second"), cut_row(same, "second", "first")])).pairs
    found = {text: sample.finish_reason for text, sample in zip(pair.texts, pair.samples, strict=True)}
    assert found == {"first": "length", "second": "stop"}


def test_a_queue_that_lost_its_finish_reasons_is_refused(tmp_path):
    lost = {name: value for name, value in cut_row("a", "first", "second").items() if "finish_reason" not in name}
    with pytest.raises(DataError, match="since it was mined, or a_finish_reason or b_finish_reason"):
        read(write(tmp_path, [lost]))


def test_a_tie_beside_a_preference_contradicts_it(tmp_path):
    found = read(write(tmp_path, [row(1, "a"), row(1, "tie"), row(2, "b")]))
    assert [p.chosen_text for p in found.pairs] == ["second 2"]


def mined(prompt, a, b):
    return {
        "id": queue_id(prompt, QueueResponse(a), QueueResponse(b)),
        "prompt": prompt,
        "a": a,
        "b": b,
        "verdict": "a",
    }


@pytest.mark.parametrize(
    "mined",
    [
        mined("q", "good", " "),
        mined("q", "same", "same"),
        mined([{"role": "robot", "content": "q"}], "a", "b"),
        mined({"x": 1}, "a", "b"),
    ],
    ids=["blank", "equal", "role", "object"],
)
@pytest.mark.parametrize("on_bad_row", ["raise", "skip"])
def test_a_row_of_a_queue_that_makes_no_pair_ends_the_run_with_its_line(tmp_path, mined, on_bad_row):
    path = write(tmp_path, [row(9, "a"), mined])
    with pytest.raises(DataError) as error:
        read(path, DataConfig(DATA.sources, on_bad_row=on_bad_row))
    assert f"{path}:2: " in str(error.value)
    assert "set their verdict to skip" in str(error.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(1, "A"), "verdict: verdict is 'A'"),
        (row(1, "a", a="first 1, with a new end"), "the text has changed since it was mined"),
        (row(1, "a", prompt="question 2"), "the text has changed since it was mined"),
        (
            row(1, "a", a_finish_reason="length"),
            "the text has changed since it was mined, or a_finish_reason or b_finish_",
        ),
        (row(1, "a", b_finish_reason="eos"), "b_finish_reason: is 'eos'; it must be 'stop' or 'length'"),
        (row(1, "a", b=""), "b: is ''"),
        (row(1, 3), "must be one of a, b, tie, both_bad, skip"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["raise", "skip"])
def test_a_row_that_no_annotator_may_write_ends_the_run_with_its_line(tmp_path, bad, message, on_bad_row):
    path = write(tmp_path, [row(9, "a"), bad])
    with pytest.raises(DataError) as error:
        read(path, DataConfig(DATA.sources, on_bad_row=on_bad_row))
    assert f"{path}:2: " in str(error.value)
    assert message.removeprefix("verdict: verdict ") in str(error.value)
    assert "of 2 rows of the counterexamples" in str(error.value)


def test_rows_of_pairs_are_left_out_as_those_of_other_sources(tmp_path):
    path = write(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": "c"}])
    with pytest.raises(DataError, match=rf"1 of 2 rows .*\n  {path}:2: rejected"):
        read(path)
    found = read(path, DataConfig(DATA.sources, on_bad_row="skip"))
    assert str(found) == "2 rows, 1 pair with a preference, 1 without a pair"


def test_a_file_without_any_preference_is_refused_with_counts(tmp_path):
    with pytest.raises(
        DataError,
        match=r"none of the 2 rows of .* prefers one response or is a tie \(1 both bad, 1 without a verdict\)",
    ):
        read(write(tmp_path, [row(1), row(2, "both_bad")]))


def test_a_file_of_preference_pairs_is_read_too(tmp_path):
    path = write(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    (pair,) = read(path).pairs
    assert (pair.chosen_text, pair.weight) == ("c", 4.0)


def test_held_out_are_whole_prompts_and_those_of_other_held_out_pairs(tmp_path):
    labelled = read(write(tmp_path, [row(n, "a") for n in range(200)]))
    config = CounterexamplesConfig("queue.jsonl")
    plain = counterexamples.split(labelled, config, DATA, Split((), (), ()))
    assert 20 <= len(plain.held_out) <= 60
    assert not {p.group for p in plain.train} & {p.group for p in plain.held_out}
    taken = plain.train[0]
    again = counterexamples.split(labelled, config, DATA, Split((), (taken,), ()))
    assert {p.id for p in again.held_out} == {p.id for p in plain.held_out} | {taken.id}
    assert prompt_key(taken) not in {prompt_key(p) for p in again.train}


def test_nothing_left_to_train_on_is_an_error(tmp_path):
    labelled = read(write(tmp_path, [row(1, "a")]))
    with pytest.raises(DataError, match="all 1 counterexamples"):
        counterexamples.split(labelled, CounterexamplesConfig("q"), DATA, Split((), labelled.pairs, ()))


def write_scores(path, rows, model, judge, kinds=("gap", "gap", "gap")):
    """Scores of the response `a` of each row; `b` has 1."""
    lines = [
        {
            "id": r["id"],
            "kind": kind,
            "a": {"response": r["a"], "model": m, "judge_z": j},
            "b": {"response": r["b"], "model": 1.0, "judge_z": 1.0},
        }
        for r, m, j, kind in zip(rows, model, judge, kinds, strict=True)
    ]
    scores_path(path).write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_the_mined_model_is_judged_by_the_scores_beside_the_queue(tmp_path):
    path = write(tmp_path, rows := [row(1, "a"), row(2, "b"), row(3, "a")])
    write_scores(path, rows, model=[2.0, 2.0, 0.5], judge=[1.0, 1.0, 1.0])
    found = read(path)
    assert counterexamples.mined_accuracy(found, found.pairs) == pytest.approx(1 / 3)
    assert counterexamples.mined_accuracy(found, ()) is None
    assert counterexamples.control_accuracy(found) is None, "no controls"
    scores_path(path).write_text("nothing of it")
    assert counterexamples.mined_accuracy(read(path), found.pairs) is None


def test_model_and_judge_are_judged_on_the_controls_alone(tmp_path):
    path = write(tmp_path, rows := [row(1, "a"), row(2, "b"), row(3, "a"), row(4, "tie")])
    kinds = ("control", "control", "gap", "control")
    write_scores(path, rows, model=[2.0, 2.0, 0.5, 2.0], judge=[0.5, 0.5, 0.5, 0.5], kinds=kinds)
    assert counterexamples.control_accuracy(read(path)) == (0.5, 0.5, 2)
    write_scores(path, rows, model=[2.0, 0.5, 0.5, 2.0], judge=[0.5, 2.0, 2.0, 0.5], kinds=kinds)
    assert counterexamples.control_accuracy(read(path)) == (1.0, 0.0, 2)


def test_a_recipe_has_them_and_refuses_an_unknown_head_and_a_missing_file():
    raw = {"model": {"path": "m"}, "data": {"sources": [{"path": "p"}]}, "output": {"folder": "o"}}
    config = parse(raw, ["counterexamples.path=queue.jsonl"])
    assert config.counterexamples == CounterexamplesConfig("queue.jsonl")
    with pytest.raises(ConfigError, match=r"counterexamples\.head is 'x'"):
        parse(raw, ["counterexamples.path=queue.jsonl", "counterexamples.head=x"])
    with pytest.raises(ConfigError, match=r"counterexamples\.weight is 0"):
        parse(raw, ["counterexamples.path=queue.jsonl", "counterexamples.weight=0"])
    with pytest.raises(ConfigError, match="is not a file"):
        counterexamples.require_file("/nowhere/queue.jsonl")
