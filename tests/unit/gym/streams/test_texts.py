"""Base texts are read from preference files, and no response comes twice."""

import gzip
import json

import pytest

from gym.streams.texts import read_pairs, resampled

ROW = {"prompt": [{"role": "user", "content": "Why?"}], "chosen": "Because.", "rejected": "No idea."}


def write(path, rows):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def test_plain_and_gzipped_files_are_read_and_other_rows_left_out(tmp_path):
    write(tmp_path / "a.jsonl", [ROW, {"prompt": "Who?", "response": "I.", "rating": 1}])
    write(tmp_path / "b.jsonl.gz", [{"prompt": "How?", "chosen": "So.", "rejected": "Thus."}])
    pairs = read_pairs(tmp_path)
    assert [(pair.task, pair.prompt[-1].content) for pair in pairs] == [("a", "Why?"), ("b", "How?")]


def test_a_response_that_another_pair_has_is_left_out(tmp_path):
    write(tmp_path / "a.jsonl", [ROW, {**ROW, "chosen": "because. "}, {**ROW, "chosen": " "}])
    assert len(read_pairs(tmp_path)) == 1


def test_a_folder_without_pairs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="chosen and rejected"):
        read_pairs(tmp_path)


def test_no_response_comes_twice_even_where_the_texts_are_used_up(texts):
    flat = [sample.response for step in texts.steps(3, 20, 64) for sample in step]
    assert len(flat) == 1280 > 2 * len(texts.pairs)
    assert len(set(flat)) == len(flat)


def test_steps_depend_on_the_seed_alone(texts):
    assert texts.steps(3, 5, 16) == texts.steps(3, 5, 16) != texts.steps(4, 5, 16)


def test_steps_of_some_tasks_have_these_alone(texts):
    assert {sample.task for step in texts.steps(3, 5, 16, ["notes"]) for sample in step} == {"notes"}


def test_a_resampled_response_keeps_most_of_its_words(texts):
    before = texts.pairs[0].responses[0]
    after = resampled(before, 1)
    assert after != before
    assert len(set(after.split()) & set(before.split())) > 0.6 * len(set(before.split()))
