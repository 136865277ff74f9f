"""Check of an engine before it serves: test rows, their reference scores by a plain forward, and the tolerance.

The reference is the score that transformers computes for one row alone, without mask and positions, before any other row.
Knows networks and scorers; the choice of an engine is `engine_choice`'s. Shapes: R rows, H heads.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.length_classes import special_lengths
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import DISTANCE, BatchScores, TokenBatch

Row = tuple[int, ...]

_TOLERANCE = 2e-5
"""Largest difference, relative to the largest score or to 1, whichever is larger."""

_TOLERANCE_HIGH = 2.5e-5
"""The same where float32 is multiplied as three products of bfloat16."""

_TIMES_ROUNDING = 4.0
"""Tolerance in half precision, as a multiple of the change that rounding alone makes."""

_ALWAYS_BEYOND = 256
"""Tokens. Rows go beyond every special length up to this one, and beyond longer ones while that is affordable."""

_MOST_WORK = {"cpu": (2e10, 4_608), "cuda": (1e14, 17_000)}
"""Parameters times tokens for rows beyond longer lengths, and the longest of them. A second or two."""


class CheckableEngine(Protocol):
    """An engine that can be checked."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether keys and values may be kept between batches."""
        ...

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order."""
        ...

    def clear_cache(self) -> None:
        """Free the keys and values that were kept between batches."""
        ...


@dataclass(frozen=True, slots=True)
class CheckRows:
    """Rows to compare; those in `short` and `long` share prefixes. No row is longer than the `unchecked` lengths."""

    rows: tuple[Row, ...]
    short: tuple[Row, ...]
    long: tuple[Row, ...]
    unchecked: tuple[int, ...] = ()


def within_check_budget(network: RewardNetwork) -> Callable[[int], bool]:
    """Predicate: whether test rows may be longer than a length. Each allowed length uses up a part of the budget."""
    left, longest = _MOST_WORK.get(network.device.type, _MOST_WORK["cpu"])
    n_parameters = sum(p.numel() for p in network.parameters())

    def may_go_beyond(length: int) -> bool:
        nonlocal left
        if length <= _ALWAYS_BEYOND:
            return True
        work = n_parameters * 4.0 * length
        if length > longest or work > left:
            return False
        left -= work
        return True

    return may_go_beyond


def check_rows(config: Any, max_tokens: int, may_go_beyond: Callable[[int], bool] = lambda n: n <= 256) -> CheckRows:
    """Pseudo-random rows with a fixed seed: common prefixes, equal rows, one token, both sides of every special length."""
    n_ids = config.get_text_config().vocab_size
    draw = random.Random(17)

    def some(n: int) -> Row:
        return tuple(draw.randrange(n_ids) for _ in range(n))

    prompt, other = some(40), some(24)
    family = [prompt + some(n) for n in (1, 6, 30)]
    rows = [*family, other + some(11), some(1), some(17), family[2] + some(5), family[0]]
    short, long = family[:2], [family[2], rows[6]]
    unchecked = []
    for length in special_lengths(config):
        if length >= max_tokens:
            continue
        if not may_go_beyond(length):
            unchecked.append(length)
            continue
        # One row of this length and three longer ones that begin with it; the longest comes before the shortest.
        whole = (prompt + some(length))[:length]
        beyond = [whole + some(n) for n in (1, 19, 7)]
        rows += [whole, *beyond]
        short += [whole]
        long += beyond
    cut = [tuple(row[:max_tokens] for row in each) for each in (rows, short, long)]
    return CheckRows(cut[0], cut[1], cut[2], tuple(unchecked))


def padding_objection(network: RewardNetwork, *, pad_id: int, max_tokens: int) -> str | None:
    """Reason why padded batches of this network give wrong scores, or None. Raise `LoadError` where no reference can be had."""
    was_training = network.training
    network.eval()
    try:
        rows = check_rows(network.config, max_tokens)
        return ReferenceScores(network, rows).objection(PaddedScorer(network, pad_id=pad_id, max_tokens=max_tokens))
    finally:
        network.train(was_training)


class ReferenceScores:
    """Plain forwards of some rows, to compare engines with. Raise `LoadError` where the same row has two scores."""

    def __init__(self, network: RewardNetwork, rows: CheckRows) -> None:
        self._network, self._rows = network, rows
        self._expected: dict[Row, Tensor] = {}
        by_length = sorted(set(rows.rows), key=len)
        middle, longest = by_length[len(by_length) // 2], by_length[-1]
        try:
            # One of middle length before the longest and after it: this detects a model that keeps state between rows.
            for row in dict.fromkeys((middle, longest, *by_length)):
                self._expected[row] = self._plain(row)
            again = [(row, self._plain(row)) for row in (middle, longest)]
            half = next(network.backbone.parameters()).dtype != torch.float32
            rounding = self._rounding(by_length[:6]) if half else 0.0
        except Exception as error:  # foreign model code may raise anything
            raise LoadError(
                f"{type(network.backbone).__name__} cannot be served: transformers' own forward of a row of random tokens raised "
                f"{type(error).__name__}: {error}"
            ) from error
        finite = [float(x.abs().max()) for x in self._expected.values() if x.isfinite().all()]
        self._scale = max([1.0, *finite])
        self._slack = _TIMES_ROUNDING * rounding
        off = max(_distance(self._expected[row], scores_H) for row, scores_H in again)
        if not off <= self._allowed(is_high=False):
            raise LoadError(
                f"{type(network.backbone).__name__} cannot be served: its score of a row changes by {off:.1e} with the rows "
                "that were scored before it"
            )

    def objection(self, engine: CheckableEngine, *, is_high: bool = False) -> str | None:
        """Reason why this engine must not be used, or None. Frees its cached keys and values."""
        rows, short, long = self._rows.rows, self._rows.short, self._rows.long
        # In each pair the second batch uses the keys that were cached from the first.
        batches = [[long, rows], [short, rows]] if engine.shares_prefixes else [[rows]]
        allowed = self._allowed(is_high=is_high)
        for sequence in batches:
            try:
                off = max([self._error(engine, batch) for batch in sequence])
            except Exception as failed:  # as above; another engine may not need the operation that failed here
                return f"{type(failed).__name__}: {failed}"
            finally:
                engine.clear_cache()
            if not off <= allowed:
                return f"scores differ by {off:.1e} from those of a plain forward, {allowed:.1e} is allowed"
        return None

    def _allowed(self, *, is_high: bool) -> float:
        return max((_TOLERANCE_HIGH if is_high else _TOLERANCE) * self._scale, self._slack)

    def _error(self, engine: CheckableEngine, rows: Sequence[Row]) -> float:
        scored = engine.score(TokenBatch(tuple(rows))).rows
        scores_RH = [torch.tensor([v for name, v in heads.items() if name != DISTANCE]) for heads in scored]
        return max(_distance(self._expected[row], scores_H) for row, scores_H in zip(rows, scores_RH, strict=True))

    @torch.inference_mode()
    def _plain(self, row: Row) -> Tensor:
        """`(H,)`: the row alone, as transformers computes it."""
        network = self._network
        out = network.backbone(input_ids=torch.tensor([row], device=network.device), use_cache=False)
        return network.values_of(out.last_hidden_state[0, -1].to(network.device)).cpu()

    def _rounding(self, rows: Sequence[Row]) -> float:
        """The largest change of a score when the output of every layer is off by one unit in the last place, at random."""
        with _rounded_otherwise(self._network.backbone):
            moved = [_distance(self._expected[row], self._plain(row)) for row in rows]
        return max([x for x in moved if x < float("inf")], default=0.0)


def _distance(expected_H: Tensor, scores_H: Tensor) -> float:
    """Largest difference; infinite where only one of the two is finite, and 0 where neither is."""
    if not bool(expected_H.isfinite().all()):
        return float("inf") if bool(scores_H.isfinite().all()) else 0.0
    return float((expected_H - scores_H).abs().nan_to_num(nan=float("inf")).max())


@contextmanager
def _rounded_otherwise(backbone: nn.Module) -> Iterator[None]:
    n_calls = itertools.count()

    def hook(_module: nn.Module, _arguments: Any, out: Any) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        at = torch.arange(out.numel(), device=out.device, dtype=torch.float32).view(out.shape)
        signs = (12.9898 * at + next(n_calls)).sin().sign()  # pseudo-random, without a generator
        return (out * (1 + torch.finfo(out.dtype).eps * signs)).to(out.dtype)

    handles = [m.register_forward_hook(hook) for m in backbone.modules() if not any(m.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
