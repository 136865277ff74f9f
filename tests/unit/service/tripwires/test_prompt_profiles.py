"""Changes of prompts are told apart from changes of responses, and never forgotten baselines, by prompts alone."""

from __future__ import annotations

from random import Random

import pytest

from rewardserve.model.conversation import Message, Sample
from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.prompt_profiles import (
    FEATURES,
    MAX_PROFILES,
    MAX_PROMPTS,
    FeatureSums,
    PromptProfiles,
    given_text,
    prompt_features,
)
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits

WORDS = ("river", "stone", "garden", "window", "market", "teacher", "letter", "engine", "winter", "bridge")


def chat(rng):
    return f"What {rng.choice(('is', 'was'))} the {' '.join(rng.choices(WORDS, k=rng.randint(3, 9)))}?"


def code(rng):
    return f"Write a function f{rng.randint(1, 99)}(x):\n  return x[{rng.randint(1, 9)}] * {rng.random():.3f};\n" * 3


def summary(rng):
    return "SUMMARY. " + ". ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() for _ in range(20)) + "."


SOURCES = {"chat": chat, "code": code, "summary": summary}
PROMPTS: dict[int, str] = {}
"""Texts of the prompts of all streams, by hash."""
LENGTHS = {"chat": 3.0, "code": 6.0, "summary": 4.5}


def mixed_prompt(share):
    """A prompt in which so large a share of the sentences is of another kind: slow change has no two sources."""

    def prompt(rng):
        return " ".join(summary(rng)[:60] if rng.random() < share else chat(rng) for _ in range(6))

    return prompt


def stream(seed, sources, group=1, shift=lambda step: 0.0, batch=128):
    """Steps of samples whose responses follow the source of their prompts. `shift`: of an exploit."""
    rng, steps = Random(seed), []
    for step, source in enumerate(sources):
        samples = []
        for _ in range(batch // group):
            prompt_hash = rng.getrandbits(60)
            PROMPTS[prompt_hash] = SOURCES[source](rng)
            for _ in range(group):
                length = rng.gauss(LENGTHS[source] + shift(step), 0.5)
                traits = tuple(length if name == "length" else 0.0 for name in TRAITS)
                samples.append(
                    SampleFeatures(
                        prompt_hash,
                        None,
                        rng.random(),
                        rng.gauss(0, 1),
                        is_capped=False,
                        traits=traits,
                        text_digest=rng.getrandbits(60),
                    )
                )
        steps.append(samples)
    return steps


def watched(steps, size=128, monitor=None, prompts=PROMPTS):
    """The run after a stream, and its alerts as (step, wire)."""
    monitor, alerts = monitor or RunMonitor(BaselineSource(), MonitorLimits()), []
    for i, step in enumerate(steps):
        for at in range(0, len(step), size):
            alerts += [
                (i, each.wire) for each in monitor.observe("a", i, step[at : at + size], float(i), prompts=prompts)
            ]
    return monitor.runs["a"], alerts


def closed(profiles, texts):
    """The profile of a window of these prompts."""
    for i, text in enumerate(texts):
        profiles.add(i, text)
    return profiles.close_window()


def blind(steps):
    """Steps at whose end the samples are compared with nothing."""
    monitor, n = RunMonitor(BaselineSource(), MonitorLimits()), 0
    for i, step in enumerate(steps):
        monitor.observe("a", i, step, float(i), prompts=PROMPTS)
        run = monitor.runs["a"]
        n += not run.stratum_of("").has_baseline
    return n


# -- which text is read -----------------------------------------------------------------------------------------------


def turns(*pairs):
    return tuple(Message(role, content) for role, content in pairs)


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (Sample(prompt="why?", response="so"), "why?"),
        (Sample(prompt=turns(("system", "be"), ("user", "why?")), response="so"), "be\x1e\nwhy?"),
        (Sample(messages=turns(("user", "why?"), ("assistant", "so"))), "why?"),
        (Sample(prompt=turns(("user", "a"), ("assistant", "b"), ("user", "c")), response="d"), "a"),
        (Sample(messages=turns(("user", "a"), ("tool", "b"), ("user", "c"), ("assistant", "d"))), "a"),
        (Sample(text="User: a\nBot: b", n_prompt_chars=14), ""),
        (Sample(text="a"), ""),
        (Sample(input_ids=(1, 2)), ""),
    ],
)
def test_only_turns_that_no_policy_has_a_part_in_are_read(sample, text):
    assert given_text(sample) == text


def test_features_are_numbers_of_the_text_alone():
    features = dict(zip(FEATURES, prompt_features("Why 12?\nNo."), strict=True))
    assert features["length"] == pytest.approx(2.3979, abs=1e-4), "a number has one digit"
    assert (features["lines"], features["question"]) == (pytest.approx(0.6931, abs=1e-4), 1.0)
    assert (features["digits"], features["capitals"], features["spaces"]) == (1 / 10, 0.12, 1 / 10)
    assert features["bytes a character"] == 1.0
    assert sum(value for name, value in features.items() if name.startswith("first word")) == 1.0
    assert len(prompt_features("")) == len(FEATURES)
    assert prompt_features("\ud800") != prompt_features("")
    assert dict(zip(FEATURES, prompt_features("語"), strict=True))["bytes a character"] == 3.0


# -- a change ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 8, 16])
@pytest.mark.parametrize("to", ["code", "summary"])
def test_other_prompts_are_a_note_with_the_step_and_no_alert(group, to):
    sources = ["chat"] * 20 + [to] * 30
    run, alerts = watched(stream(1, sources, group))
    assert alerts == [(20, "prompts_changed")]
    assert [each.first_step for each in run.strata.values()] == [0, 20]
    assert run.strata["\n1"].baseline.stats["length"].mean == pytest.approx(LENGTHS[to], abs=0.2)


def test_without_features_of_prompts_the_same_is_an_alert():
    steps = stream(1, ["chat"] * 20 + ["code"] * 30)
    assert {wire for _, wire in watched(steps, prompts={})[1]} == {"length_high"}


def test_an_exploit_changes_no_prompt_and_is_seen():
    _, alerts = watched(stream(2, ["chat"] * 60, shift=lambda step: 0.02 * max(0, step - 10)))
    assert [wire for _, wire in alerts] == ["length_high"]


def test_what_tripped_before_the_prompts_changed_stays_and_an_exploit_that_goes_on_is_seen():
    sources = ["chat"] * 30 + ["code"] * 40
    before, alerts = watched(stream(3, sources, shift=lambda step: 0.9 * (step > 12)))
    assert alerts[0][1] == "length_high"
    assert alerts[1] == (30, "prompts_changed")
    assert set(before.alerts) == {"length_high", "prompts_changed"}
    _, after = watched(stream(4, sources, shift=lambda step: 0.02 * max(0, step - 25)))
    assert [wire for _, wire in after] == ["prompts_changed", "length_high"]


@pytest.mark.parametrize("seed", range(2))
def test_requests_of_one_sixteen_and_all_samples_change_at_the_same_step(seed):
    steps = stream(seed, ["chat"] * 12 + ["code"] * 12 + ["chat"] * 20, shift=lambda step: 0.05 * max(0, step - 24))
    one, sixteen, whole = (watched(steps, size)[1] for size in (1, 16, 128))
    assert one == sixteen == whole
    assert {wire for _, wire in whole} == {"prompts_changed", "length_high"}


def test_a_window_of_both_sources_does_not_stand_for_the_second():
    """Steps of 96 samples: the windows of 128 do not end with the steps."""
    run, alerts = watched(stream(5, ["chat"] * 21 + ["code"] * 40, batch=96), size=96)
    assert [wire for _, wire in alerts] == ["prompts_changed"]
    assert run.strata["\n1"].baseline.stats["length"].mean == pytest.approx(6.0, abs=0.2)


def test_an_acknowledged_note_comes_again_with_the_next_change():
    monitor = RunMonitor(BaselineSource(), MonitorLimits())
    first = stream(6, ["chat"] * 12 + ["code"] * 12)
    assert watched(first, monitor=monitor)[1] == [(12, "prompts_changed")]
    assert monitor.acknowledge("a", "prompts_changed")
    assert watched(stream(7, ["code"] * 6 + ["summary"] * 12), monitor=monitor)[1] == [(6, "prompts_changed")]


def mixed(seed, shares_of, n_prompts, block=1, n_windows=60):
    """Windows in which a shuffled mix was found to have changed. `block`: neighbours of one source."""
    rng, profiles, changed = Random(seed), PromptProfiles(), []
    for window in range(n_windows):
        kinds = [
            kind for _ in range(0, n_prompts, block) for kind in rng.choices([*SOURCES], shares_of(window)) * block
        ]
        before = profiles.n_changes
        profile = closed(profiles, [SOURCES[kind](rng) for kind in kinds])
        changed += [window] * (profiles.n_changes - before)
        if profiles.profiles[profile].total.n >= 64 and profiles.profiles[profile].n_windows >= 4:
            profiles.complete(profile)
    return changed


@pytest.mark.parametrize("n_prompts", [8, 64])
@pytest.mark.parametrize("block", [1, 4, 8])
def test_a_shuffled_mix_is_no_change_although_the_mix_of_a_step_varies(n_prompts, block):
    for seed, shares in enumerate([(1, 1, 0), (4, 1, 1), (1, 3, 2), (3, 1, 0)]):
        assert mixed(seed, lambda _, shares=shares: shares, n_prompts, block) == [], (seed, shares)


@pytest.mark.parametrize(("n_prompts", "least"), [(64, 0.3), (16, 0.6), (8, 0.6)])
@pytest.mark.parametrize("at", [10, 20, 40])
def test_another_source_of_a_part_of_the_prompts_is_seen_once(n_prompts, least, at):
    for seed, share in enumerate((least, 1.0)):
        (seen,) = mixed(
            seed, lambda window, share=share: (1 - share * (window >= at), 0, share * (window >= at)), n_prompts
        )
        assert at <= seen <= at + 8, (share, seen)


def test_prompts_of_a_step_that_is_sorted_by_source_are_read_from_all_of_it():
    profiles, rng = PromptProfiles(), Random(15)
    for window in range(12):
        source = code if window < 8 else summary
        profiles.window.clear()
        for _ in range(64):
            profiles.add(rng.getrandbits(60), chat(rng))
        for _ in range(64):
            profiles.add(rng.getrandbits(60), source(rng))
        assert 20 <= len(profiles.window) <= MAX_PROMPTS
        profile = profiles.close_window()
        if window == 3:
            profiles.complete(0)
        assert profile == (window >= 8), window


def test_prompts_whose_task_is_named_from_then_on_have_not_changed():
    """A half of the prompts is code, and has a task from step 20 on: the others alone are unlike both, and learn a new baseline."""
    first, second = stream(12, ["chat"] * 60, batch=64), stream(13, ["code"] * 60, batch=64)
    steps = [
        [*chats, *(each._replace(task="code" * (i >= 20)) for each in codes)]
        for i, (chats, codes) in enumerate(zip(first, second, strict=True))
    ]
    run, alerts = watched(steps)
    assert alerts == []
    assert [(each.task, each.profile, each.has_baseline) for each in run.strata.values()] == [
        ("", 0, True),
        ("code", 0, True),
        ("", 1, True),
    ]
    changed = [[each._replace(task="") for each in step] for step in steps[:20]]
    assert [wire for _, wire in watched(changed + stream(14, ["chat"] * 20))[1]] == ["prompts_changed"]


# -- nasty runs -------------------------------------------------------------------------------------------------------


def test_a_source_that_comes_back_has_its_baseline_and_no_change():
    sources = (["chat"] * 8 + ["code"] * 8) * 4
    run, alerts = watched(stream(8, sources))
    assert alerts == [(8, "prompts_changed")]
    assert len(run.strata) == 2
    assert blind(stream(8, sources)) == 3 + 1


@pytest.mark.parametrize("n_before", [0, 10])
def test_sources_that_alternate_window_by_window_leave_the_run_watched(n_before):
    sources = ["chat"] * n_before + ["chat", "code"] * 30
    exploit = stream(9, sources, shift=lambda step: 0.03 * max(0, step - 25))
    assert blind(exploit) <= 8
    assert "length_high" in {wire for _, wire in watched(exploit)[1]}
    assert {wire for _, wire in watched(stream(9, sources))[1]} <= {"prompts_changed"}


def test_prompts_that_never_stop_changing_are_learned_a_bounded_number_of_times():
    profiles, rng = PromptProfiles(), Random(10)
    n_learning = 0
    for window in range(400):
        kind, times = divmod(window // 14, 9)
        profile = closed(profiles, [f"{'xJ{A'[kind] * 9 * 2**times} {rng.random()}" for _ in range(64)])
        n_learning += not profiles.profiles[profile].is_complete
        if profiles.profiles[profile].n_windows >= 4:
            profiles.complete(profile)
    assert len(profiles.profiles) == MAX_PROFILES
    assert n_learning <= 6 * MAX_PROFILES


def test_slow_change_of_prompts_is_seen_by_the_latest_windows_together():
    rng, profiles = Random(11), PromptProfiles()
    for window in range(80):
        share = max(0, window - 10) / 70
        profile = closed(profiles, [mixed_prompt(share)(rng) for _ in range(64)])
        if profiles.profiles[profile].n_windows >= 4:
            profiles.complete(profile)
    assert 1 <= profiles.n_changes < MAX_PROFILES - 1


@pytest.mark.parametrize("n_prompts", [8, 16, 64, 128])
def test_prompts_of_one_source_are_no_change(n_prompts):
    for source in SOURCES.values():
        rng, profiles = Random(12), PromptProfiles()
        for window in range(300):
            closed(profiles, [source(rng) for _ in range(n_prompts)])
            if window == max(3, 64 // n_prompts):
                profiles.complete(0)
        assert profiles.n_changes == 0


def windows_of(profiles, *windows):
    """Windows of these prompts, whose features but the first are 0. The profile of the last one."""
    for prompts in windows:
        profiles.window = {i: (x, *[0.0] * (len(FEATURES) - 1)) for i, x in enumerate(prompts)}
        profiles.close_window()
    return profiles.profiles[profiles.current]


def test_the_distance_is_the_largest_square_of_a_difference_in_standard_errors():
    """Reference: written out for one feature that differs, with as much variance within windows and none between them."""
    known = windows_of(PromptProfiles(), [float(i % 2) for i in range(64)], [float(i % 2) for i in range(64)])
    moved = FeatureSums.of([(float(i % 2) + 1.0, *[0.0] * (len(FEATURES) - 1)) for i in range(32)])
    assert known.distance(moved) == pytest.approx(1.0 / (0.25 * (1 / 128 + 1 / 32)))


def test_where_windows_differ_by_more_than_their_prompts_the_distance_is_smaller_by_that():
    """Reference: windows of 64 prompts whose means are 0 and 2 by turns, each with a variance of 1 within."""
    low, high = [i % 2 * 2.0 - 1.0 for i in range(64)], [i % 2 * 2.0 + 1.0 for i in range(64)]
    known = windows_of(PromptProfiles(), low, high, low, high)
    moved = FeatureSums.of([(x + 4.0, *[0.0] * (len(FEATURES) - 1)) for x in high])
    times_as_far = 2.0**2 / (1 / 64 + 1 / 64)
    assert known.distance(moved) == pytest.approx(5.0**2 / (1 / 256 + 1 / 64) / times_as_far)


@pytest.mark.parametrize(
    "numbered",
    [
        "Write function {step}-{k}.",
        "Session {step:06d}, day {step}. Describe the {word}.",
        "{n:06x} What is the {word}?",
    ],
)
def test_prompts_that_number_themselves_do_not_change(numbered):
    profiles, rng = PromptProfiles(), Random(5)
    for step in range(120):
        n = step << 14
        closed(
            profiles, [numbered.format(step=step, k=k, n=n + k, word=rng.choice(WORDS)) for k in range(step, step + 64)]
        )
        if step == 3:
            profiles.complete(0)
    assert profiles.n_changes == 0


def test_a_system_turn_that_keeps_length_and_first_word_is_another_profile():
    def steps(words, seed):
        rng, out = Random(seed), []
        for _ in range(12):
            prompts = [turns(("system", f"{words} {rng.randint(10, 99)}."), ("user", chat(rng))) for _ in range(32)]
            out.append([given_text(Sample(prompt=prompt, response="Yes.")) for prompt in prompts])
        return out

    def changes(*windows):
        profiles = PromptProfiles()
        for step in windows[:6]:
            closed(profiles, step)
        profiles.complete(0)
        for step in windows[6:]:
            closed(profiles, step)
        return profiles.n_changes

    same, other = steps("Answer in stale words, of chapter", 1), steps("Answer in least words, of chapter", 2)
    assert changes(*same, *steps("Answer in stale words, of chapter", 3)) == 0, "numbers are no change"
    assert changes(*same, *other) == 1


def test_few_prompts_change_nothing():
    profiles = PromptProfiles()
    closed(profiles, ["a"] * 8)
    profiles.complete(0)
    assert [closed(profiles, ["x" * 5000] * n) for n in (0, 3)] == [0, 0]
