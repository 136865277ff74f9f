"""What is counted in a batch, against plain loops."""

import numpy as np
import pytest

from gym import vocabulary
from gym.responses import Responses, from_rows, joined
from gym.vocabulary import EOS


def words_of(responses):
    return [[t for t in row if t != EOS] for row in responses.tokens_BT.tolist()]


def naive_repetition(words):
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def test_lengths_and_counts_are_those_of_a_plain_count(sampled):
    for i, words in enumerate(words_of(sampled)):
        assert sampled.lengths_B[i] == len(words)
        assert [sampled.counts_BV[i, v] for v in range(EOS)] == [words.count(v) for v in range(EOS)]


def test_repetition_is_the_share_of_trigrams_that_were_there_before():
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(0, 3, n).tolist()) for n in (1, 2, 3, 4, 17, 60, 127)]
    rows += [(7,) * 30, (0,) * 5, (EOS,), tuple(range(50))]
    responses = from_rows(tuple(rows), 128)
    assert responses.repetition_B == pytest.approx([naive_repetition(words) for words in words_of(responses)])


def test_rows_go_out_and_come_back(sampled):
    again = from_rows(sampled.rows(), sampled.tokens_BT.shape[1])
    assert np.array_equal(again.tokens_BT, sampled.tokens_BT)


def test_no_row_is_empty_and_eos_ends_those_that_ended_and_no_other(sampled):
    assert 0 < sampled.ended_B.sum() < len(sampled)
    for row, ended in zip(sampled.rows(), sampled.ended_B, strict=True):
        assert row
        assert row.count(EOS) == ended == (row[-1] == EOS)


def test_an_empty_response_is_an_eos():
    nothing = Responses(np.full((1, 5), EOS), np.zeros(1, dtype=np.int64))
    assert nothing.rows() == ((EOS,),)
    assert nothing.texts() == [""]


def test_parts_are_taken_and_joined_in_order(sampled):
    halves = [sampled.take(np.arange(200)), sampled.take(np.arange(200, 400))]
    assert np.array_equal(joined(halves).tokens_BT, sampled.tokens_BT)
    assert np.array_equal(joined(halves).prompt_ids_B, sampled.prompt_ids_B)


def test_a_class_is_counted_by_its_words(sampled):
    flattery = set(vocabulary.ids("flattery").tolist())
    assert sampled.count_B("flattery").tolist() == [sum(w in flattery for w in words) for words in words_of(sampled)]
