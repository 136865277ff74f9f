"""Compute the numbers that only a whole window has: its prompts and groups, the spread over prompts, means of prompts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.drift import PromptMeans
from rewardserve.service.tripwires.run_state import WindowSample
from rewardserve.service.tripwires.running_sums import RunningSums


def add_prompts(window: RunningSums, samples: Sequence[WindowSample], saturation: float | None) -> None:
    """Add the numbers that only a whole window has: its prompts, groups, and the spread of numbers over prompts.

    Where there is one prompt alone, its samples are the independent units.
    """
    by_prompt: dict[int, list[WindowSample]] = {}
    for each in samples:
        by_prompt.setdefault(each.features.prompt_hash, []).append(each)
    window.add("prompts", len(by_prompt))
    for group in by_prompt.values():
        if len(group) > 1:
            window.add("groups")
            if len({each.features.reward for each in group}) == 1:
                window.add("flat_groups")
    groups = list(by_prompt.values()) if len(by_prompt) > 1 else [[each] for each in samples]
    if len(groups) < 2:
        return
    times = len(groups) / (len(groups) - 1)
    for name, column in _columns(groups, saturation):
        mean = window.mean(name)
        if mean is not None:
            rests = [total - mean * n for n, total in column]
            window.add(f"{name}_clustered", times * sum([rest * rest for rest in rests]))  # inf where `**` would raise


def _columns(
    groups: Sequence[Sequence[WindowSample]], saturation: float | None
) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Number of samples and sum of each number, of every group."""
    features = [[each.features for each in group] for group in groups]
    sizes = [len(group) for group in groups]
    yield "score", [(len(group), sum([each.score for each in group])) for group in features]
    for name, values in (
        ("spread", [[each.spread for each in group if each.spread is not None] for group in features]),
        ("distance", [[each.distance for each in group if each.distance is not None] for group in features]),
    ):
        if any(values):
            yield name, [(len(each), sum(each)) for each in values]
    if saturation is not None:
        yield "saturated", [(len(group), sum([each.score > saturation for each in group])) for group in features]
    if any(each.is_capped for group in features for each in group):
        yield "capped", [(len(group), sum([each.is_capped for each in group])) for group in features]
    n_texts = [sum([len(each.traits) > len(TOKEN_TRAITS) for each in group]) for group in features]
    for kind in ("duplicate_within_prompt", "duplicate_across_prompts"):
        counts = [sum([each.duplicate == kind for each in group]) for group in groups]
        if any(counts):
            yield kind, list(zip(n_texts, counts, strict=True))
    if any(probing := [sum([each.is_probing for each in group]) for group in groups]):
        yield "probing", list(zip(n_texts, probing, strict=True))
    n_responses = sizes if all(each.traits for group in features for each in group) else None
    for i, name in enumerate(TRAITS):
        totals = [sum([each.traits[i] for each in group if len(each.traits) > i]) for group in features]
        if any(totals):
            if i >= len(TOKEN_TRAITS):
                counted = n_texts
            else:
                counted = n_responses or [sum([bool(each.traits) for each in group]) for group in features]
            yield name, list(zip(counted, totals, strict=True))


def add_audits(window: RunningSums, audits: Iterable[tuple[int, PromptMeans]]) -> None:
    """Add the spread over prompts of the gap between score and judge, of pairs of a prompt and both scores of a response.

    Where there is one prompt alone, its samples are the independent units.
    """
    by_prompt: dict[int, list[float]] = {}
    for prompt, scores in audits:
        by_prompt.setdefault(prompt, []).append(scores.score - scores.audit)
    groups = list(by_prompt.values()) if len(by_prompt) > 1 else [[gap] for each in by_prompt.values() for gap in each]
    mean = window.audit_gap
    if mean is None or len(groups) < 2:
        return
    rests = [sum(group) - mean * len(group) for group in groups]
    window.add("audit_gap_clustered", len(groups) / (len(groups) - 1) * sum([rest * rest for rest in rests]))


def prompt_means(audits: Iterable[tuple[int, PromptMeans]]) -> list[PromptMeans]:
    """The means of each prompt, from pairs of a prompt and both scores of a response."""
    by_prompt: dict[tuple[int, str], list[PromptMeans]] = {}
    for prompt, scores in audits:
        by_prompt.setdefault((prompt, scores.task), []).append(scores)
    return [
        PromptMeans(sum(s.score for s in each) / len(each), sum(s.audit for s in each) / len(each), task)
        for (_, task), each in by_prompt.items()
    ]
