"""Traits of the gym's responses, against what the traits say of each response alone."""

import numpy as np

from gym import vocabulary
from gym.features import traits_of
from gym.rewards import calibration_data
from rewardserve.model.traits import NO_LEXICON, Lexicon, text_traits, token_traits


def test_every_response_has_the_traits_of_its_ids_and_its_text(sampled):
    lexicon = Lexicon.read()
    looks = traits_of(sampled, lexicon)
    assert len(looks) == len(sampled)
    for i in (0, 17, 399):
        prompt, text = vocabulary.prompt(int(sampled.prompt_ids_B[i])), sampled.texts()[i]
        ids = token_traits(sampled.rows()[i], not sampled.ended_B[i])
        assert looks[i] == (*ids, *text_traits(prompt, text, lexicon))


def test_without_a_lexicon_only_phrases_are_not_seen(sampled):
    with_phrases, without = np.array(traits_of(sampled, Lexicon.read())), np.array(traits_of(sampled, NO_LEXICON))
    assert with_phrases[:, 3:5].any()
    assert not without[:, 3:6].any()
    assert np.array_equal(with_phrases[:, [0, 1, 2, 7, 8]], without[:, [0, 1, 2, 7, 8]])


def test_calibrations_are_fitted_on_the_same_traits(base):
    against = calibration_data(base, n=200)
    assert np.array_equal(against.traits_NT, np.array(traits_of(against.responses, Lexicon.read())))
