"""Every scorer that needs no special hardware keeps the guarantees of the interface."""

from __future__ import annotations

import pytest
import torch

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.backends.echo import VOCAB_SIZE, echo_score
from rewardserve.model.backends.ensemble import ensemble
from rewardserve.model.network import RewardNetwork
from tests.support.checkpoints import reward_model
from tests.support.scorer_suite import *  # noqa: F403
from tests.support.scorer_suite import ScorerUnderTest


def plain(network: RewardNetwork):
    """A forward of one row alone, in float32."""

    def heads(row):
        with torch.inference_mode():
            scores = network(torch.tensor([row])).scores_BH[0].tolist()
        return dict(zip(network.head_names, scores, strict=True))

    return heads


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorers") / "rm"
    return folder, reward_model(folder, heads={"good": 1.0, "kind": 0.5}, contract=False)


@pytest.fixture(scope="module", params=["packed", "padded", "one by one", "echo", "ensemble"])
def scorer_under_test(request, checkpoint):
    folder, network = checkpoint
    tiny = range(5, 300)
    if request.param == "echo":
        loaded = load("echo", ModelSpec("echo"))
        reference = lambda row: {"score": echo_score(row)}  # noqa: E731
        return ScorerUnderTest(loaded.scorer, loaded.identity, reference, range(VOCAB_SIZE), tolerance=0.0)
    alone = plain(network)
    if request.param == "ensemble":
        one = load("torch", ModelSpec(str(folder)))
        loaded = ensemble([("a", one), ("b", one)])
        both = lambda row: {f"{m}/{head}": v for m in "ab" for head, v in alone(row).items()}  # noqa: E731
        return ScorerUnderTest(loaded.scorer, loaded.identity, both, tiny, tolerance=1e-4, n_forwards=2)
    spec = ModelSpec(str(folder), engine="padded" if request.param == "padded" else "packed",
                     deterministic=request.param == "one by one")  # fmt: skip
    loaded = load("torch", spec)
    return ScorerUnderTest(loaded.scorer, loaded.identity, alone, tiny, tolerance=1e-4)
