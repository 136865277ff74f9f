"""Reward function for OpenRLHF: `--reward.remote_url /path/to/rewardserve_client/openrlhf.py`.

    python -c "import rewardserve_client.openrlhf as f; print(f.__file__)"

OpenRLHF loads the file by its path and calls `reward_func` in a thread, with one sample at a time. All other settings
come from the environment. A sample without a reward raises: OpenRLHF logs the exception and leaves the reward out, and
its trainer stops at the gap, so it never trains on a made-up number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardserve_client import shared
from rewardserve_client.configuration import end_text_from, run_from
from rewardserve_client.fields import refuse_columns
from rewardserve_client.samples import Sample
from rewardserve_client.summary import numbers, reward_of, stop_if_blocked


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **given: Any) -> dict[str, Any]:
    """Return `rewards` to train on, `scores` to filter by (the same values), and numbers to log.

    Plain floats for one sample, as OpenRLHF makes a tensor of `[value]`; lists for several. `queries` are rendered
    already, with special tokens. Raise `NotScored`, or the exceptions of `RewardClient.score`.
    """
    refuse_columns(given, rendered=True)
    end = end_text_from()
    samples = [
        Sample(text=query, group=prompt, finish_reason=_finish_reason(query, end), score_empty=True)
        for query, prompt in zip(queries, prompts, strict=True)
    ]
    results = stop_if_blocked(shared.client().score(samples, run=run_from())).results
    rewards = [reward_of(result) for result in results]
    logged = [numbers(result) for result in results]
    names = logged[0] if logged else {}
    return {
        "rewards": _one_or_all(rewards),
        "scores": _one_or_all(rewards),
        "extra_logs": {name: _one_or_all([each[name] for each in logged]) for name in names},
    }


def _finish_reason(query: str, end: str | None) -> str:
    return "length" if end is not None and not query.rstrip().endswith(end) else "stop"


def _one_or_all(values: list[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else values
