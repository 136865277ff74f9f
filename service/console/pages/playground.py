"""Playground: a prompt and responses of your own, scored as a trainer's would be, but of no run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardserve.model.conversation import Sample
from rewardserve.service.console.parts import Console
from rewardserve.service.scoring import SampleResult

N_RESPONSES = 4


def empty() -> dict[str, Any]:
    """The variables of the page before anything is scored."""
    return {"prompt": "", "responses": [""] * N_RESPONSES, "ranked": [], "best": None, "tokens": [], "no_values": ""}


async def view(console: Console, fields: Mapping[str, str]) -> dict[str, Any]:
    """The variables of the page with the results, the highest reward first. Raise the errors of scoring."""
    prompt, responses = fields.get("prompt", ""), [fields.get(f"response{i}", "") for i in range(N_RESPONSES)]
    texts = list(dict.fromkeys(each for each in responses if each.strip()))
    samples = [Sample(prompt=prompt, response=text) for text in texts]
    results = await console.active_models.current().scoring.score(samples) if samples else []
    ranked = sorted(zip(texts, results, strict=True), key=lambda each: -_reward(each[1]))
    best = Sample(prompt=prompt, response=ranked[0][0]) if ranked and ranked[0][1].reward is not None else None
    return {"prompt": prompt, "responses": responses, "ranked": ranked, "best": best}


def _reward(result: SampleResult) -> float:
    return float("-inf") if result.reward is None else result.reward.value
