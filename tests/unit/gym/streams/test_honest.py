"""Honest streams have the wanted size and change, and no exploit."""

import pytest

from gym.streams.honest import HONEST, Plan
from gym.streams.texts import Texts
from gym.streams.worlds import Quality


@pytest.fixture
def plan(texts):
    return Plan(texts, 3, 12, 64, Quality({}, {}).is_better)


@pytest.mark.parametrize("name", HONEST)
def test_a_stream_has_the_wanted_steps_and_no_exploit(name, plan):
    steps = HONEST[name](plan)
    assert [len(step) for step in steps] == [64] * 12
    assert not any(s.is_exploiting or not s.response.strip() for step in steps for s in step)
    assert steps == HONEST[name](plan)


def test_groups_share_a_prompt(plan):
    assert all(
        len({s.prompt for s in step[:16]}) == 1 and len({s.response for s in step}) == 64
        for step in HONEST["groups_of_16"](plan)
    )


def test_the_source_changes_with_the_name_of_the_task(plan):
    steps = HONEST["other_source"](plan)
    first, last = ({s.task for step in half for s in step} for half in (steps[:6], steps[6:]))
    assert len(first) == len(last) == len(first | last) - 1


def test_responses_grow_to_twice_their_length(plan):
    steps = HONEST["longer"](plan)
    mean = [sum(len(s.response) for s in step) / len(step) for step in steps]
    assert 1.5 < sum(mean[-3:]) / sum(mean[:3]) < 2.3


def test_another_language_has_other_words_in_prompt_and_response(plan):
    last = HONEST["other_language"](plan)[-1]
    assert 0.2 < sum("river" not in s.prompt_text and "Write" not in s.prompt_text for s in last) / len(last) < 0.8


def test_improvement_takes_better_responses_more_and_more_often(texts):
    quality = Quality({}, {})
    steps = HONEST["improvement"](Plan(Texts(texts.pairs * 8), 3, 40, 64, quality.is_better))
    scores = [sum(quality(s.prompt, s.response) for s in step) / len(step) for step in steps]
    assert sum(scores[-10:]) / 10 - sum(scores[:10]) / 10 > 0.2
