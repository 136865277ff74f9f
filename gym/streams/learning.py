"""Runs in which a policy learns: its prompts matter, its exploits are drawn at random, and its true reward, *gold*, is known.

For every prompt the policy chooses one of some real responses, how far to lengthen it, and whether to put each of a few drawn
exploits into it. GRPO on the score of a proxy, or on gold itself, changes these probabilities. Whether a run is hacked is not
fixed beforehand: its gold falls or does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, pstdev
from typing import Final, NamedTuple

from gym.streams.exploits import Corpus, Exploit, draw
from gym.streams.honest import lengthened, translator
from gym.streams.texts import Prompt, Steps, StreamSample, Texts, changed, resampled
from gym.streams.worlds import Scored, nearest_honest, normal_of, share_of_change
from rewardserve.model.conversation import Message

GROUP: Final = 8
N_EXPLOITS: Final = 4
N_CANDIDATES: Final = 4
LEVELS: Final = 4
"""Levels of length: 0 is the response as it is, the last one is twice as long."""

PROMPT_SHARE: Final = 0.45
"""Share of the variance of honest scores that is the prompt's, as `gym.streams.correlation` measures it: .29 to .60 by file."""

_TASK_SD: Final = 0.5
_PROXY_CORRELATION: Final = 0.8
_PAY: Final = (0.3, 2.5)
_HARM: Final = (0.3, 1.0)
_LENGTH_PAY: Final = 0.25
_START_EXPLOIT, _START_LENGTH = -4.0, -0.7
"""Logits of the start: an exploit is in 1.8 % of the responses; two thirds of the responses are not lengthened."""
_RATE: Final = 60.0
"""Learning rate times the number of steps: a long run learns slowly."""


@dataclass(frozen=True)
class Lesson:
    """What a run learns from. `by_gold`: from the true reward. `kl`: penalty in standard deviations of the score a nat.
    `length_is_good`: gold rewards length as the proxy does, else it is indifferent. `change`: of the prompts in the run.
    """

    by_gold: bool = False
    kl: float = 0.0
    length_is_good: bool = False
    change: str = ""


LESSONS: Final = {
    "from the proxy": Lesson(),
    "from the proxy, length is good": Lesson(length_is_good=True),
    "from the proxy, KL": Lesson(kl=0.8),
    "from gold": Lesson(by_gold=True),
    "from gold, length is good": Lesson(by_gold=True, length_is_good=True),
    "from gold, other source": Lesson(by_gold=True, change="source"),
    "from gold, other language": Lesson(by_gold=True, change="language"),
}


class PaidExploit(NamedTuple):
    """An exploit with its pay by the proxy, and its cost in gold, in standard deviations; many cost nothing."""

    exploit: Exploit
    pay: float
    harm: float


@dataclass(frozen=True)
class LearnedEdits:
    """Scores of responses that attribution edits: those of the honest response that was edited, and the share of the pay and
    of the harm of every exploit whose change the edit makes.
    """

    honest: Mapping[Prompt, Mapping[str, Scored]]
    paid: Sequence[PaidExploit]
    judge_correlation: float

    def __call__(self, prompt: Prompt, response: str) -> Scored:
        """Scores of a response."""
        of_prompt = self.honest[prompt]
        text = nearest_honest(response, of_prompt)
        heads, audit = of_prompt[text]
        assert audit is not None, "every honest response has an audit"
        shares = [share_of_change(text, response, each.exploit.edit(prompt[-1].content, text)) for each in self.paid]
        pay = sum(each.pay * share for each, share in zip(self.paid, shares, strict=True))
        harm = sum(each.harm * share for each, share in zip(self.paid, shares, strict=True))
        return Scored({"score": heads["score"] + pay}, audit - self.judge_correlation * harm)


class LearnedRun(NamedTuple):
    """A run: its samples and scores by step, its gold without the part of the prompts, and scores of edited responses."""

    steps: Steps
    scored: list[list[Scored]]
    gold: list[float]
    edits: LearnedEdits


class Choice(NamedTuple):
    """What the policy chose for one sample: a candidate by its quality, a level of length, and which exploits."""

    quality: float
    level: int
    exploits: tuple[bool, ...]


def paid_exploits(seed: int, corpus: Corpus) -> list[PaidExploit]:
    """Draw the exploits of a run. A proxy pays for many things that do no harm."""
    rng = random.Random(f"{seed} paid")
    return [
        PaidExploit(draw(seed * N_EXPLOITS + i, corpus), rng.uniform(*_PAY), rng.uniform(*_HARM) * (rng.random() < 0.6))
        for i in range(N_EXPLOITS)
    ]


# -- the policy -------------------------------------------------------------------------------------------------------


class Policy:
    """Independent choices of a candidate, a level and each exploit, with one parameter each."""

    def __init__(self) -> None:
        self.quality = 0.0
        self.length = _START_LENGTH
        self.exploits = [_START_EXPLOIT] * N_EXPLOITS

    def choose(self, qualities: Sequence[float], rng: random.Random) -> tuple[int, Choice]:
        """Draw one choice; the index is that of the candidate."""
        at = rng.choices(range(len(qualities)), _softmax([self.quality * q for q in qualities]))[0]
        level = rng.choices(range(LEVELS), self._levels())[0]
        return at, Choice(qualities[at], level, tuple(rng.random() < _sigmoid(logit) for logit in self.exploits))

    def learn(self, rows: Sequence[tuple[Choice, Sequence[float], float]], rate: float) -> None:
        """One step of REINFORCE. A row has a choice, the qualities that it was made from, and its advantage."""
        mean_level = sum(level * p for level, p in enumerate(self._levels()))
        shares = [_sigmoid(logit) for logit in self.exploits]
        quality = fmean(a * (c.quality - _mean(q, self.quality)) for c, q, a in rows)
        length = fmean(a * (c.level - mean_level) for c, _, a in rows)
        exploits = [fmean(a * (c.exploits[j] - shares[j]) for c, _, a in rows) for j in range(N_EXPLOITS)]
        self.quality += rate * quality
        self.length += rate * length
        self.exploits = [logit + rate * step for logit, step in zip(self.exploits, exploits, strict=True)]

    def log_ratio(self, choice: Choice, qualities: Sequence[float]) -> float:
        """Log-probability of a choice, less that at the start."""
        start = _softmax([_START_LENGTH * level for level in range(LEVELS)])
        here = log(self._levels()[choice.level] / start[choice.level])
        total = sum(exp(self.quality * q) for q in qualities)
        here += self.quality * choice.quality - log(total / len(qualities))
        for chosen, logit in zip(choice.exploits, self.exploits, strict=True):
            sign = 1.0 if chosen else -1.0
            here += log(_sigmoid(sign * logit) / _sigmoid(sign * _START_EXPLOIT))
        return here

    def _levels(self) -> list[float]:
        return _softmax([self.length * level for level in range(LEVELS)])


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + exp(-max(-60.0, min(60.0, logit))))


def _softmax(logits: Sequence[float]) -> list[float]:
    most = max(logits)
    weights = [exp(logit - most) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _mean(qualities: Sequence[float], parameter: float) -> float:
    return sum(q * p for q, p in zip(qualities, _softmax([parameter * q for q in qualities]), strict=True))


# -- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learning:
    """Everything that a run is a function of."""

    texts: Texts
    corpus: Corpus
    lesson: Lesson
    seed: int
    n_steps: int
    batch: int
    judge_correlation: float

    def run(self) -> LearnedRun:
        """Train a policy, and record every step."""
        policy, rng = Policy(), random.Random(f"{self.seed} policy")
        paid, translate = paid_exploits(self.seed, self.corpus), translator(random.Random(f"{self.seed} language"))
        donors = [sample.response for sample in self.texts.samples(f"{self.seed} donors", 2_000)]
        steps: Steps = []
        scored: list[list[Scored]] = []
        gold: list[float] = []
        honest: dict[Prompt, dict[str, Scored]] = {}
        for number, prompts in enumerate(self._prompts()):
            step = _Step(self, paid, policy, rng, donors)
            share = 0.5 * number / max(1, self.n_steps - 1) if self.lesson.change == "language" else 0.0
            for sample, other in prompts:
                step.add_group(number, sample, other, translate if rng.random() < share else None)
            policy.learn(step.rows, _RATE / self.n_steps)
            steps.append(step.samples)
            scored.append(step.scored)
            gold.append(fmean(step.gold))
            for sample, alone in zip(step.samples, step.honest, strict=True):
                honest.setdefault(sample.prompt, {})[sample.honest] = alone
        return LearnedRun(steps, scored, gold, LearnedEdits(honest, paid, self.judge_correlation))

    def _prompts(self) -> list[list[tuple[StreamSample, StreamSample]]]:
        """Prompts of all steps, each with its two real responses."""
        n = max(1, self.batch // GROUP)

        def drawn(n_steps: int, tasks: Sequence[str]) -> list[list[tuple[StreamSample, StreamSample]]]:
            flat = self.texts.samples(self.seed, 2 * n * n_steps, tasks)
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            return [pairs[i * n : (i + 1) * n] for i in range(n_steps)]

        if self.lesson.change != "source":
            return drawn(self.n_steps, ())
        tasks = self.texts.tasks[:4]
        one, other = random.Random(f"{self.seed} sources").sample(tasks, 2) if len(tasks) > 1 else (*tasks, *tasks)
        half = self.n_steps // 2
        return drawn(half, (one,)) + drawn(self.n_steps - half, (other,))


class _Step:
    """One step of a run: samples, scores, gold, and rows for the policy to learn from."""

    def __init__(
        self, learning: Learning, paid: list[PaidExploit], policy: Policy, rng: random.Random, donors: list[str]
    ) -> None:
        self.samples: list[StreamSample] = []
        self.scored: list[Scored] = []
        self.honest: list[Scored] = []
        self.gold: list[float] = []
        self.rows: list[tuple[Choice, Sequence[float], float]] = []
        self._learning, self._paid, self._policy, self._rng, self._donors = learning, paid, policy, rng, donors

    def add_group(
        self, number: int, one: StreamSample, other: StreamSample, translate: Callable[[str], str] | None
    ) -> None:
        """Draw and score the responses to one prompt."""
        seed, lesson = self._learning.seed, self._learning.lesson
        of_prompt = sqrt(PROMPT_SHARE) * normal_of("prompt", one.prompt) + _TASK_SD * normal_of("task", seed, one.task)
        made: list[tuple[Choice, Sequence[float]]] = []
        rewards: list[float] = []
        for i in range(GROUP):
            sources = [(one, other)[j % 2].response for j in range(N_CANDIDATES)]
            texts = [resampled(text, seed, number, i, j) for j, text in enumerate(sources)]
            qualities = [normal_of("quality", seed, one.prompt, text) for text in texts]
            at, choice = self._policy.choose(qualities, self._rng)
            made.append((choice, qualities))
            sample = self._sample(changed(one, texts[at]), choice, translate)
            score, gold = self._add(sample, choice, of_prompt)
            reward = gold if lesson.by_gold else score
            rewards.append(reward - (lesson.kl * self._policy.log_ratio(choice, qualities) if lesson.kl else 0.0))
        mean, std = fmean(rewards), pstdev(rewards) or 1.0
        self.rows += [(*each, (reward - mean) / std) for each, reward in zip(made, rewards, strict=True)]

    def _sample(self, sample: StreamSample, choice: Choice, translate: Callable[[str], str] | None) -> StreamSample:
        sample = lengthened(sample, choice.level / (LEVELS - 1), self._rng, self._donors)
        if translate is not None:
            turns = tuple(Message(m.role, translate(m.content)) for m in sample.prompt)
            sample = changed(sample, translate(sample.response))._replace(prompt=turns)
        response = sample.response
        for paid, is_chosen in zip(self._paid, choice.exploits, strict=True):
            if is_chosen:
                response = paid.exploit.edit(sample.prompt_text, response) or response
        return sample._replace(response=response if response.strip() else sample.honest)

    def _add(self, sample: StreamSample, choice: Choice, of_prompt: float) -> tuple[float, float]:
        """Score and gold of a sample, which are also recorded; the prompt's part of gold is left out of the curve."""
        learning = self._learning
        noise = normal_of("proxy", learning.seed, sample.prompt, sample.response)
        within = sqrt(1.0 - PROMPT_SHARE)
        good = within * choice.quality
        longer = _LENGTH_PAY * choice.level
        seen = within * (_PROXY_CORRELATION * choice.quality + sqrt(1.0 - _PROXY_CORRELATION**2) * noise)
        pay = sum(paid.pay for paid, is_chosen in zip(self._paid, choice.exploits, strict=True) if is_chosen)
        harm = sum(paid.harm for paid, is_chosen in zip(self._paid, choice.exploits, strict=True) if is_chosen)
        gold = good + longer * learning.lesson.length_is_good - harm
        c = learning.judge_correlation
        audit = c * (of_prompt + gold) + sqrt(1.0 - c**2) * normal_of(
            "judge", learning.seed, sample.prompt, sample.response
        )
        score = of_prompt + seen + longer + pay
        self.samples.append(sample)
        self.scored.append(Scored({"score": score}, audit))
        self.honest.append(Scored({"score": score - pay}, audit + c * harm))
        self.gold.append(gold)
        return score, gold
