"""Data of the members of an ensemble, and the loss of a batch that trains several of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rewardserve.training.batches.members import of_output, trained_outputs
from rewardserve.training.batches.pair_batches import Collator, cached_rows
from rewardserve.training.loop.methods import fit_logistic
from rewardserve.training.loop.trainer import RewardTrainer
from rewardserve.training.settings.model_config import ModelConfig
from rewardserve.training.settings.validation import ConfigError
from tests.unit.training.batches.test_batches import table_of
from tests.unit.training.loop.test_trainer import COMPARISONS, Linear, config, with_pairs

N = 2000
WEIGHT = [1.0, 2.0, 1.0, 0.5, 1.0, 3.0, 1.0]


def settings(members, data="bootstrap"):
    return ModelConfig("model", members=members, member_data=data)


@pytest.fixture(scope="module")
def many():
    table = table_of([(2 * i, 2 * i + 1) for i in range(N)], groups=[i // 4 for i in range(N)])
    texts = [f"chosen {i}" for i in range(N)]
    return with_pairs(table, chosen_text=texts)


def test_a_bootstrap_has_each_pair_as_often_as_a_draw_with_replacement(many):
    shares = trained_outputs(many.items, settings(4), seed=0)
    counts = np.array([[dict(each).get(m, 0.0) for m in range(4)] for each in shares])
    assert counts.mean(0) == pytest.approx(1.0, abs=0.1)
    assert counts.var(0) == pytest.approx(1.0, abs=0.15)
    assert (counts == 0).mean() == pytest.approx(np.exp(-1), abs=0.03)
    assert (counts.sum(1) > 0).all(), "no pair is lost"
    assert np.abs(np.corrcoef(counts.T) - np.eye(4)).max() < 0.1


def test_a_draw_does_not_depend_on_the_order_of_the_pairs_but_on_the_seed(many):
    shares = trained_outputs(many.items, settings(4), seed=0)
    assert trained_outputs(many.items[::-1], settings(4), seed=0) == shares[::-1]
    assert trained_outputs(many.items, settings(4), seed=1) != shares


def test_folds_keep_groups_whole_and_share_no_pair(many):
    shares = trained_outputs(many.items, settings(4, "folds"), seed=0)
    assert all(len(each) == 1 for each in shares)
    member_of = {}
    for item, ((member, _),) in zip(many.items, shares, strict=True):
        assert member_of.setdefault(item.group, member) == member
    counts = np.bincount(list(member_of.values()))
    assert (len(counts), counts.min(), counts.max()) == (4, N // 16, N // 16), "as many groups for each"


def test_a_member_without_data_is_refused():
    table = table_of(COMPARISONS)  # one group
    with pytest.raises(ConfigError, match="without data"):
        trained_outputs(table.items, settings(2, "folds"), seed=0)


@pytest.mark.parametrize("data", ["bootstrap", "all"])
def test_a_step_of_three_members_is_that_of_their_weighted_mean_loss(tmp_path, data):
    """Against the loss of every member on its own pairs, written out in float64."""
    network = Linear(heads=3)
    table = with_pairs(table_of(COMPARISONS, n=6), weight=WEIGHT)
    shares = trained_outputs(table.items, settings(3, data), seed=0)
    cfg = config("optim.optimizer=sgd", "optim.lr=0.5", "optim.max_grad_norm=0", "model.members=3")
    parts = {n: p.detach().clone().double().requires_grad_() for n, p in network.named_parameters()}
    features = network.features.double()
    scores = (features + 0.1 * (features @ parts["trunk.weight"].T + parts["trunk.bias"])) @ parts["heads.weight"].T
    loss = total = 0.0
    for (chosen, rejected), own, weight in zip(COMPARISONS, shares, WEIGHT, strict=True):
        for member, share in own:
            loss = loss - weight * share * torch.nn.functional.logsigmoid(
                scores[chosen, member] - scores[rejected, member]
            )
            total += weight * share
    (loss / total).backward()
    collator = Collator(table, shares, cached_rows)
    RewardTrainer(network, table, collator, cfg, evaluate_held_out=None, steps=tmp_path).train()
    for name, after in network.named_parameters():
        torch.testing.assert_close(
            after.detach().double(), parts[name].detach() - 0.5 * parts[name].grad, atol=1e-6, rtol=0
        )


def test_the_logistic_start_of_a_member_is_that_of_its_pairs_repeated_as_drawn():
    torch.manual_seed(0)
    hidden = torch.randn(40, 5)
    comparisons = [(i, (7 * i + 3) % 40) for i in range(40) if i != (7 * i + 3) % 40]
    table = with_pairs(table_of(comparisons, n=40), chosen_text=[f"{i}" for i in range(len(comparisons))])
    shares = trained_outputs(table.items, settings(2), seed=0)
    found = fit_logistic(hidden, of_output(table, shares, 1), "score", l2=0.1)
    counts = [int(dict(each).get(1, 0)) for each in shares]
    places = [i for i, count in enumerate(counts) for _ in range(count)]
    repeated = replace(table, items=tuple(table.items[i] for i in places), rows=tuple(table.rows[i] for i in places))
    # A feature's scale is that of the distinct pairs, so that of the repeated ones is another ridge: none is left here.
    weak = fit_logistic(hidden, of_output(table, shares, 1), "score", l2=1e-9)
    assert weak == pytest.approx(fit_logistic(hidden, repeated, "score", l2=1e-9), rel=1e-2)
    assert not torch.equal(found, weak)
