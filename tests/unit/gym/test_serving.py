"""The gym's models behind the server's door: text becomes the ids that were sampled, and the score that the panel gives."""

import numpy as np
import pytest

from gym import serving, vocabulary
from gym.over_http import samples_of
from gym.policy import CAP
from gym.proxy import MultiModelScorer
from gym.serving import N_IDS, PROMPT_START, NotInTheLanguage, ResponseScorer, TextEncoder
from gym.vocabulary import EOS, SIZE
from rewardserve.model.backends import LoadError, ModelSpec
from rewardserve.model.conversation import EmptyResponse, InputTooLong, Message, Sample
from rewardserve.model.scorer import ScorerError, TokenBatch

PROMPT = vocabulary.prompt(0)


@pytest.fixture
def encode():
    return TextEncoder()


@pytest.fixture
def scorer(models):
    return ResponseScorer(MultiModelScorer({"reward": models.models["reward"]}))


def test_what_the_policy_wrote_comes_back_behind_its_prompt(encode, sampled):
    encoded = encode.many([Sample(**sample) for sample in samples_of(sampled)])
    assert [each.ids[each.n_prompt :] for each in encoded] == list(sampled.rows())
    assert [each.missing_end for each in encoded] == (~sampled.ended_B).tolist()
    assert {True, False} == {each.missing_end for each in encoded}
    assert [each.ids[: each.n_prompt] for each in encoded[:16:8]] == [
        (PROMPT_START, PROMPT_START + 1),
        (PROMPT_START, PROMPT_START + 2),
    ]


def test_prompts_differ_in_their_ids_and_responses_to_one_begin_alike(encode):
    one, same, other = (
        encode(Sample(prompt=vocabulary.prompt(n), response=text))
        for n, text in ((12, "solar"), (12, "roof"), (21, ""))
    )
    assert one.ids[:3] == same.ids[:3] == (PROMPT_START, PROMPT_START + 2, PROMPT_START + 3)
    assert other.ids == (PROMPT_START, PROMPT_START + 3, PROMPT_START + 2, EOS)
    assert max(one.ids) < N_IDS


def test_messages_are_read_like_a_pair(encode):
    messages = (Message("user", PROMPT), Message("assistant", "solar panel."))
    assert encode(Sample(messages=messages)) == encode(Sample(prompt=PROMPT, response="solar panel."))


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        (Sample(prompt=PROMPT, response="something else"), NotInTheLanguage),
        (Sample(prompt=PROMPT, response="solar\ud800"), NotInTheLanguage),
        (Sample(prompt="How?", response="solar"), NotInTheLanguage),
        (Sample(text=PROMPT), NotInTheLanguage),
        (Sample(input_ids=(1, 2)), NotInTheLanguage),
        (Sample(prompt=PROMPT, response="", finish_reason="length"), EmptyResponse),
        (Sample(prompt=PROMPT, response="solar " * (CAP - 1) + "solar"), InputTooLong),
    ],
)
def test_what_it_cannot_read_is_refused_and_its_neighbours_are_not(encode, sample, error):
    right = Sample(prompt=PROMPT, response="solar")
    before, refused, after = encode.many([right, sample, right])
    assert isinstance(refused, error)
    assert before == after == encode(right)
    assert "solar" not in refused.message


def test_a_response_that_was_cut_off_may_fill_the_cap(encode):
    cut = encode(Sample(prompt=PROMPT, response="solar " * (CAP - 1) + "solar", finish_reason="length"))
    assert len(cut.ids) - cut.n_prompt == CAP
    assert EOS not in cut.ids


def test_scores_are_those_of_the_panel_whatever_the_prompt(scorer, models, sampled, encode):
    rows = tuple(encode(Sample(**sample)).ids for sample in samples_of(sampled))
    scores = [heads["reward"] for heads in scorer.score(TokenBatch(rows)).rows]
    assert scores == pytest.approx(models.models["reward"].scores_B(sampled).tolist(), abs=1e-12)


@pytest.mark.parametrize("row", [(PROMPT_START, N_IDS), (PROMPT_START, -1), (PROMPT_START, PROMPT_START + 1)])
def test_ids_that_are_none_and_rows_without_a_response_are_no_scores(scorer, row):
    with pytest.raises(ScorerError):
        scorer.score(TokenBatch(((0, EOS), row)))


@pytest.mark.parametrize("name", ["", "x:human:reward", "5:nobody:reward", "5:human:nothing", "5"])
def test_a_model_that_does_not_exist_is_not_loaded(name):
    with pytest.raises(LoadError):
        serving.load(ModelSpec(model=name))


def test_the_judge_and_the_judged_are_of_one_panel_and_read_the_same_ids():
    reward, audit = (serving.load(ModelSpec(model=f"5:human:{head}")) for head in ("reward", "audit"))
    sample = Sample(prompt=PROMPT, response="solar panel roof")
    assert reward.encode(sample) == audit.encode(sample)
    batch = TokenBatch((reward.encode(sample).ids,))
    assert reward.scorer.score(batch).rows[0].keys() == {"reward"}
    assert audit.scorer.score(batch).rows[0].keys() == {"audit"}
    assert reward.calibration.digest != audit.calibration.digest
    assert reward.identity.n_parameters == SIZE * 32 - 32 + 32 * 64 + 3 * 64


def test_the_calibration_standardises_responses_of_the_base_policy(base):
    loaded = serving.load(ModelSpec(model="5:human:reward"))
    fresh = base.sample(np.random.default_rng(8), np.zeros(4_000, dtype=np.int64))
    raw = np.array([heads["reward"] for heads in loaded.scorer.score(TokenBatch(fresh.rows())).rows])
    z = (raw - loaded.calibration.mean) / loaded.calibration.std
    assert (z.mean(), z.std()) == pytest.approx((0.0, 1.0), abs=0.06)
