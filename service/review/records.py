"""Records of the review store, as they are captured, stored and exported. Pure.

A sample is stored with its conversation, so it exists only where an operator has switched capture on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

Reason = Literal["flagged", "share", "alert"]
"""Why a sample was captured: a trait flagged it, its prompt was drawn, or an alert was raised on its run."""


class Turn(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class SampleRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A scored sample. A line of an export has these fields.

    `prompt` are the turns before the response, or one text where the client rendered it. `at` is in Unix seconds. `score` is the
    combined score before penalties and shape, `heads` and `stages` are scores by head and changes by stage of the reward pipeline,
    `audit` is the score of the audit judge. None: not known. `evidence` is the hash by which alerts name the sample; `prompt_key`
    is equal for samples of one prompt.
    """

    run: str
    at: float
    prompt: list[Turn] | str
    response: str
    evidence: str
    prompt_key: str
    score: float
    reason: Reason
    model: str
    model_version: int
    step: int | None = None
    sample_id: str | None = None
    task: str = ""
    reward: float | None = None
    raw: float | None = None
    heads: dict[str, float] = {}
    stages: dict[str, float] = {}
    flags: list[str] = []
    n_tokens: int | None = None
    truncated: bool = False
    missing_end: bool = False
    audit: float | None = None

    @property
    def n_bytes(self) -> int:
        """About the bytes of the row: those of the texts, in UTF-8, and 512."""
        texts = [self.prompt] if isinstance(self.prompt, str) else [turn.content for turn in self.prompt]
        return 512 + sum(len(text.encode("utf-8", "surrogatepass")) for text in (*texts, self.response))


class AlertRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alert of a trip wire. `evidence` are hashes of samples that show it. `statistic` None: it was not finite."""

    run: str
    at: float
    wire: str
    severity: str
    statistic: float | None
    threshold: float
    model: str
    model_version: int
    step: int | None = None
    task: str = ""
    evidence: list[str] = []


Verdict = Literal["first", "second", "tie", "both_bad", "skip"]
"""What an annotator says of a pair in the order in which it was shown."""

OrderedVerdict = Literal["earlier", "later", "tie", "both_bad", "skip"]
"""The same, of the two samples in the order of their capture."""


class QueuedPair(NamedTuple):
    """A pair to label, blinded: `id` tells nothing of the samples, and the order of the two is drawn."""

    id: str
    prompt: list[Turn] | str
    first: str
    second: str


class QueuePage(NamedTuple):
    """Pairs to label, and numbers of pairs that the annotator has labelled and has left."""

    pairs: list[QueuedPair]
    n_labelled: int
    n_left: int


class LabelledPair(NamedTuple):
    """A pair with its samples and the verdict of each annotator."""

    id: str
    run: str
    sampling: str
    earlier_id: int
    later_id: int
    earlier: SampleRecord
    later: SampleRecord
    verdicts: dict[str, OrderedVerdict]


class StoredSample(NamedTuple):
    """A sample with its number in the store."""

    id: int
    sample: SampleRecord


class StoredAlert(NamedTuple):
    """An alert with its number in the store."""

    id: int
    alert: AlertRecord


class RunCounts(NamedTuple):
    """A run in the store: numbers of its samples and alerts, bytes of its samples, and the times of its first and last sample."""

    run: str
    n_samples: int
    n_alerts: int
    n_bytes: int
    first_at: float
    last_at: float


class SampleFilter(NamedTuple):
    """Which samples are read: all that have each of these. None: any."""

    run: str | None = None
    prompt_key: str | None = None
    reason: Reason | None = None
    evidence: str | None = None
    flag: str | None = None
    first_step: int | None = None
    last_step: int | None = None


def to_line(record: SampleRecord) -> bytes:
    """A sample as JSON, a line of an export without its end."""
    return msgspec.json.encode(record)


def from_line(line: bytes) -> SampleRecord:
    """A sample from a line of an export. Raise ValueError with the field that is wrong."""
    return msgspec.json.decode(line, type=SampleRecord)
