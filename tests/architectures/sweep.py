"""One architecture through the engine that is chosen for it, against plain forwards of each row alone.

The reference has never seen another row: each row is scored by a fresh copy of the base model, without mask or positions.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch

from rewardserve.model.backends import LoadError, ModelSpec
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import TokenBatch
from tests.architectures.build import VOCAB, Case, tiny

TOLERANCE = 2e-5
"""Largest difference, relative to the largest score or to 1, whichever is larger."""

Row = tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """A line of the table. `difference` is relative to the largest score where that is above 1."""

    name: str
    engine: str
    padding: str
    difference: float
    why: str = ""

    @property
    def is_right(self) -> bool:
        """Whether every score is that of the row alone; a model that is refused gives none."""
        return self.engine == "refused" or self.difference <= TOLERANCE


def batches() -> list[list[Row]]:
    """Batches: a prompt repeated in short rows and then in long ones, equal rows, one token; then all, and all in reverse."""
    draw = random.Random(23)

    def some(n: int) -> Row:
        return tuple(draw.randrange(5, VOCAB) for _ in range(n))

    prompt = some(50)
    short = [prompt + some(n) for n in (1, 7, 14, 15)]
    short += [short[1] + some(4), short[0], some(1), some(3), some(20), some(33)]
    long = [prompt + some(n) for n in (30, 70, 150)]
    long += [long[1] + some(9), prompt]
    return [short, long, [*short, *long], [*long, *short][::-1]]


def outcome(case: Case) -> Outcome:
    """The engine chosen for an architecture, and its error. Raise the error of transformers where no model can be created."""
    backbone = tiny(case)
    with torch.no_grad():
        backbone(
            input_ids=torch.tensor([[5, 6, 7]]), use_cache=False
        )  # an architecture that cannot compute is not tried
    fresh = copy.deepcopy(backbone)
    torch.manual_seed(1)
    network = RewardNetwork.create(backbone).eval()
    head_D = network.heads.weight[0].detach().clone()
    padding = _engine(network, "padded")
    try:
        scorer, notes = choose_engine(network, ModelSpec(prefix_cache_bytes=2**26), pad_id=4, max_tokens=256)
    except LoadError as error:
        return Outcome(case.name, "refused", padding, float("nan"), str(error))
    expected: dict[Row, float] = {}
    off = 0.0
    for batch in batches():
        for row, heads in zip(batch, scorer.score(TokenBatch(tuple(batch))).rows, strict=True):
            if row not in expected:
                expected[row] = _plain(fresh, head_D, row)
            off = max(off, abs(heads["score"] - expected[row]))
    return Outcome(case.name, scorer.name, padding, off / max(1.0, *map(abs, expected.values())), "; ".join(notes))


def _engine(network: RewardNetwork, asked: str) -> str:
    """Whether padded batches give the right scores."""
    try:
        scorer, _ = choose_engine(copy.deepcopy(network), ModelSpec(engine="padded"), pad_id=4, max_tokens=256)
    except LoadError:
        return "refused"
    return "right" if scorer.name == asked else "wrong"


@torch.no_grad()
def _plain(fresh: torch.nn.Module, head_D: torch.Tensor, row: Row) -> float:
    hidden_1TD = copy.deepcopy(fresh)(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
    return float(hidden_1TD[0, -1].float() @ head_D)
