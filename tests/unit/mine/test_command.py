"""A queue is blind whatever the number of responses, and names no feature that the model does not overpay."""

from __future__ import annotations

import numpy as np
import pytest

from rewardserve.compare.scoring import Scores
from rewardserve.mine import command
from rewardserve.mine.report import text_of
from rewardserve.mine.shared_features import find_shared
from rewardserve.model.conversation import Message, Sample
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.training.dataset.counterexamples import scores_path


def mined(folder, n_prompts, n_responses, **settings):
    """A queue of responses with random scores of model and judge, and the kinds of its pairs."""
    rng = np.random.default_rng(0)
    prompt_N = np.repeat(np.arange(n_prompts), n_responses)
    samples = tuple(
        Sample(messages=(Message("user", f"question {p}"), Message("assistant", f"answer {i}")))
        for i, p in enumerate(prompt_N)
    )
    scores = [Scores(name, "", tuple(rng.normal(size=len(samples))), {}) for name in ("model", "judge")]
    options = command.MineSettings(checkpoint="c", input=folder / "in.jsonl", out=folder / "queue.jsonl", **settings)
    return command.mine(options, command.Responses(samples, prompt_N), scores)


@pytest.mark.parametrize("n_responses", [3, 4, 5, 8])
def test_the_queue_has_its_share_of_controls_though_responses_are_few(tmp_path, n_responses):
    report = mined(tmp_path, 20, n_responses)
    share = report.n_controls / (report.n_controls + report.n_suspected)
    assert share >= 0.15
    assert report.n_suspected >= 8
    assert "warning" not in text_of(report)
    assert len(scores_path(tmp_path / "queue.jsonl").read_text().splitlines()) == report.n_controls + report.n_suspected


def test_no_response_is_in_two_rows_where_controls_are_drawn_first(tmp_path):
    report = mined(tmp_path, 20, 5)
    rows = (tmp_path / "queue.jsonl").read_text()
    assert report.n_suspected > 20, "prompts still give several pairs"
    assert all(rows.count(f'"answer {i}"') <= 1 for i in range(100))


def test_too_few_prompts_for_blind_rows_are_a_warning(tmp_path):
    report = mined(tmp_path, 1, 200, per_prompt=40)
    assert report.n_controls == 1
    assert report.n_controls_wanted > 1
    assert "warning: 1 control instead of" in text_of(report)
    assert "of 1 prompt, 1 of them controls" in text_of(report)


@pytest.mark.parametrize(
    ("of_model", "of_judge", "is_named"), [(-0.6, 1.1, False), (1.5, -1.5, True), (-0.6, -2.5, True)]
)
def test_a_shared_feature_is_one_that_the_model_pays_more_than_the_judge(of_model, of_judge, is_named):
    rng = np.random.default_rng(1)

    def sample(prompt, *, has):
        model, judge = rng.normal(scale=0.1) + of_model * has, rng.normal(scale=0.1) + of_judge * has
        words = " ".join(rng.choice(["red", "green", "blue", "black", "white", "grey", "pink", "teal"], size=8))
        return ObservedSample(f"question {prompt}", words + " kindly" * has, prompt, model, judge)

    suspected = [sample(i, has=i % 10 < 7) for i in range(300)]
    beside = [sample(i, has=i % 10 == 0) for i in range(300)]
    words = [each.words for each in find_shared(suspected, beside)[0] if "kindly" in each.words]
    assert bool(words) is is_named
    assert all((" standard deviations lower" in each) is (of_model < 0) for each in words)
