"""Make the records of the samples that are captured, and give them to the writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import isfinite, nan

from rewardserve.model.backends import SampleEncoder
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.reward import Reward
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.background_scorer import is_in_share
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.review.policy import CapturePolicy
from rewardserve.service.review.records import AlertRecord, Reason, SampleRecord, Turn
from rewardserve.service.review.writer import CaptureWriter
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS
from rewardserve.service.tripwires.io.run_texts import Context, KeptSample
from rewardserve.service.tripwires.io.run_watcher import Flags, evidence
from rewardserve.service.tripwires.run_context import RunContext
from rewardserve.service.tripwires.run_monitor import RunMonitor


class SampleCapture:
    """Capture of the samples that one model scores. Belongs to one event loop."""

    def __init__(
        self,
        policy: CapturePolicy,
        writer: CaptureWriter,
        monitor: RunMonitor,
        clock: Clock,
        *,
        encoder: SampleEncoder,
        stage_names: Sequence[str],
        head_names: Sequence[str],
        model: str,
        model_version: int,
    ) -> None:
        self._policy = policy
        self._writer = writer
        self._monitor = monitor
        self._clock = clock
        self._encoder = encoder
        self._stage_names = stage_names
        self._head_names = head_names
        self._model = model
        self._version = model_version

    def add(
        self,
        context: RunContext,
        rows: Sequence[ScoredRow],
        rewards: Sequence[Reward | RowFailed],
        flags: Mapping[int, Flags] | None,
    ) -> None:
        """Capture those of samples scored together that the policy chooses. Samples without a text have no record."""
        flags = flags or {}
        chosen: list[tuple[int, Reason]] = [
            (place, "flagged" if place in flags else "share")
            for place, row in enumerate(rows)
            if place in flags or (self._policy.share and is_in_share(row.prompt_ids, self._policy.share))
        ]
        if not chosen:
            return
        run, at = self._monitor.label_of(context.name, context.owner), self._clock.unix_time()
        records = [
            self._record(run, at, context.step, rows[place], reward, reason, flags.get(place, ()))
            for place, reason in chosen
            if isinstance(reward := rewards[place], Reward)
        ]
        self._writer.add([each for each in records if each is not None])

    def add_alerts(self, run: str, alerts: Sequence[Alert], kept: Sequence[KeptSample]) -> None:
        """Capture alerts, with the texts that attribution has of the run: its first ones and its latest."""
        at = self._clock.unix_time()
        records = (self._kept_record(run, at, each) for each in kept)
        self._writer.add([each for each in records if each is not None])
        self._writer.add([
            AlertRecord(
                run=run, at=at, wire=each.wire, severity=each.severity, statistic=_finite(each.statistic),
                threshold=each.threshold, step=each.since_step, task=each.task, evidence=list(each.evidence),
                model=self._model, model_version=self._version,
            )
            for each in alerts
        ])  # fmt: skip

    def _record(
        self, run: str, at: float, step: int | None, row: ScoredRow, reward: Reward, reason: Reason, flags: Flags
    ) -> SampleRecord | None:
        prompt_text, response = self._encoder.texts(row.sample)
        if not (prompt_text or response):
            return None
        prompt = _turns(row.sample, prompt_text)
        return SampleRecord(
            run=run, at=at, step=step, prompt=prompt, response=response, evidence=evidence(prompt_text, response),
            prompt_key=prompt_key(prompt), score=reward.changes[0], reward=reward.value, raw=reward.raw, reason=reason,
            sample_id=row.id, task=row.task, heads=self._heads(row),
            stages=stages_of(reward, self._stage_names), flags=list(flags),
            n_tokens=len(row.encoded.ids), truncated=row.encoded.truncated, missing_end=row.encoded.missing_end,
            model=self._model, model_version=self._version,
        )  # fmt: skip

    def _heads(self, row: ScoredRow) -> dict[str, float]:
        """The finite scores of the heads: one that does not count in the reward may be anything."""
        return {name: row.heads[name] for name in self._head_names if isfinite(row.heads.get(name, nan))}

    def _kept_record(self, run: str, at: float, kept: KeptSample) -> SampleRecord | None:
        """The record of a text in memory; None for one that is kept in part."""
        sample = kept.sample
        if kept.context is None and max(len(sample.prompt), len(sample.response)) >= MAX_CHARACTERS:
            return None
        prompt = sample.prompt if kept.context is None else _as_turns(kept.context)
        text = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
        return SampleRecord(
            run=run, at=at, step=sample.step, prompt=prompt, response=sample.response,
            evidence=evidence(text, sample.response), prompt_key=prompt_key(prompt), score=sample.score, reason="alert",
            task=sample.task, audit=sample.audit, missing_end=kept.missing_end, model=self._model, model_version=self._version,
        )  # fmt: skip


def stages_of(reward: Reward, names: Sequence[str]) -> dict[str, float]:
    """The contribution of each stage, with that of continuations where the sample has some."""
    stages = dict(zip(names, reward.changes, strict=True))
    return stages if reward.lookahead is None else {**stages, "lookahead": reward.lookahead}


def prompt_key(prompt: list[Turn] | str) -> str:
    """The key of a prompt: the first 16 hexadecimal digits of BLAKE2b of its roles and contents."""
    parts = [prompt] if isinstance(prompt, str) else [part for turn in prompt for part in (turn.role, turn.content)]
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _turns(sample: Sample, text: str) -> list[Turn] | str:
    """The turns before the response, or their text where the client rendered it."""
    turns = sample.prompt if sample.messages is None else sample.messages[:-1]
    return text if turns is None else _as_turns(turns)


def _as_turns(context: Context | tuple[Message, ...]) -> list[Turn]:
    if isinstance(context, str):
        return [Turn("user", context)]
    return [Turn(each.role, each.content) for each in context]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
