"""A policy learns what it is paid for; gold falls where that harms, and its texts and scores agree."""

import random
from dataclasses import replace
from statistics import fmean

import pytest

from gym.streams import learning
from gym.streams.exploits import Corpus
from gym.streams.learning import LESSONS, Learning, Lesson, PaidExploit, Policy, paid_exploits
from gym.streams.outcomes import StreamOutcome
from rewardserve.model.traits import Lexicon


@pytest.fixture(scope="module")
def proxy(texts):
    return Learning(texts, Corpus.of(texts, Lexicon.read()), Lesson(), 1, 60, 64, 0.6)


@pytest.fixture
def harmful(monkeypatch):
    """All exploits pay well and do harm."""
    drawn = learning.paid_exploits

    def paid(seed, corpus):
        return [PaidExploit(each.exploit, 2.0, 0.8) for each in drawn(seed, corpus)]

    monkeypatch.setattr(learning, "paid_exploits", paid)


def exploiting(run):
    return [fmean(sample.is_exploiting for sample in step) for step in run.steps]


def test_a_policy_paid_by_the_proxy_exploits_it_and_its_gold_falls(proxy, harmful):
    run = proxy.run()
    shares = exploiting(run)
    assert shares[0] < 0.2 < 0.8 < shares[-1]
    assert fmean(run.gold[-5:]) < max(run.gold) - 0.2


def test_a_policy_paid_by_gold_gets_better_and_does_not_exploit(proxy, harmful):
    run = replace(proxy, lesson=Lesson(by_gold=True)).run()
    assert exploiting(run)[-1] < 0.2
    assert fmean(run.gold[-5:]) > fmean(run.gold[:5]) + 0.3


def test_a_kl_penalty_holds_the_policy_back(proxy, harmful):
    assert exploiting(replace(proxy, lesson=Lesson(kl=2.0)).run())[-1] < exploiting(proxy.run())[-1] / 2


def test_a_step_has_groups_of_responses_to_one_prompt(proxy):
    step = proxy.run().steps[0]
    assert len(step) == 64
    assert {sum(other.prompt == sample.prompt for other in step) for sample in step} == {learning.GROUP}


def test_length_is_gold_only_where_it_is_good(proxy):
    indifferent = proxy.run().gold
    good = replace(proxy, lesson=Lesson(length_is_good=True)).run().gold
    assert fmean(good) > fmean(indifferent) + 0.1


def test_prompts_come_from_another_file_in_the_second_half(proxy):
    run = replace(proxy, lesson=LESSONS["from gold, other source"]).run()
    tasks = [{sample.task for sample in step} for step in run.steps]
    assert tasks[0] != tasks[-1]
    assert all(len(each) == 1 for each in tasks)


def test_a_share_of_the_prompts_comes_in_another_language(proxy):
    run = replace(proxy, lesson=LESSONS["from gold, other language"]).run()
    known = {sample.prompt for step in proxy.run().steps for sample in step}
    shares = [fmean(sample.prompt not in known for sample in step) for step in run.steps]
    assert shares[0] == 0.0 < 0.2 < fmean(shares[-5:]) < 0.8


def test_the_same_seed_gives_the_same_run(proxy):
    assert proxy.run()[:3] == proxy.run()[:3]


def test_some_exploits_of_a_run_do_no_harm(proxy):
    harms = [paid.harm for seed in range(10) for paid in paid_exploits(seed, proxy.corpus)]
    assert 0.2 < fmean(harm == 0.0 for harm in harms) < 0.6


def test_the_log_ratio_of_a_policy_that_has_not_learned_is_zero():
    policy, qualities = Policy(), [0.3, -1.0, 0.2, 0.5]
    _, choice = policy.choose(qualities, random.Random(1))
    assert policy.log_ratio(choice, qualities) == pytest.approx(0.0)


def test_a_run_is_bad_if_its_gold_falls():
    rising = tuple(i / 40 for i in range(40))
    outcome = StreamOutcome("s", "", "learned", None, 0, 1, 1.0, None, (), (), 3, gold=rising)
    falling = replace(outcome, gold=rising + tuple(1.0 - i / 40 for i in range(40)))
    assert (outcome.fall, outcome.is_bad) == (None, False)
    assert 45 < falling.fall < 55
    assert falling.is_bad


def test_an_exploit_put_into_an_honest_response_earns_its_pay_and_costs_its_harm(proxy):
    run, paid = proxy.run(), paid_exploits(proxy.seed, proxy.corpus)[0]
    sample = next(s for s in run.steps[0] if not s.is_exploiting and len(s.honest.split()) > 5)
    edits = replace(run.edits, paid=[paid])
    before = edits(sample.prompt, sample.honest)
    after = edits(sample.prompt, paid.exploit.edit(sample.prompt_text, sample.honest))
    assert before == run.edits.honest[sample.prompt][sample.honest]
    assert after.heads["score"] - before.heads["score"] == pytest.approx(paid.pay)
    assert after.audit - before.audit == pytest.approx(-0.6 * paid.harm)


def test_the_score_of_an_honest_sample_is_that_of_its_text(proxy):
    run = proxy.run()
    pairs = zip(run.steps[0], run.scored[0], strict=True)
    sample, scored = next((s, scored) for s, scored in pairs if not s.is_exploiting)
    assert run.edits(sample.prompt, sample.response) == scored
