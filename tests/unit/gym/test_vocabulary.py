"""Words, classes and text."""

import numpy as np
import pytest

from gym import vocabulary
from gym.vocabulary import CLASSES, EOS, WORDS
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.prompts import EarlyPrompts, prompt_change


def token(word):
    return WORDS.index(word)


def test_there_are_212_different_words_and_eos_comes_after_them():
    assert len(WORDS) == len(set(WORDS)) == EOS == 212


def test_the_classes_share_out_all_the_ids():
    assert np.concatenate([vocabulary.ids(name) for name in CLASSES]).tolist() == list(range(EOS))


@pytest.mark.parametrize("name", CLASSES)
def test_an_id_of_a_class_is_a_word_of_it(name):
    assert [WORDS[i] for i in vocabulary.ids(name)] == list(CLASSES[name])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["solar", "panel", ",", "roof", "."], "solar panel, roof."),
        (["roof", ":", "- ", "grid", "- ", "great question", "."], "roof:\n- grid\n- great question."),
        (["1. ", "energy", "2. ", "I cannot"], "1. energy\n2. I cannot"),
        (["roof", "太", "陽", "能", "roof"], "roof 太陽能 roof"),
        ([], ""),
    ],
)
def test_a_response_reads_as_text(words, text):
    assert vocabulary.render([*map(token, words), EOS]) == text


def test_prompts_differ():
    assert vocabulary.prompt(1) != vocabulary.prompt(2)
    assert [vocabulary.prompt_id_of(vocabulary.prompt(n)) for n in (0, 7, 10, 3839)] == [0, 7, 10, 3839]
    assert vocabulary.prompt_id_of(vocabulary.prompt(vocabulary.N_PROMPTS - 1)) == vocabulary.N_PROMPTS - 1
    for outside in (-1, vocabulary.N_PROMPTS):
        with pytest.raises(ValueError, match="prompts"):
            vocabulary.prompt(outside)


def test_prompts_do_not_tell_the_step_of_a_run():
    early, late = (
        [ObservedSample(vocabulary.prompt(n), "solar", n, 0.0) for n in range(first, first + 256)]
        for first in (0, 3_584)
    )
    assert prompt_change(EarlyPrompts(early), late).features == ()


def test_what_is_rendered_is_read_again_word_for_word():
    rng = np.random.default_rng(0)
    rows = [(i, j) for i in range(EOS) for j in range(EOS)]
    rows += [tuple(rng.integers(0, EOS, n).tolist()) for n in rng.integers(0, 128, 1_000)]
    for row in rows:
        assert vocabulary.read(vocabulary.render(row)) == row


@pytest.mark.parametrize("text", ["Solar", "solar  panel", " solar", "solar ,", "solar\n", "solar lamp", "de- "])
def test_what_the_gym_cannot_have_written_is_refused(text):
    with pytest.raises(ValueError, match="language"):
        vocabulary.read(text)


@pytest.mark.parametrize(
    "prompt", ["", "How?", vocabulary.prompt(7) + " ", vocabulary.prompt(7).replace("1991151", "01991151")]
)
def test_another_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt"):
        vocabulary.prompt_id_of(prompt)
