"""Every number of the e-process and of the divergence, computed again from the list of all windows after each one."""

from __future__ import annotations

from math import fsum, prod, sqrt
from random import Random
from statistics import covariance, pstdev, stdev

import pytest

from rewardserve.service.tripwires.drift import DriftTest, PromptMeans


def clip(y):
    return min(4.0, max(-4.0, y))


def mean_of(values):
    return fsum(values) / len(values)


class Written:
    """One e-process by the formulas of the module's text. Nothing is added up: each number is of the list of all windows."""

    def __init__(self, windows, n_prompts, n_windows):
        n = next(n for n in range(n_windows, len(windows) + 1) if sum(map(len, windows[:n])) >= n_prompts)
        first, by_task = windows[:n], {}
        for prompt in (p for window in first for p in window):
            by_task.setdefault(prompt.task, []).append(prompt)
        usual = {t: (mean_of([p.score for p in of]), mean_of([p.audit for p in of])) for t, of in by_task.items()}
        self.n_of = {t: len(of) for t, of in by_task.items() if len(of) >= 8 or len(by_task) == 1}
        self.usual = {t: usual[t] if len(by_task) > 1 else (0.0, 0.0) for t in self.n_of}
        self.line([self.centred(window) for window in first])
        self.share = {t: n / self.n for t, n in self.n_of.items()}
        self.means, self.bets, self.prompts, self.level, self.shift, waiting = [], [], [], self.score_mean, 0.0, {}
        for window in windows[n:]:
            if known := self.centred(window):
                ys = [clip((self.intercept + self.slope * s - a) / self.std) for s, a, _ in known]
                self.bets.append((ys, self.delta()))
                self.prompts += known
                self.means.append((mean_of(ys), len(ys)))
                self.level += 0.1 * (mean_of([s for s, _, _ in known]) - self.level)
                self.shift += 0.1 * (mean_of(ys) - self.shift)
                for t in self.share:
                    self.share[t] += 0.1 * (mean_of([float(p[2] == t) for p in known]) - self.share[t])
            for prompt in [p for p in window if p.task not in self.n_of]:
                waiting.setdefault(prompt.task, []).append(prompt)
            for t in [t for t, of in waiting.items() if len(of) >= n_prompts / 2]:
                of = waiting.pop(t)
                on_line = self.intercept + self.slope * self.score_mean
                self.usual[t] = (
                    mean_of([p.score for p in of]) - self.score_mean,
                    mean_of([p.audit for p in of]) - on_line,
                )
                self.n_of[t], self.share[t] = len(of), 0.0

    def centred(self, window):
        return [(s - self.usual[t][0], a - self.usual[t][1], t) for s, a, t in window if t in self.usual]

    def line(self, first):
        s, a = ([p[k] for window in first for p in window] for k in (0, 1))
        self.n, self.score_mean, self.score_std = len(s), mean_of(s), max(0.05, stdev(s))
        self.slope = min(1.0, max(0.0, covariance(s, a) / self.score_std**2))
        height = mean_of(a) - self.slope * self.score_mean
        rests = [[height + self.slope * p[0] - p[1] for p in window] for window in first]
        self.std = max(0.05, sqrt(fsum(r * r for window in rests for r in window) / (self.n - 1)))
        ys = [[clip(r / self.std) for r in window] for window in rests]
        offset = mean_of([y for window in ys for y in window])
        self.intercept = height - offset * self.std
        between = fsum((mean_of(window) - offset) ** 2 for window in ys) / (len(ys) - 1)
        moves = sqrt(max(0.0, between - 2.0 * mean_of([1.0 / len(window) for window in ys])))
        self.band, self.has_wandered = max(0.2, 4.0 * moves), 4.0 * moves > 0.2

    def wanders(self):
        falls = [
            max(0.0, self.means[i - 16][0] - self.means[i][0]) ** 2
            - 0.5 / self.means[i - 16][1]
            - 0.5 / self.means[i][1]
            for i in range(16, len(self.means))
        ]
        if len(falls) < 16:
            return 0.0
        return sqrt(max(0.0, mean_of(falls) - pstdev(falls) / sqrt(len(falls))))

    def n_start(self):
        return 1.0 / fsum(share**2 / self.n_of[t] for t, share in self.share.items())

    def delta(self):
        leverage = sqrt(1.0 + ((self.level - self.score_mean) / self.score_std) ** 2)
        return min(1.8, max(self.band, 4.0 * self.wanders()) + 3.0 * leverage / sqrt(self.n_start()))

    def wealth(self):
        total, n = 0.0, len(self.bets)
        for bet in (0.02, 0.05, 0.1, 0.17):
            gains = [prod(1.0 + bet * (y - delta) for y in ys) for ys, delta in self.bets]
            total += fsum(prod(gains[k:]) / ((k + 1) * (k + 2)) for k in range(n)) / 4
        return total + 1.0 / (n + 1)

    def divergence(self, n_errors):
        weights = [(127 / 128) ** k for k in range(len(self.prompts))][::-1]
        if fsum(weights) < 64:
            return None
        audit_mean = self.intercept + self.slope * self.score_mean
        audit_std = sqrt((self.slope * self.score_std) ** 2 + self.std**2)
        bounds, n = [], fsum(weights) ** 2 / fsum(w * w for w in weights)
        for sign, usual, std, at in ((1, self.score_mean, self.score_std, 0), (-1, audit_mean, audit_std, 1)):
            moved = [sign * clip((p[at] - usual) / std) * std for p in self.prompts]
            mean = fsum(w * m for w, m in zip(weights, moved, strict=True)) / fsum(weights)
            variance = fsum(w * (m - mean) ** 2 for w, m in zip(weights, moved, strict=True)) / fsum(weights)
            bounds.append(mean - n_errors * sqrt(variance * (1.0 / n + 1.0 / self.n_start())))
        wander = max(self.band if self.has_wandered else 0.0, 4.0 * self.wanders())
        return min(bounds[0], bounds[1] - wander * self.std)


def written(windows, n_errors=3.0):
    """e-value, shift and divergence."""
    both = [Written(windows, 128, 4), Written(windows, 512, 8)]
    known = [each.divergence(n_errors) for each in reversed(both)]
    return mean_of([each.wealth() for each in both]), both[1].shift, next((d for d in known if d is not None), None)


def drawn(seed, tasks, mix, size, n, wander=0.0, scale=0.3, growth=0.005, slope=0.5, outliers=0.0, has_later=False):
    """Windows whose scores have another mean and spread than 0 and 1, and whose judge moves between windows, and is far off for
    some prompts; with a task "c" from window 14 on where there are several, or `has_later`."""
    rng, made = Random(seed), []
    for i in range(n):
        moved, window = rng.gauss(0.0, wander) * scale, []
        for k in range(size):
            is_later = (tasks > 1 or has_later) and i >= 14 and k % 4 == 0
            task = "c" if is_later else "ab"[rng.random() < mix] if tasks > 1 else ""
            score = 3.0 + scale * (rng.gauss(ord(task or "a") - 97, 1.0) + growth * max(0, i - 10))
            audit = slope * score - scale * (0.8 * rng.gauss(0, 1) + 2 * growth * max(0, i - 12)) + moved
            audit -= 9.0 * scale * (rng.random() < outliers)
            window.append(PromptMeans(score, audit, task))
        made.append(window)
    return made


@pytest.mark.parametrize(
    "made",
    [
        drawn(1, 1, 0.0, 64, 60),
        drawn(2, 1, 0.0, 64, 60, wander=0.6),
        drawn(3, 2, 0.3, 64, 50),
        drawn(4, 2, 0.05, 64, 60, wander=0.4, scale=2.0),
        drawn(5, 1, 0.0, 70, 30, scale=0.001, growth=0.05),
        drawn(6, 1, 0.0, 13, 60, growth=0.03),
        drawn(7, 1, 0.0, 64, 40, outliers=0.04, has_later=True),
        drawn(8, 1, 0.0, 64, 30, slope=1.7, growth=-0.01),
        drawn(9, 1, 0.0, 64, 30, slope=-0.5, outliers=0.1, wander=0.5),
        # The task "b" has eight prompts in the short start, as few as a task may have.
        [[p._replace(task="ab"[k % 16 == 0]) for k, p in enumerate(window)] for window in drawn(10, 1, 0.0, 32, 30)],
    ],
)
def test_every_number_is_that_of_the_formulas_written_out(made):
    test = DriftTest()
    for n, window in enumerate(made, 1):
        test.add_window(window)
        if not test.is_learning and n % 3 == 0:
            e_value, shift, divergence = written(made[:n])
            assert test.e_value == pytest.approx(e_value, rel=1e-6), n
            assert test.shift == pytest.approx(shift, abs=1e-9), n
            assert test.divergence() == pytest.approx(divergence, abs=1e-9), n
            assert test.divergence(2.0) == pytest.approx(written(made[:n], 2.0)[2], abs=1e-9)


def test_while_a_divergence_is_suspected_512_prompts_are_audited_and_a_quarter_of_the_others():
    rng, test, usual, suspected, wanted = Random(7), DriftTest(), 0, 0, []
    for i in range(120):
        divergence = test.divergence(2.0)
        is_suspected = divergence is not None and divergence > 0.0
        assert test.wants_every_prompt == (test.is_learning or (is_suspected and suspected < 512 + usual / 4)), i
        wanted.append(test.wants_every_prompt)
        rise = 1.0 if i >= 40 else 0.0
        test.add_window([PromptMeans(rng.gauss(rise, 1.0), rng.gauss(-0.4 * rise, 1.0)) for _ in range(32)])
        usual, suspected = (usual, suspected + 32) if is_suspected else (usual + 32, suspected)
    assert wanted[:16] == [True] * 16, "the start is learned"
    assert True in wanted[40:100], "suspected"
    assert True not in wanted[100:], "the bound is reached"
