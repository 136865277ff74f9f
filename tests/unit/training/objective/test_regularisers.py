"""Terms of the loss that keep scores from length, layout and wording, against float64 references that share no code with them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.network import RewardNetwork
from rewardserve.training.augmentation import consistency
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence
from rewardserve.training.objective import indifference
from rewardserve.training.objective.indifference import MovingMoments
from rewardserve.training.objective.length_head import add_length_heads, drop_length_heads
from rewardserve.training.settings import recipe
from rewardserve.training.settings.loss_config import ConsistencyConfig
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.transforms import TRANSFORMS
from tests.unit.training.batches.test_batches import table_of
from tests.unit.training.loop.test_trainer import COMPARISONS, Linear, config, trainer_of, weights, with_pairs

WEIGHT = [1.0, 2.0, 1.0, 0.5, 1.0, 3.0, 1.0]
LENGTH = [1.0, 0.2, 2.5, 0.7, 1.9, 0.1]
STEP = ("optim.optimizer=sgd", "optim.lr=0.5", "optim.max_grad_norm=0")


def table_with(variables, twins=(), n=6):
    table = with_pairs(table_of(COMPARISONS, n=n), weight=WEIGHT)
    sequences = tuple(replace(s, variables=tuple(v)) for s, v in zip(table.sequences, variables, strict=False))
    return replace(table, sequences=(*sequences, *table.sequences[len(sequences) :]), twins=tuple(twins))


def stepped(network, table, overrides, tmp_path):
    """Weights after one step of gradient descent with rate 0.5."""
    trainer_of(network, table, config(*STEP, *overrides), tmp_path).train()
    return {name: value.double().numpy() for name, value in weights(network).items()}


def scores_of(parts, features):
    """Scores `(N, H)` of the test network, in numpy."""
    hidden = features + 0.1 * (features @ parts["trunk.weight"].T + parts["trunk.bias"])
    return hidden @ parts["heads.weight"].T


def gradient(objective, parts, name, step=1e-6):
    """Central differences of a function of the weights."""
    found = np.zeros_like(parts[name])
    for place in np.ndindex(found.shape):
        ends = []
        for sign in (1, -1):
            moved = {n: v.copy() for n, v in parts.items()}
            moved[name][place] += sign * step
            ends.append(objective(moved))
        found[place] = (ends[0] - ends[1]) / (2 * step)
    return found


def check_step(network, table, overrides, objective, tmp_path, atol=2e-6):
    """One step equals the one by central differences of the whole objective in float64."""
    before = {name: value.double().numpy() for name, value in weights(network).items()}
    features = network.features.double().numpy()
    after = stepped(network, table, overrides, tmp_path)
    for name in before:
        wanted = before[name] - 0.5 * gradient(lambda parts: objective(scores_of(parts, features), parts), before, name)
        assert after[name] == pytest.approx(wanted, abs=atol), name


def pair_loss(score):
    chosen, rejected = (score[list(side)] for side in zip(*COMPARISONS, strict=True))
    return (np.array(WEIGHT) * np.log1p(np.exp(rejected - chosen))).sum() / sum(WEIGHT)


def weighted_correlation(x, y, w):
    """Pearson correlation by `numpy.cov` with weights."""
    cov = np.cov(x, y, aweights=w, ddof=0)
    return cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1])


def sides(values):
    chosen, rejected = (np.asarray(values)[list(side)] for side in zip(*COMPARISONS, strict=True))
    return chosen, rejected


def in_both_directions(values):
    chosen, rejected = sides(values)
    return np.concatenate([chosen - rejected, rejected - chosen])


TWICE = np.concatenate([WEIGHT, WEIGHT])
MARKUP = [0.0, 0.5, 0.5, 1.0, 0.0, 0.2]


def test_the_penalty_on_differences_is_the_squared_correlation_of_pairs_in_both_directions(tmp_path):
    def objective(scores, parts):
        found = [
            weighted_correlation(in_both_directions(scores[:, 0]), in_both_directions(v), TWICE) ** 2
            for v in (LENGTH, MARKUP)
        ]
        return pair_loss(scores[:, 0]) + 0.7 * found[0] + 0.3 * found[1]

    table = table_with(zip(LENGTH, MARKUP, strict=True))
    check_step(Linear(), table, ["indifference.length=0.7", "indifference.markup=0.3"], objective, tmp_path)


def test_the_penalty_on_responses_is_the_squared_correlation_of_scores(tmp_path):
    def objective(scores, parts):
        found = weighted_correlation(np.concatenate(sides(scores[:, 0])), np.concatenate(sides(LENGTH)), TWICE)
        return pair_loss(scores[:, 0]) + 0.7 * found**2

    table = table_with([(v,) for v in LENGTH])
    check_step(Linear(), table, ["indifference.length=0.7", "indifference.between=responses"], objective, tmp_path)


def test_the_length_head_is_trained_by_the_three_terms_of_odin(tmp_path):
    def objective(scores, parts):
        quality, length = (
            weighted_correlation(np.concatenate(sides(scores[:, h])), np.concatenate(sides(LENGTH)), TWICE)
            for h in (0, 1)
        )
        q, k = parts["heads.weight"]
        overlap = abs(q @ k) / math.sqrt(q @ q) / math.sqrt(k @ k)
        return pair_loss(scores.sum(axis=1)) + 0.8 * (abs(quality) - length) + 0.6 * overlap

    table = table_with([(v,) for v in LENGTH])
    overrides = ["length_head.correlation=0.8", "length_head.orthogonality=0.6"]
    check_step(Linear(heads=2), table, overrides, objective, tmp_path)


TWINS = ((0, 6), (0, 7), (1, 7), (4, 2))


@pytest.mark.parametrize(
    "cut", [("optim.batch_pairs=7", "optim.accumulate=1"), ("optim.batch_pairs=2", "optim.accumulate=4")]
)
def test_the_consistency_loss_is_a_squared_difference_a_pair_however_the_batch_is_cut(cut, tmp_path):
    def objective(scores, parts):
        s, total = scores[:, 0], 0.0
        for (c, r), w in zip(COMPARISONS, WEIGHT, strict=True):
            squares = [(s[a] - s[b]) ** 2 for side in (c, r) for a, b in TWINS if a == side]
            total += w * float(np.mean(squares)) if squares else 0.0
        return pair_loss(s) + 0.4 * total / sum(WEIGHT)

    check_step(Linear(n=8), table_with([], TWINS, n=8), ["consistency.weight=0.4", *cut], objective, tmp_path)


def test_every_head_has_its_own_correlation(tmp_path):
    heads = ["a", "b", "a", "b", "a", "b", "a"]
    table = with_pairs(table_with([(v,) for v in LENGTH]), head=heads)

    def objective(scores, parts):
        total = 0.0
        for h, name in enumerate("ab"):
            own = np.array([head == name for head in heads])
            w = np.array(WEIGHT) * own
            chosen, rejected = sides(scores[:, h])
            total += (w * np.log1p(np.exp(rejected - chosen))).sum()
            rho = weighted_correlation(
                in_both_directions(scores[:, h]), in_both_directions(LENGTH), np.concatenate([w, w])
            )
            total += 0.7 * w.sum() * rho**2
        return total / sum(WEIGHT)

    network = Linear(heads=2)
    before = {name: value.double().numpy() for name, value in weights(network).items()}
    trainer_of(network, table, config(*STEP, "indifference.length=0.7"), tmp_path, heads=("a", "b")).train()
    features = network.features.double().numpy()
    wanted = gradient(lambda parts: objective(scores_of(parts, features), parts), before, "heads.weight")
    assert network.heads.weight.detach().numpy() == pytest.approx(before["heads.weight"] - 0.5 * wanted, abs=2e-6)


# -- moments of small batches -----------------------------------------------------------------------------


def own_moments(x, y, w):
    return indifference.moments(x, y[:, None], w[:, None])


@pytest.fixture
def drawn():
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(12, generator=rng, dtype=torch.float64, requires_grad=True)
    return (
        x,
        0.5 * x.detach() + torch.randn(12, generator=rng, dtype=torch.float64),
        torch.rand(12, generator=rng).double(),
    )


PARTS = (slice(0, 5), slice(5, 7), slice(7, 12))


def test_the_pool_of_all_small_batches_has_the_correlation_of_all_pairs(drawn):
    x, y, w = drawn
    pool = MovingMoments(100, lambda sums: sums)
    for part in PARTS:
        found = pool.correlation(own_moments(x[part], y[part], w[part]), is_centred=False)
    both = [np.concatenate([v, -v]) for v in (x.detach().numpy(), y.numpy())]
    assert found.item() == pytest.approx(weighted_correlation(*both, np.tile(w.numpy(), 2)), abs=1e-12)


def test_a_drift_of_the_level_between_batches_is_no_variance(drawn):
    """No loss of pairs fixes the level of the scores: a run could lower the correlation by moving it from step to step."""
    x, y, w = (v.detach() for v in drawn)
    found = []
    for drift in (0.0, 50.0):
        pool = MovingMoments(100, lambda sums: sums)
        for i, part in enumerate(PARTS):
            last = pool.correlation(own_moments(x[part] + drift * i, y[part], w[part]), is_centred=True)
        found.append(last.item())
    assert found[1] == pytest.approx(found[0], abs=1e-9)
    centred = [np.concatenate([(v[p] - np.average(v[p], weights=w[p])) for p in PARTS]) for v in (x.numpy(), y.numpy())]
    cov = [float((w.numpy() * a * b).sum()) for a, b in ((centred[0],) * 2, (centred[1],) * 2, tuple(centred))]
    assert found[0] == pytest.approx(cov[2] / math.sqrt(cov[0] * cov[1]), abs=1e-12)


def test_the_gradient_of_a_batch_that_is_like_the_pool_is_that_of_the_pool(drawn):
    x, y, w = drawn
    pool, gradients = MovingMoments(3 * float(w.sum()), lambda sums: sums), []
    for _ in range(3):
        gradients.append(torch.autograd.grad(pool.correlation(own_moments(x, y, w), is_centred=True).sum(), x)[0])
    assert torch.allclose(gradients[0], gradients[2], atol=1e-12)


def test_ranks_together_have_the_gradient_of_one_process(drawn):
    """Each rank's loss is divided by the weight of all; the gradients are summed over ranks."""
    x, y, w = drawn
    whole = MovingMoments(0, lambda sums: sums).correlation(own_moments(x, y, w), is_centred=False)
    (wanted,) = torch.autograd.grad(whole.sum() ** 2, x)
    parts = (slice(0, 4), slice(4, 12))
    everything = sum(own_moments(x[p], y[p], w[p]).detach() for p in parts)
    total = 0.0
    for p in parts:
        found = MovingMoments(0, lambda sums: everything).correlation(own_moments(x[p], y[p], w[p]), is_centred=False)
        assert found.item() == pytest.approx(whole.item(), abs=1e-12)
        total = total + (found.sum() ** 2) * w[p].sum() / w.sum()
    assert torch.allclose(torch.autograd.grad(total, x)[0], wanted, atol=1e-12)


def test_the_pool_forgets_and_its_weight_stays_bounded(drawn):
    x, y, w = drawn
    pool = MovingMoments(20, lambda sums: sums)
    for _ in range(50):
        pool.correlation(own_moments(x, y, w), is_centred=True)
    assert float(pool.kept_HV4[0, 0, 0]) == pytest.approx(20)
    other = MovingMoments(20, lambda sums: sums)
    for _ in range(50):
        other.correlation(own_moments(x, -y, w), is_centred=True)
    for _ in range(50):
        found = other.correlation(own_moments(x, y, w), is_centred=True)
    assert found.item() == pytest.approx(pool.correlation(own_moments(x, y, w), is_centred=True).item(), abs=1e-3)


def test_scores_or_variables_that_do_not_vary_have_no_correlation_and_a_finite_gradient():
    x = torch.zeros(4, requires_grad=True)
    for y in (torch.ones(4), torch.arange(4.0)):
        found = MovingMoments(0, lambda sums: sums).correlation(own_moments(x, y, torch.ones(4)), is_centred=True)
        assert found.item() == 0
        assert bool(torch.isfinite(torch.autograd.grad((found**2).sum(), x)[0]).all())


def test_a_resumed_run_continues_with_the_moments_of_the_first(tmp_path):
    def run(folder, steps, *overrides):
        network = Linear()
        table = table_with([(v,) for v in LENGTH])
        cfg = config(
            *("indifference.length=2", "optim.lr=0.1", "optim.batch_pairs=2", "optim.optimizer=sgd"),
            *(f"optim.max_steps={steps}", "output.save_steps=3", *overrides),
        )
        trainer = trainer_of(network, table, cfg, folder)
        trainer.train(resume_from_checkpoint=str(folder / "steps" / "checkpoint-3") if overrides else None)
        return weights(network)["heads.weight"]

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    assert torch.equal(run(tmp_path / "parts", 6, "output.resume=true"), whole)
    (tmp_path / "parts" / "steps" / "checkpoint-3" / "moments.safetensors").unlink()
    assert not torch.equal(run(tmp_path / "parts", 6, "output.resume=true"), whole)


# -- what they are for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["indifference.length=3", "length_head.correlation=3"])
def test_a_score_that_length_explains_lets_go_of_it(override, tmp_path):
    """Feature 0 is length, which wins in four of five pairs; feature 1 is quality, which wins in all."""
    rng = np.random.default_rng(0)
    n = 80
    quality, length = rng.normal(size=2 * n), rng.normal(size=2 * n)
    comparisons = []
    for i in range(n):
        c, r = 2 * i, 2 * i + 1
        if quality[c] < quality[r]:
            c, r = r, c
        if (length[c] < length[r]) == (rng.random() < 0.8):
            length[c], length[r] = length[r], length[c]
        comparisons.append((c, r))
    table = table_of(comparisons)
    table = replace(
        table, sequences=tuple(replace(s, variables=(v,)) for s, v in zip(table.sequences, length, strict=True))
    )

    def correlation(*overrides):
        network = Linear(heads=2 if "length_head" in override and overrides else 1)
        network.features = torch.tensor(np.stack([length, quality, np.zeros_like(length)], axis=1), dtype=torch.float32)
        network.heads.weight.data[0] = 0.0
        network.trunk.requires_grad_(False)
        cfg = config("optim.batch_pairs=20", "optim.max_steps=120", "optim.lr=0.05", *overrides)
        trainer_of(network, table, cfg, tmp_path).train()
        with torch.no_grad():
            score = network(torch.arange(2 * n)[:, None], None).scores_BH[:, 0].numpy()
        return abs(np.corrcoef(score, length)[0, 1])

    before = correlation()
    assert before > 0.25
    assert correlation(override) < 0.6 * before


def test_length_heads_are_added_behind_the_heads_and_dropped_again():
    class Backbone(torch.nn.Module):
        pass

    network = RewardNetwork(Backbone(), torch.randn(2, 5), ("a", "b"), (1.0, 1.0), torch.tensor([0.5, -0.5]))
    before = network.heads.weight.detach().clone()
    add_length_heads(network, seed=1)
    assert network.heads.weight.shape == (4, 5)
    assert network.values_of(torch.ones(3, 5)).shape == (3, 4)
    assert torch.equal(network.heads.weight[:2], before)
    other = network.heads.weight[2:].detach().clone()
    drop_length_heads(network)
    assert torch.equal(network.heads.weight, before)
    assert network.bias_H.tolist() == [0.5, -0.5]
    add_length_heads(network, seed=1)
    assert torch.equal(network.heads.weight[2:], other), "a stopped run has the same start"


# -- tables -----------------------------------------------------------------------------------------------


class TextEncoder:
    """One id a character; refuses a response of more than 60 characters."""

    def __call__(self, sample):
        from rewardserve.model.conversation import InputTooLong

        if len(sample.response) > 60:
            raise InputTooLong(n=len(sample.response), limit=60)
        return Encoded(tuple(map(ord, sample.response)), 0)

    def texts(self, sample):
        return sample.texts()


def text_table(*rows, paraphrases=()):
    texts = list(dict.fromkeys(text for row in rows for text in row))
    samples = {text: Sample(prompt="q", response=text) for text in texts}
    pairs = tuple(
        Pair(
            str(i), "s", str(i), "score", samples[c], samples[r], c, r, paraphrase=paraphrases[i] if paraphrases else ""
        )
        for i, (c, r) in enumerate(rows)
    )
    sequences = tuple(TokenSequence(tuple(map(ord, t)), len(t), samples[t]) for t in texts)
    return FeedbackTable.of_pairs(
        pairs, sequences, tuple(texts.index(c) for c, _ in rows), tuple(texts.index(r) for _, r in rows), {}
    )


def test_variables_are_those_of_the_response():
    table = indifference.with_variables(text_table(("- a\nb", "слова!")), TextEncoder(), ("length", "markup", "script"))
    assert [s.variables for s in table.sequences] == [(math.log(5), 0.5, 0.0), (math.log(6), 0.0, 1.0)]
    assert indifference.with_variables(table, TextEncoder(), ()) is table


def test_a_variable_in_which_no_pair_differs_is_refused():
    with pytest.raises(ConfigError, match=r"indifference\.markup would do nothing: in no training pair"):
        indifference.with_variables(text_table(("one", "two")), TextEncoder(), ("markup",))


def test_each_response_has_as_many_twins_as_wanted_chosen_by_digest():
    table = text_table(("Boil it well. Then cool it.", "No idea."), ("No idea.", "x"))
    found = consistency.with_twins(table, TextEncoder(), ConsistencyConfig(weight=1, twins=3), "salt")
    assert [sum(a == n for a, _ in found.twins) for n in range(3)] == [3, 3, 3]
    assert found.pairs == table.pairs
    assert found.sequences[:3] == table.sequences
    assert found == consistency.with_twins(table, TextEncoder(), ConsistencyConfig(weight=1, twins=3), "salt")
    texts = {"".join(map(chr, found.sequences[twin].ids)) for original, twin in found.twins if original == 1}
    assert texts <= {t.change("No idea.") for t in TRANSFORMS.values()}
    assert consistency.with_twins(table, TextEncoder(), ConsistencyConfig(), "salt") is table


def test_a_paraphrase_is_a_twin_of_the_preferred_response_and_long_twins_are_left_out():
    table = text_table(
        ("Boil it.", "No."), ("Yes.", "No."), ("Perhaps.", "No."), paraphrases=("Cook it.", "", "a" * 61)
    )
    found = consistency.with_twins(table, TextEncoder(), ConsistencyConfig(weight=1, transforms=()), "salt")
    assert [(a, "".join(map(chr, found.sequences[b].ids))) for a, b in found.twins] == [(0, "Cook it.")]


def test_a_table_without_twins_is_refused():
    wanted = ConsistencyConfig(weight=1, transforms=("spelling",))
    with pytest.raises(ConfigError, match=r"no training response has a twin\. The transforms spelling change none"):
        consistency.with_twins(text_table(("one", "two")), TextEncoder(), wanted, "salt")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["indifference.memory=9"], "indifference.memory is 9, which has no effect with no coefficient in indifference"),
        (["indifference.between=responses"], "no coefficient in indifference"),
        (["length_head.orthogonality=1"], "no effect with length_head.correlation: 0, which adds no length head"),
        (["consistency.twins=2"], "no effect with consistency.weight: 0"),
        (["consistency.transforms=[closer]"], "no effect with consistency.weight: 0"),
        (["consistency.weight=1", "consistency.transforms=[closr]"], r"consistency.transforms has 'closr'.*did you mean closer"),
        (["consistency.weight=1", "consistency.transforms=[]"], "no response would have a twin"),
        (["data.sources.0.paraphrase_key=p"], "no effect with consistency.weight: 0"),
        (["indifference.length=1", "length_head.correlation=1"], "has the term of length_head.correlation"),
        (["indifference.length=-1"], "indifference.length is -1.0; it must be at least 0"),
        (["indifference.markup=1", "model.head_init=logistic", "optim.epochs=0"], "which takes no step"),
        (["consistency.weight=1", "model.head_init=logistic", "optim.epochs=0"], "which takes no step"),
    ],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(overrides, message):
    base = {"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "output": {"folder": "o"}}
    with pytest.raises(ConfigError, match=message):
        recipe.parse(base, overrides)
