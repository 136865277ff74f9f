"""Which engine scores a network: packed wherever that gives the scores of a plain forward, else padded.

Packing runs inside models that were not written for it. So before anybody is served, rows with everything that could go
wrong in them (common beginnings, a row beyond the attention window, rows of one token) are scored by a plain forward
of each row alone and by the engine, and an engine that gives other scores is not used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from model.backends import LoadError, MatmulPrecision, ModelSpec
from model.backends.packed import PackedScorer, Unsupported
from model.backends.padded import PaddedScorer
from model.hidden import HiddenReference
from model.network import RewardNetwork
from model.scorer import DISTANCE, TokenBatch

Engine = PackedScorer | PaddedScorer

_TOLERANCE = 1e-4
"""In float32, of scores of the size of 1."""

_SHARE_OF_HIGH = 0.25
"""Of that, what matrix products of high precision may use up on these rows: others may turn out worse."""

_TIMES_PADDED = 4.0
"""In half precision: as far off as padding puts a score, or a few times that."""

_LONGEST_WINDOW = 256
"""A longer attention window is not gone beyond: the check would take longer than the load."""


def choose(
    network: RewardNetwork, spec: ModelSpec, *, pad_id: int, max_tokens: int, hidden: HiddenReference | None = None
) -> tuple[Engine, tuple[str, ...]]:
    """The engine, and in words what it does not do and why. Raise `LoadError` when packing is asked for and wrong."""
    padded = PaddedScorer(network, pad_id=pad_id, max_tokens=max_tokens, hidden=hidden, one_by_one=spec.deterministic)
    if spec.engine == "padded":
        return padded, ()
    rows = check_rows(network.config, max_tokens)
    expected = _plain(network, rows)
    allowed = _TOLERANCE * max(1.0, float(expected.abs().max()))
    if next(network.backbone.parameters()).dtype != torch.float32:
        allowed = max(allowed, _TIMES_PADDED * _error(padded, rows, expected))
    objections: dict[tuple[bool, MatmulPrecision], str] = {}
    for trim, precision in _candidates(spec):
        try:
            scorer = PackedScorer(
                network,
                max_tokens=max_tokens,
                hidden=hidden,
                trim=trim,
                matmul_precision=precision,
                one_by_one=spec.deterministic,
                prefix_cache_bytes=spec.prefix_cache_bytes,
            )
        except (Unsupported, ValueError) as error:  # the library's own word for an attention that a model refuses
            objections[trim, precision] = str(error)
            continue
        got = scorer.matmul_precision
        share = _SHARE_OF_HIGH if got == "high" else 1.0
        why_not = objections.get((trim, got)) or _objection(scorer, rows, expected, share * allowed)
        if why_not is None:
            scorer.settle()
            whole = objections.get((trim, "high")) or scorer.precision_note
            notes = {"the last layer is computed whole": objections.get((True, got)) if not trim else None,
                     "float32 is multiplied as float32": whole if got != spec.matmul_precision else None}  # fmt: skip
            return scorer, tuple(f"{what}: {why}" for what, why in notes.items() if why)
        scorer.leave()
        objections[trim, got] = why_not
    last = [*objections.values()][-1]
    if spec.engine == "packed":
        raise LoadError(f"REWARD_ENGINE=packed is not possible here: {last}. Use auto or padded.")
    return padded, (f"rows are padded: {last}",)


def _candidates(spec: ModelSpec) -> list[tuple[bool, MatmulPrecision]]:
    """Whether the last layer is trimmed and how matrices are multiplied, the fastest first."""
    precisions: tuple[MatmulPrecision, ...] = ("high", "highest") if spec.matmul_precision == "high" else ("highest",)
    return [(trim, precision) for trim in (True, False) for precision in precisions]


def check_rows(config: object, max_tokens: int) -> list[tuple[int, ...]]:
    """Random rows, always the same ones: common beginnings, equal rows, a row of one token, one beyond the window."""
    text = config.get_text_config()  # type: ignore[attr-defined]  # transformers is Any to mypy
    rng = random.Random(17)
    window = getattr(text, "sliding_window", None) or 0

    def some(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(text.vocab_size) for _ in range(n))

    prompt, other = some(40), some(24)
    rows = [prompt + some(n) for n in (1, 6, 30)] + [other + some(11), some(1), some(17)]
    rows += [rows[2] + some(5), rows[0]]
    if window <= _LONGEST_WINDOW:
        rows += [prompt + some(window + 3)]
    return [row[:max_tokens] for row in rows]


@torch.inference_mode()
def _plain(network: RewardNetwork, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """`(rows, heads)`: each row alone, as transformers computes it."""
    return torch.stack([network(torch.tensor([row], device=network.device)).scores_BH[0].cpu() for row in rows])


def _objection(
    scorer: PackedScorer, rows: Sequence[tuple[int, ...]], expected: torch.Tensor, allowed: float
) -> str | None:
    """Why this engine is not to be used, or None. Twice: the second time, beginnings come from the first."""
    for _ in range(2):
        try:
            error = _error(scorer, rows, expected)
        except Exception as failed:  # of somebody else's model, which may raise anything; padding does without all this
            return f"{type(failed).__name__}: {failed}"
        if not error <= allowed:  # NaN is not
            return f"scores differ by {error:.1e} from those of a plain forward, {allowed:.1e} is allowed"
    return None


def _error(scorer: Engine, rows: Sequence[tuple[int, ...]], expected: torch.Tensor) -> float:
    scored = scorer.score(TokenBatch(tuple(rows))).rows
    heads_BH = [[value for name, value in heads.items() if name != DISTANCE] for heads in scored]
    return float((torch.tensor(heads_BH) - expected).abs().max())
