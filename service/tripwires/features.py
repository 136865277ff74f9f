"""The features of one scored sample that trip wires count. A pure record."""

from __future__ import annotations

from typing import NamedTuple


class SampleFeatures(NamedTuple):
    """One scored sample of a run.

    `prompt_hash` is of the prompt. `retry_key` is a hash of step, id and tokens, which a retry of the sample has too; None:
    without a step or an id a retry cannot be recognised, since another response may have the same text. `reward` is the reward as
    sent, `score` the combined score before penalties and shape. `traits` are the values of `rewardserve.model.traits.TRAITS`,
    those of `TOKEN_TRAITS` where there is no text, none where the beginning of the response is not known. `audit` is the score of
    the audit judge, where it scored the sample. `spread` is the disagreement of the members of an ensemble. `distance` is the
    distance of its hidden state from those of the calibration, where the model has one. `evidence` names the sample in an alert:
    a hash, never text. `components` are the contributions of the components of the reward, where it has several.
    `is_honeypot_hit` is None where the prompt is no honeypot. `task` is the client's name of the task, "" without one.
    """

    prompt_hash: int
    retry_key: int | None
    reward: float
    score: float
    is_capped: bool
    traits: tuple[float, ...]
    text_digest: int | None = None
    spread: float | None = None
    distance: float | None = None
    audit: float | None = None
    evidence: str = ""
    components: tuple[float, ...] = ()
    is_honeypot_hit: bool | None = None
    task: str = ""
