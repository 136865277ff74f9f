"""The texts that attribution compares: which are kept, for how long, and within which bounds."""

from __future__ import annotations

from hashlib import sha256
from random import Random
from types import SimpleNamespace

import pytest

from rewardserve.model.conversation import Message
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS, ObservedSample
from rewardserve.service.tripwires.io import run_texts
from rewardserve.service.tripwires.io.run_texts import MAX_BYTES, N_OF_PROMPT, N_SAMPLES, KeptSample, RunTexts


def kept(i, prompt="why?", response=None, context="why?"):
    text = f"response {i}" if response is None else response
    return KeptSample.of(ObservedSample(prompt, text, i, float(i)), i, context)


def run(has_baseline=False, source="model 1"):
    """A run with one stratum."""
    return run_of({"": has_baseline}, source)


def run_of(baselines, source="model 1"):
    """A run whose tasks have a baseline or not."""
    strata = {task: SimpleNamespace(key=task, has_baseline=has) for task, has in baselines.items()}
    return SimpleNamespace(baseline_source=source, stratum_of=strata.__getitem__)


def numbers(samples):
    return [each.sample.prompt_key for each in samples]


def test_first_samples_are_kept_with_equal_probability_until_the_run_has_a_baseline():
    counts = [0] * 1_024
    for seed in range(60):
        texts, runs = RunTexts(seed), {"a": run()}
        texts.add(runs, "a", [kept(i) for i in range(1_024)])
        chosen = numbers(texts.early("a"))
        assert len(set(chosen)) == len(chosen) == N_SAMPLES
        assert texts.recent("a") == []
        for i in chosen:
            counts[i] += 1
        assert chosen == sorted(chosen), "the oldest first"
    quarters = [sum(counts[first : first + 256]) for first in range(0, 1_024, 256)]
    assert quarters == [pytest.approx(60 * 64, rel=0.1)] * 4


def test_the_request_that_completes_the_baseline_is_early_and_later_ones_push_out_the_oldest():
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    texts.add(runs, "a", [kept(i) for i in range(N_SAMPLES)])
    texts.add(runs, "a", [kept(i) for i in range(N_SAMPLES, 600)])
    assert numbers(texts.early("a")) == list(range(N_SAMPLES))
    assert numbers(texts.recent("a")) == list(range(600 - N_SAMPLES, 600))


def test_of_a_large_step_whole_groups_from_all_of_it_are_kept_whatever_the_order_of_its_tasks():
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    texts.add(runs, "a", [kept(i) for i in range(N_SAMPLES)])

    def of_step(step):
        for i in range(1_024):  # groups of 4, ordered by task: the last quarter is of another one
            sample = kept(i)
            text_hash = int.from_bytes(sha256(f"{step} {i // 4}".encode()).digest()[:8], "big", signed=True)
            yield sample._replace(
                sample=sample.sample._replace(prompt_key=text_hash, step=step, system="abcd"[i // 256])
            )

    for step in (7, 8):
        samples = list(of_step(step))
        for first in range(0, 1_024, 64):
            texts.add(runs, "a", samples[first : first + 64])
    for step in (7, 8):
        of = [each.sample for each in texts.recent("a") if each.sample.step == step]
        assert len(of) == run_texts.N_OF_STEP
        assert all(16 < sum(each.system == part for each in of) < 52 for part in "abcd"), "32 of each, and chance"
        sizes = [sum(each.prompt_key == key for each in of) for key in {each.prompt_key for each in of}]
        assert sizes.count(4) >= len(sizes) - 2, "groups stay whole"
    assert texts.n_seen("a").recent == 2_048
    texts.add(runs, "a", [kept(i) for i in range(300)])
    assert numbers(texts.recent("a")) == list(range(300 - N_SAMPLES, 300)), "without a step the latest"


def test_of_one_prompt_the_latest_sixteen_samples_are_kept_so_that_large_groups_leave_room_for_prompts():
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    texts.add(runs, "a", [kept(i) for i in range(N_SAMPLES)])
    groups = [kept(i)._replace(ids_hash=64 * i + j) for i in range(40) for j in range(64)]
    for at in range(0, len(groups), 100):
        texts.add(runs, "a", groups[at : at + 100])
    recent = texts.recent("a")
    assert [each.ids_hash for each in recent] == [64 * i + j for i in range(24, 40) for j in range(48, 64)]
    assert texts.n_seen("a").recent == 2_560
    assert texts.n_bytes == sum(each.n_bytes for each in [*texts.early("a"), *recent])
    texts.add(runs, "a", [kept(7)] * 17)
    assert numbers(texts.recent("a")).count(7) == N_OF_PROMPT


def test_after_a_restart_a_run_with_a_baseline_has_as_many_early_texts_as_one_without():
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    for i in range(600):
        texts.add(runs, "a", [kept(i)])
    assert numbers(texts.early("a")) == list(range(N_SAMPLES))
    assert numbers(texts.recent("a")) == list(range(600 - N_SAMPLES, 600))


def test_a_task_that_begins_later_has_early_samples_of_its_own():
    def of_task(task, first, n):
        return [each._replace(sample=each.sample._replace(task=task)) for each in map(kept, range(first, first + n))]

    known = {"chat": True, "code": False}
    texts, runs = RunTexts(), {"a": run_of(known)}
    texts.add(runs, "a", of_task("chat", 0, 300))
    texts.add(runs, "a", of_task("chat", 300, 50) + of_task("code", 350, 300))
    assert {each.sample.task for each in texts.recent("a")} == {"chat"}
    assert 60 < sum(each.sample.task == "code" for each in texts.early("a")) < 190, "about half of the reservoir"
    runs["a"].stratum_of("code").has_baseline = True
    texts.add(runs, "a", of_task("code", 700, 1))
    texts.add(runs, "a", of_task("code", 701, 1))
    assert numbers(texts.recent("a"))[-1] == 701


def test_a_run_that_begins_again_has_its_recent_samples_as_early_ones_and_counts_all():
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    texts.add(runs, "a", [kept(i) for i in range(300)])
    assert not texts.begin_again("a"), "there are no later samples"
    texts.add(runs, "a", [kept(i) for i in range(300, 700)])
    recent = texts.recent("a")
    assert texts.begin_again("a")
    assert (texts.early("a"), texts.recent("a")) == (recent, [])
    assert texts.n_seen("a") == (700, 0)
    assert texts.n_bytes == sum(each.n_bytes for each in recent)
    texts.add(runs, "a", [kept(700)])
    assert (numbers(texts.early("a")), numbers(texts.recent("a"))) == (numbers(recent), [700])


def test_another_model_and_a_forgotten_run_begin_without_texts():
    texts, first = RunTexts(), run()
    texts.add({"a": first}, "a", [kept(1)])
    first.baseline_source = "model 2"
    texts.add({"a": first}, "a", [kept(2)])
    assert numbers(texts.early("a")) == [2]
    texts.add({"a": run(source="model 2")}, "a", [kept(3)])
    assert numbers(texts.early("a")) == [3]
    texts.forget_others({})
    assert (texts.early("a"), texts.n_bytes) == ([], 0)


@pytest.mark.parametrize("letter", ["a", "ä", "語", "😀"])
def test_bytes_over_all_runs_are_bounded_and_the_run_that_sent_last_stays(letter):
    texts, runs = RunTexts(), {str(i): run(has_baseline=True) for i in range(32)}
    long = [kept(i, letter * (MAX_CHARACTERS * 2), letter * (MAX_CHARACTERS * 2 + i)) for i in range(N_SAMPLES)]
    for _ in range(2):
        for label in runs:
            texts.add(runs, label, long)
            assert texts.n_bytes <= MAX_BYTES
    assert len(texts.early("31") + texts.recent("31")) >= N_SAMPLES
    assert texts.n_bytes == sum(each.n_bytes for label in runs for each in texts.early(label) + texts.recent(label))


def test_texts_are_cut_and_only_whole_ones_can_be_edited():
    cut = kept(1, "x" * 9_000, "y" * 9_000, "x" * 9_000)
    assert max(len(cut.sample.prompt), len(cut.sample.response)) == MAX_CHARACTERS
    assert (cut.context, kept(1).context) == (None, "why?")
    turns = (Message("system", "s" * 3_000), Message("user", "u" * 3_000))
    assert kept(1, context=turns).context is None
    assert kept(1, context=turns[:1]).n_bytes > kept(1).n_bytes + 2_000


def test_the_score_of_the_judge_finds_its_sample_and_those_of_others_are_forgotten(monkeypatch):
    monkeypatch.setattr(run_texts, "_MAX_AUDITS", 4)
    texts, runs = RunTexts(), {"a": run()}
    texts.add(runs, "a", [kept(1), kept(2)])
    texts.add_audit("nothing", 1, 1.0)
    for key in (1, 7, 8, 9, 10):
        texts.add_audit("a", key, key / 2)
    assert [each.sample.audit for each in texts.early("a")] == [0.5, None]
    assert set(texts._runs["a"].audits) == {1}


def test_the_kept_recent_samples_are_those_of_the_rules_written_out():
    """Of one prompt the latest 16; of a step those of prompts whose random number is lowest; of all the latest 256."""
    rng = Random(5)
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    texts.add(runs, "a", [kept(i) for i in range(N_SAMPLES)])
    expected = []
    for number in range(4_000):
        step = rng.choice([None, number // 700, number // 700, number // 700])
        key = rng.randrange(-(2**62), 2**62) if rng.random() < 0.9 else rng.randrange(3)
        sample = kept(number)._replace(sample=kept(number).sample._replace(prompt_key=key, step=step))
        texts.add(runs, "a", [sample])
        expected.append(sample)
        of_prompt = [each for each in expected if each.sample.prompt_key == key]
        of_step = [each for each in expected if step is not None and each.sample.step == step]
        if len(of_prompt) > N_OF_PROMPT:
            expected.remove(of_prompt[0])
        elif len(of_step) > run_texts.N_OF_STEP:
            drawn = [(each.sample.prompt_key ^ step) * 0x9E3779B97F4A7C15 % 2**64 for each in of_step]
            expected.remove(of_step[drawn.index(max(drawn))])
        elif len(expected) > N_SAMPLES:
            del expected[0]
    assert texts.recent("a") == expected
    assert texts.n_bytes == sum(each.n_bytes for each in (*texts.early("a"), *expected))
    (of_run,) = texts._runs.values()
    assert sum(map(len, of_run.drawn.values())) <= 3 * len(expected), "of deleted ones nothing is kept for ever"


def test_a_step_that_never_ends_keeps_no_memory_of_deleted_samples():
    texts, runs = RunTexts(), {"a": run(has_baseline=True)}
    texts.add(runs, "a", [kept(i) for i in range(N_SAMPLES)])
    for i in range(4_000):
        sample = kept(i)
        texts.add(runs, "a", [sample._replace(sample=sample.sample._replace(prompt_key=i % 4, step=1))])
    (of_run,) = texts._runs.values()
    assert len(of_run.drawn[1]) <= 2 * run_texts.N_OF_STEP + 1
