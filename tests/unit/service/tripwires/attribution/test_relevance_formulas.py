"""Every number of prompt relevance, computed again pair by pair as its texts say, for streams of several kinds."""

from __future__ import annotations

import math
import random
from itertools import combinations, product
from statistics import fmean, pstdev

import pytest

from rewardserve.service.tripwires.attribution.clusters import StratifiedComparison, cluster
from rewardserve.service.tripwires.attribution.effects import z_of_t
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.prompts import EarlyPrompts, prompt_change, task_strata
from rewardserve.service.tripwires.attribution.relevance import EarlyTexts, compare_relevance
from rewardserve.service.tripwires.looks import critical_z

COMMON = ["the", "of", "and", "to", "in", "is", "that", "it", "for", "on", "as", "with"]


def words(rng, n):
    return ["".join(rng.choices("bdfgklmnprst", k=1)[0] + rng.choice("aeiou") for _ in range(3)) for _ in range(n)]


POOL = words(random.Random(0), 40)
"""Words of several prompts."""


def stream(
    seed, n_prompts, group, *, first=0, by_step=4, lost=0.0, tasks=("",), steps=True, han=False, pay=0.0, varied=False
):
    """Responses with some words of their prompts; a share `lost` of the prompts gets the same words instead."""
    rng, samples = random.Random(seed), []
    for i in range(n_prompts):
        topic = words(rng, rng.randint(2, 12)) + rng.sample(POOL, 3) if varied else words(rng, 7)
        prompt, is_lost = " ".join(rng.sample(COMMON, 5) + topic), rng.random() < lost
        for _ in range(group if isinstance(group, int) else rng.choice(group)):
            own = rng.sample(topic, rng.randint(0, 4)) + words(rng, rng.randint(0, 6))
            text = " ".join(rng.choices(COMMON, k=rng.randint(3, 9)) + (["world", "light"] * 4 if is_lost else own))
            if han:
                prompt, text = ("".join(chr(0x4E00 + hash_of(w)) for w in each.split()) for each in (prompt, text))
            step = (first + i) // by_step if steps else None
            score = rng.gauss(2.0, 0.7) + pay * is_lost
            samples.append(ObservedSample(prompt, text, seed * 1_000 + i, score, step=step, task=tasks[i % len(tasks)]))
    return samples


def hash_of(word):
    return sum(ord(c) * 31**k for k, c in enumerate(word)) % 400


def terms(text):
    """First five characters of each word; of Han each character with its successor."""
    if text.isascii():
        return [word[:5] for word in text.split()]
    return [text[i : i + 2] for i in range(len(text))]


def idf(texts):
    held = {word: sum(word in text for text in texts) for text in texts for word in text}
    return {word: math.log((len(texts) + 1) / (n + 0.5)) for word, n in held.items()}


def won(margins):
    return fmean(1.0 if each > 1e-9 else 0.5 if each >= -1e-9 else 0.0 for each in margins)


class Side:
    def __init__(self, samples):
        self.samples = samples
        self.words = [frozenset(terms(each.response)) for each in samples]
        self.places = {}
        for place, each in enumerate(samples):
            self.places.setdefault(each.prompt_key, []).append(place)
        self.groups = list(self.places.values())
        self.by_prompt, self.in_groups = self.matches(), self.groups_matched()

    def matches(self):
        prompts = [frozenset(terms(self.samples[group[0]].prompt)) for group in self.groups]
        n = len(prompts)
        weights = {w: v for w, v in idf(prompts).items() if sum(w in p for p in prompts) <= max(2.0, n / 4)}
        norms = [math.sqrt(sum(weights.get(w, 0.0) ** 2 for w in p)) or 1.0 for p in prompts]
        shared = []
        for response in self.words:
            row = [
                sum(weights.get(w, 0.0) for w in response & p) / norm for p, norm in zip(prompts, norms, strict=True)
            ]
            shared.append([each / (sum(row) or 1.0) for each in row])
        return {
            (one, other): won(
                shared[a][one] + shared[b][other] - shared[a][other] - shared[b][one]
                for a, b in product(self.groups[one], self.groups[other])
            )
            for one, other in combinations(range(n), 2)
        }

    def alike(self, a, b):
        both, either = self.words[a] & self.words[b], self.words[a] | self.words[b]
        return sum(self.weights[w] for w in both) / sum(self.weights[w] for w in either)

    def groups_matched(self):
        self.weights = idf(self.words)
        several = [i for i, group in enumerate(self.groups) if len(group) > 1]
        step_of = [self.samples[group[0]].step for group in self.groups]
        found = {}
        for at, one in enumerate(several):
            of_step = [each for each in several if step_of[each] == step_of[one]]
            if step_of[one] is None or of_step == [one]:
                others = several[at + 1 : at + 2]
            else:
                others = [each for each in several[at + 1 : at + 5] if each in of_step]
            for other in others:
                x, y = self.groups[one], self.groups[other]
                margins = [
                    self.alike(x[k], x[k + 1]) + self.alike(y[k], y[k + 1])
                    - self.alike(x[k], y[k]) - self.alike(x[k + 1], y[k + 1])
                    for k in range(0, min(len(x), len(y)) - 1, 2)
                ]  # fmt: skip
                found[one, other] = won(margins)
        return found

    def similarity(self, weights, unknown):
        found = []
        for place, mine in enumerate(self.words):
            others = [
                w for k, w in enumerate(self.words) if self.samples[k].prompt_key != self.samples[place].prompt_key
            ]
            total = sum(weights.get(w, unknown) for w in mine)
            shared = sum(weights.get(w, unknown) * sum(w in other for other in others) for w in mine)
            found.append(shared / max(1, len(others)) / total)
        return found


def share(matches, prompts):
    """Mean, jackknife's standard error with its floor, degrees of freedom."""
    chosen = {pair: v for pair, v in matches.items() if prompts.issuperset(pair)}
    of = sorted({p for pair in chosen for p in pair})
    if len(of) < 8:
        return 0.5, math.inf, 0
    without = [fmean(v for pair, v in chosen.items() if p not in pair) for p in of]
    n = len(of)
    error = math.sqrt((n - 1) / n * sum((w - fmean(without)) ** 2 for w in without))
    return fmean(chosen.values()), max(error, 0.5 / n), n - 1


def mixed(parts, weights):
    if not parts:
        return 0.5, math.inf, 0
    mean = sum(w * m for w, (m, _, _) in zip(weights, parts, strict=True))
    error = math.sqrt(sum((w * e) ** 2 for w, (_, e, _) in zip(weights, parts, strict=True)))
    return mean, error, sum(df for _, _, df in parts)


def lost_of(early, recent):
    """The part that is surely gone: the least part that is kept at which three standard errors speak for more, by bisection."""
    before, after = early[0] - 0.5, recent[0] - 0.5
    if not (math.isfinite(early[1]) and math.isfinite(recent[1])) or before <= 3.0 * early[1]:
        return None
    low, high = -50.0, 50.0
    for _ in range(200):
        kept = (low + high) / 2
        if kept * before - after >= 3.0 * math.hypot(kept * early[1], recent[1]):
            high = kept
        else:
            low = kept
    return 1.0 - high


def written(early, recent, look):
    known = [each for each in early if len(terms(each.response)) >= 8]
    first, others = [], []
    for each in known:
        of_task = [other for other in known if other.task == each.task]
        is_first = next(i for i, other in enumerate(of_task) if other is each) < (len(of_task) + 1) // 2
        (first if is_first else others).append(each)
    latest = [*others, *(each for each in recent if len(terms(each.response)) >= 8)][-256:]
    strata = task_strata(first, latest, prompt_change(EarlyPrompts(first), latest))
    by_stratum = {}
    for each in latest:
        by_stratum.setdefault(strata[1].get(each.prompt_key, 0), []).append(each)
    start, found = Side(first), []
    for divisor in (4, 2, 1):
        part = [each for of in by_stratum.values() for each in of[-math.ceil(len(of) / divisor) :]]
        found.append(numbers(start, Side(part), strata, look))
    found = [each for each in found if each is not None]
    return max(found, key=lambda each: (each["paid"], each["collapse"], each["lost"]), default=None)


def numbers(start, later, strata, look):
    sides = start, later
    clusters = [cluster([s.prompt_key for s in side.samples], of) for side, of in zip(sides, strata, strict=True)]
    comparison = StratifiedComparison(*clusters)
    weights = [each.weight for each in comparison.strata]
    prompts = [
        [set(each.early.prompts) for each in comparison.strata],
        [set(each.recent.prompts) for each in comparison.strata],
    ]
    early, recent = (
        mixed([share(side.by_prompt, each) for each in of], weights) for side, of in zip(sides, prompts, strict=True)
    )
    lost = lost_of(early, recent)
    if lost is None:
        return None
    groups = [
        mixed([share(side.in_groups, each) for each in of], weights) for side, of in zip(sides, prompts, strict=True)
    ]
    kept = None
    if lost_of(*groups) is not None:
        kept = (groups[1][0] - groups[1][1] - 0.5) / (groups[0][0] - 0.5)
    unknown = math.log((len(start.words) + 1) / 0.5)
    alike = [side.similarity(idf(start.words), unknown) for side in sides]
    std = pstdev(s.score for s in start.samples)
    scores = [[s.score / std for s in side.samples] for side in sides]
    grown, paid = (
        comparison.difference(*(c.totals(v) for c, v in zip(clusters, each, strict=True))) for each in (alike, scores)
    )
    before = comparison.mean_early(clusters[0].totals(alike[0]))
    fall = z_of_t((early[0] - recent[0]) / math.hypot(early[1], recent[1]), min(early[2], recent[2]))
    lengths = [fmean(len(s.response) for s in side.samples) for side in sides]
    is_significant = fall >= critical_z(look, 3)
    sure = grown.mean - 3.0 * grown.std_error >= 0.1  # close to Student's quantile: no stream is near this bound
    collapse = max(0.0, lost) if is_significant and sure and not (kept is not None and kept > 0.5) else 0.0
    is_paid = (
        paid.mean > 0 and paid.mean >= 2.0 * paid.std_error and not (kept is None and lengths[1] / lengths[0] < 0.75)
    )
    return {
        "early": early, "recent": recent, "lost": lost, "is_significant": is_significant, "kept": kept,
        "similarity": (before, before + grown.mean), "grown": grown, "score": paid, "length": lengths[1] / lengths[0],
        "collapse": collapse, "paid": collapse if is_paid else 0.0,
    }  # fmt: skip


GROUPS = stream(1, 48, 4)
SINGLE = stream(2, 72, 1)
MIXED = stream(3, 40, (1, 2, 3, 5), by_step=3)
TASKS = stream(4, 60, 2, tasks=("code", "chat"))
VARIED = stream(6, 50, (1, 2, 3), varied=True)
HAN = stream(5, 40, 2, han=True)


@pytest.mark.parametrize(
    ("early", "recent", "look"),
    [
        (GROUPS, stream(11, 60, 4, first=48, lost=0.8, pay=3.0), 1),
        (GROUPS, stream(12, 40, 3, first=48), 5),
        (GROUPS, [*stream(13, 30, 4, first=48), *stream(14, 20, 4, first=78, lost=1.0)], 40),
        (SINGLE, stream(15, 90, 1, lost=0.7, pay=3.0, steps=False), 3),
        (MIXED, stream(16, 50, (2, 4, 6), first=40, by_step=1, lost=0.5), 2),
        (TASKS, stream(17, 60, 2, lost=0.6, tasks=("chat", "chat", "code"), pay=1.0), 7),
        (HAN, stream(18, 40, 2, lost=0.5, han=True), 1),
        (VARIED, stream(20, 60, (1, 2, 4), first=50, lost=0.4, pay=1.0, varied=True), 2),
        (VARIED, stream(21, 90, 1, first=50, varied=True), 2),
        (GROUPS, [], 1),
        (GROUPS, stream(19, 90, 4, first=48, lost=0.3), 10**6),
    ],
)
def test_every_number_is_that_of_the_formulas_written_out(early, recent, look):
    found, expected = compare_relevance(EarlyTexts(early), recent, look), written(early, recent, look)
    assert found is not None
    for name in ("early", "recent"):
        effect = getattr(found, name)
        assert (effect.mean, effect.std_error, effect.df) == pytest.approx(expected[name], abs=1e-9), name
    assert found.lost == pytest.approx(expected["lost"], abs=1e-6)
    assert found.is_significant == expected["is_significant"]
    assert found.kept == (None if expected["kept"] is None else pytest.approx(expected["kept"], abs=1e-9))
    assert found.similarity == pytest.approx(expected["similarity"], abs=1e-9)
    assert found.similarity_growth == pytest.approx(expected["grown"], abs=1e-9)
    assert found.score_growth == pytest.approx(expected["score"], abs=1e-9)
    assert found.length == pytest.approx(expected["length"])
    assert found.lost_to_collapse == pytest.approx(expected["collapse"], abs=1e-6)
    assert found.paid_collapse == pytest.approx(expected["paid"], abs=1e-6)
