"""The table of over-optimisation: its rewards are the pipeline's, its audited labels have no bias, its seeds repeat."""

import json
from itertools import pairwise
from math import log

import numpy as np
import pytest

from gym import overoptimisation
from gym.counterexamples import (
    N_AUDITED,
    audited_pairs,
    bootstrap,
    climb_policy,
    concatenate,
    find_counterexamples,
    weighted,
)
from gym.gold import gold
from gym.labeller import PLANTED, label
from gym.mining import label_queue, mine_round, read_labelled, read_texts
from gym.outcomes import GymRun, paired_difference, scaling_of
from gym.overoptimisation import VARIANTS, reward_of, runs_of
from gym.policy import Policy
from gym.proxy import fit_head_D, reward_model, seed_models
from gym.responses import joined
from gym.reward_models import REWARD_MODELS, SeedData
from gym.rewards import batch_of, calibration_data
from gym.scaling import Scaling, fit_scaling
from gym.training import gold_reward
from gym.vocabulary import EOS, ids
from rewardserve.training.dataset.counterexamples import scores_path
from rewardserve.training.settings.data_config import CounterexamplesConfig

BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def data(base):
    return SeedData(base, calibration_data(base, n=1_500), seed=5, n_pairs=1_500)


@pytest.fixture(scope="module")
def judges(data):
    return {name: REWARD_MODELS[name](data) for name in ("one", "heads", "backbones")}


def flatterer(base, push=4.0):
    logits_V = base.logits_V.copy()
    logits_V[ids("flattery")] += push
    return Policy(logits_V, base.cap)


@pytest.fixture(scope="module")
def mixed(base, sampled, data):
    """Responses of which some score far beyond what the base policy writes."""
    policy = climb_policy(base, data.network(0), data.labelled, data.against, 200, seed=1)
    return joined([sampled, policy.sample(np.random.default_rng(9), np.zeros(200, dtype=np.int64))])


def rewards_and_z(name, judges, responses):
    """What the row's pipeline says, and each head on the scale of the reference responses, written out."""
    variant = BY_NAME[name]
    reward_models = judges[variant.reward_models]
    scores_BH = reward_models.models.scores_BH(responses)
    level_NH = reward_models.models.scores_BH(judges["reference"])
    z_BH = (scores_BH - level_NH.mean(axis=0)) / level_NH.std(axis=0)
    return reward_of(variant, reward_models)(responses, scores_BH), z_BH


@pytest.fixture(scope="module")
def said(data, judges, mixed):
    return lambda name: rewards_and_z(name, {**judges, "reference": data.against.responses}, mixed)


# -- rewards --------------------------------------------------------------------------------------------------------


def test_raw_is_the_standardised_head_that_the_panel_has_too(base, data, mixed):
    models = seed_models(base, seed=5, n_members=1, n_pairs=1_500, n_audit=50)
    reward_models = REWARD_MODELS["one"](data)
    assert reward_models.models.scores_BH(mixed)[:, 0] == pytest.approx(models.models["reward"].scores_B(mixed))
    reference_N = models.models["reward"].scores_B(data.against.responses)
    expected_B = (models.models["reward"].scores_B(mixed) - reference_N.mean()) / reference_N.std()
    rewards_B = reward_of(BY_NAME["raw"], reward_models)(mixed, reward_models.models.scores_BH(mixed))
    assert rewards_B == pytest.approx(expected_B)


def test_a_cap_is_the_smaller_of_the_score_and_the_cap(said):
    rewards_B, z_B1 = said("cap z<=2")
    assert rewards_B == pytest.approx(np.minimum(z_B1[:, 0], 2.0))
    assert 0.0 < (rewards_B == 2.0).mean() < 0.9


def test_a_cap_at_a_quantile_is_that_of_the_reference_responses(said, data, judges):
    rewards_B, z_B1 = said("cap q99.5")
    level_N = judges["one"].models.scores_BH(data.against.responses)[:, 0]
    high = np.quantile((level_N - level_N.mean()) / level_N.std(), 0.995)
    assert rewards_B == pytest.approx(np.minimum(z_B1[:, 0], high))
    assert rewards_B.max() == pytest.approx(high)


def test_a_soft_cap_stays_below_the_highest_of_a_thousand_and_keeps_the_order(said, judges):
    rewards_B, z_B1 = said("softcap q99.9")
    (ensemble_member,) = judges["one"].ensemble_members
    assert rewards_B.max() < ensemble_member.calibration.cap_high < z_B1.max()
    assert np.array_equal(rewards_B.argsort(), z_B1[:, 0].argsort())


def test_par_is_the_mean_sigmoid_against_the_ventiles_of_the_reference(said, data, judges):
    rewards_B, z_B1 = said("par")
    (ensemble_member,) = judges["one"].ensemble_members
    level_N = judges["one"].models.scores_BH(data.against.responses)[:, 0]
    raw_B = z_B1[:, 0] * level_N.std() + level_N.mean()
    ventiles_R = np.quantile(level_N, np.arange(1, 20) / 20)
    odds_BR = (raw_B[:, None] - ventiles_R) / ensemble_member.calibration.temperature
    assert rewards_B == pytest.approx((1.0 / (1.0 + np.exp(-odds_BR))).mean(axis=1))


def test_the_temperature_makes_held_out_margins_log_odds(data, judges):
    """Flips alone make the labels uncertain: a temperature of raw margins is at least 1, and not far from it."""
    (ensemble_member,) = judges["one"].ensemble_members
    assert 0.8 < ensemble_member.calibration.temperature < 2.0


def test_a_batch_counts_the_ending_where_there_was_one(sampled):
    batch = batch_of(sampled, np.zeros((len(sampled), 2)), ("a", "b"))
    assert batch.lengths == [len(variant) for variant in sampled.rows()]
    assert batch.missing_end == [variant[-1] != EOS for variant in sampled.rows()]
    assert 0 < sum(batch.missing_end) < len(sampled)
    assert batch.heads[-1] == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("kind", ["heads", "backbones"])
@pytest.mark.parametrize(("how", "combine"), [("mean", np.mean), ("min", np.min)])
def test_an_ensemble_combines_calibrated_members(said, kind, how, combine):
    rewards_B, z_BH = said(f"4 {kind}, {how}")
    assert z_BH.shape[1] == 4
    assert rewards_B == pytest.approx(combine(z_BH, axis=1))


def test_softmin_is_a_log_mean_of_exponentials(said):
    rewards_B, z_BH = said("4 backbones, softmin")
    assert rewards_B == pytest.approx(-0.5 * np.log(np.exp(-z_BH / 0.5).mean(axis=1)))


@pytest.mark.parametrize(("name", "gamma"), [("debias 1", 1.0), ("debias .5", 0.5)])
def test_debias_takes_out_what_the_length_in_tokens_is_worth(said, judges, mixed, name, gamma):
    rewards_B, z_B1 = said(name)
    (ensemble_member,) = judges["one"].ensemble_members
    knots, worth = np.array(ensemble_member.calibration.length_curve).T
    tokens = [len(variant) for variant in mixed.rows()]
    shift_B = np.interp(np.log(tokens), knots, worth) - np.interp(ensemble_member.calibration.log_length, knots, worth)
    assert rewards_B == pytest.approx(z_B1[:, 0] - gamma * shift_B)


def test_heads_share_a_backbone_and_backbones_differ(judges):
    of_heads, of_backbones = (judges[kind].models.models.values() for kind in ("heads", "backbones"))
    assert len({m.network.bias_D.tobytes() for m in of_heads}) == 1
    assert len({m.network.bias_D.tobytes() for m in of_backbones}) == 4
    assert len({m.head_D.tobytes() for m in of_heads}) == 4


# -- audited labels -------------------------------------------------------------------------------------------------


def for_flattery(labelled):
    """How much more often than gold and the flips explain the response with more flattery wins."""
    p_left_N = 1.0 / (1.0 + np.exp((gold(labelled.right) - gold(labelled.left)) / 0.75))
    expected_N = 0.125 + 0.75 * p_left_N
    more_N = np.sign(labelled.left.count_B("flattery") - labelled.right.count_B("flattery"))
    return float(((labelled.left_won_N - expected_N) * more_N).mean() / 0.5 * len(more_N) ** 0.5)


def test_audited_labels_follow_gold_and_nothing_else(base):
    found = audited_pairs(flatterer(base, push=2.0), 20_000, np.random.default_rng(1))
    assert abs(for_flattery(found)) < 3.0  # standard errors
    biased = label(found.left, found.right, PLANTED["human"], np.random.default_rng(1))
    assert for_flattery(biased) > 10.0


def test_audited_pairs_are_of_the_policy_that_was_asked(base):
    found = audited_pairs(flatterer(base), 300, np.random.default_rng(2))
    assert min(found.left.count_B("flattery").mean(), found.right.count_B("flattery").mean()) > 5.0


def mine(data, seed=5, climb=2):
    return find_counterexamples(
        data.base, data.network(0), data.labelled, data.judge, data.against, seed, climb=climb, per_round=50
    )


def test_every_round_of_mining_climbs_the_model_that_the_last_one_corrected(data, monkeypatch):
    seen = []

    def spy(base, network, labelled, *rest, **named):
        seen.append((len(labelled.left), named["seed"]))
        return climb_policy(base, network, labelled, *rest, **named)

    monkeypatch.setattr("gym.counterexamples.climb_policy", spy)
    found = mine(data)
    sizes = [n for n, _ in seen]
    assert sizes[0] == 1_500
    assert all(25 <= after - before <= 50 for before, after in pairwise([*sizes, 1_500 + len(found.left)]))
    assert len({seed for _, seed in seen}) == 3
    assert len(data.audited_variants.left) == N_AUDITED == len(data.audited_base.left)


def test_mined_labels_weigh_as_much_as_in_training_and_the_others_1(data):
    found = mine(data)
    assert set(found.weight_N) == {CounterexamplesConfig("queue").weight} == {data.weight}
    assert set(data.audited_base.weight_N) == {data.weight}
    assert set(data.labelled.weight_N) == {1.0}


def test_a_weight_counts_as_so_many_pairs(data):
    some = data.audited_base
    thrice = concatenate([weighted(some, 1.0)] * 3)
    fitted = [fit_head_D(data.network(0), each) for each in (weighted(some, 3.0), thrice, weighted(some, 1.0))]
    assert fitted[0] == pytest.approx(fitted[1])
    assert fitted[0] != pytest.approx(fitted[2], abs=1e-3)


def test_mining_finds_responses_that_the_base_policy_does_not_write(data):
    """They are longer. The mean of one seed varies by 15 % with the order of the queue alone."""

    def of_last_round(climb):
        mined = [mine(data, seed, climb).left for seed in range(10, 14)]
        return np.mean([left.lengths_B[len(left) * 2 // 3 :].mean() for left in mined])

    expected = data.audited_base.left.lengths_B.mean()
    assert of_last_round(climb=60) > 1.2 * expected > of_last_round(climb=2)


def test_mined_pairs_are_those_that_the_command_writes_and_a_labeller_has_seen(data, tmp_path):
    policy = climb_policy(data.base, data.network(0), data.labelled, data.against, 60, seed=1)
    model, rng = reward_model(data.network(0), data.labelled), np.random.default_rng(3)
    queue = mine_round(policy, model, data.judge, 50, rng, tmp_path)
    rows = [json.loads(line) for line in queue.read_text().splitlines()]
    assert (len(rows), {row["verdict"] for row in rows}) == (50, {None})
    label_queue(queue, PLANTED["none"], rng)
    scores = {row["id"]: row for row in map(json.loads, scores_path(queue).read_text().splitlines())}
    for row in rows[:5]:
        assert scores[row["id"]]["a"]["model"] == pytest.approx(model.scores_B(read_texts([row["a"]]))[0])
    found = read_labelled(queue)
    texts = {(chosen, rejected) for chosen, rejected in zip(found.left.texts(), found.right.texts(), strict=True)}
    verdicts = [json.loads(line) for line in queue.read_text().splitlines()]
    labelled = {(row[row["verdict"]], row["b" if row["verdict"] == "a" else "a"]) for row in verdicts}
    assert 25 <= len(texts) < 50
    assert texts <= labelled


def test_mining_is_determined_by_its_seed(data):
    def tokens(seed):
        found = mine(data, seed)
        return found.left.tokens_BT.tobytes(), found.right.tokens_BT.tobytes()

    assert tokens(5) == tokens(5)
    assert tokens(5)[0] != tokens(6)[0]
    assert tokens(5)[1] != tokens(6)[1]


def test_joining_and_drawing_keep_a_pair_together(data):
    both = concatenate([data.labelled, data.audited_base])
    again = bootstrap(both, np.random.default_rng(0))

    def told(labelled):
        sides = zip(labelled.left.tokens_BT, labelled.right.tokens_BT, strict=True)
        return [(a.tobytes(), b.tobytes(), bool(w)) for (a, b), w in zip(sides, labelled.left_won_N, strict=True)]

    assert told(both) == told(data.labelled) + told(data.audited_base)
    share = len(set(told(again))) / len(both.left)
    assert set(told(again)) <= set(told(both))
    assert share == pytest.approx(1 - 1 / np.e, abs=0.03)


# -- rows -----------------------------------------------------------------------------------------------------------


def test_every_row_has_a_name_of_its_own_and_a_jury_that_exists():
    assert len(BY_NAME) == len(VARIANTS)
    assert {variant.reward_models for variant in VARIANTS} - {None} == set(REWARD_MODELS)
    assert [variant.name for variant in VARIANTS if variant.reward_models is None] == ["oracle (gold), KL .02"]


def test_a_row_is_determined_by_its_seed(base, data):
    few = [BY_NAME["raw"], BY_NAME["4 heads, min"], BY_NAME["audited base, softmin, KL .01"]]
    again = SeedData(base, data.against, seed=5, n_pairs=1_500)
    other = SeedData(base, data.against, seed=6, n_pairs=1_500)
    one, same, different = (runs_of(w, few, steps=12) for w in (data, again, other))
    for variant in few:
        assert one[variant.name].gold_T.tolist() == same[variant.name].gold_T.tolist()
        assert one[variant.name].kl_T.tolist() == same[variant.name].kl_T.tolist()
        assert one[variant.name].kl_T[-1] != different[variant.name].kl_T[-1]


def test_a_difference_is_taken_from_the_row_that_was_named():
    runs = {name: [outcome([level] * 10)] for name, level in (("raw", 1.0), ("par", 3.0), ("lsc", 2.5))}
    table = overoptimisation.summary(runs, "par")
    assert [table[name]["difference"] for name in runs] == [-2.0, 0.0, -0.5]


def test_rows_of_gold_are_shaped_gold(data, mixed):
    variant = BY_NAME["gold, cap q95"]
    reward_models = REWARD_MODELS["gold"](data)
    rewards_B = reward_of(variant, reward_models)(mixed, reward_models.models.scores_BH(mixed))
    gold_N = gold(data.against.responses)
    high = np.quantile(gold_N, 0.95)
    assert rewards_B * gold_N.std() + gold_N.mean() == pytest.approx(np.minimum(gold(mixed), high))


def test_advantages_of_groups_train_another_policy(data):
    batch, group = (runs_of(data, [BY_NAME["raw"]], 5, group_advantages=given)["raw"] for given in (False, True))
    assert batch.kl_T[1] != group.kl_T[1]


def test_a_row_does_not_depend_on_the_rows_beside_it(data):
    heads = BY_NAME["4 heads, mean"]
    alone, beside = runs_of(data, [heads], 12), runs_of(data, [BY_NAME["audited base"], BY_NAME["par"], heads], 12)
    assert alone[heads.name].kl_T.tolist() == beside[heads.name].kl_T.tolist()


def test_the_oracle_asks_no_pipeline(data, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(overoptimisation, "build_pipeline", never)
    told = runs_of(data, [BY_NAME["oracle (gold), KL .02"]], 3)
    assert len(told["oracle (gold), KL .02"].gold_T) == 3
    with pytest.raises(AssertionError):
        runs_of(data, [BY_NAME["raw"]], 3)
    assert gold_reward(data.against.responses, np.empty(0)).tolist() == gold(data.against.responses).tolist()


def test_the_penalty_of_a_row_holds_the_policy_back(data):
    free, held = runs_of(data, [BY_NAME["raw"], BY_NAME["raw, KL .05"]], 60).values()
    assert held.kl < 0.5 * free.kl


# -- outcomes -------------------------------------------------------------------------------------------------------


def outcome(gold_T, kl_T=None):
    gold_T = np.asarray(gold_T, dtype=float)
    return GymRun(gold_T, np.full(len(gold_T), 7.0), np.arange(len(gold_T), dtype=float) if kl_T is None else kl_T)


def test_peak_and_final_are_means_of_ten_steps():
    run = outcome([*[1.0] * 10, *[2.0] * 10, 100.0, *[0.0] * 9, -10.0])
    assert (run.peak, run.final) == (pytest.approx(11.8), pytest.approx(-1.0))
    assert (run.kl, run.length) == (30.0, 7.0)


def test_differences_are_taken_seed_by_seed():
    of_raw, of_variant = ([outcome([level] * 10) for level in levels] for levels in ((0.0, 5.0, 1.0), (1.0, 7.0, 4.0)))
    mean, error = paired_difference(of_variant, of_raw)
    assert (mean, error) == (pytest.approx(2.0), pytest.approx(1.0 / 3**0.5))
    assert np.isnan(paired_difference(of_variant[:1], of_raw[:1])[1])


def test_the_table_has_a_line_for_each_row_and_one_for_the_curve():
    table = overoptimisation.summary({"raw": [outcome([1.0] * 10)], "other": [outcome([1.5] * 10)]})
    assert table["other"]["difference"] == 0.5
    lines = overoptimisation.render_table(table).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("other")
    assert lines[2].endswith("+0.50 (nan)")
    found = overoptimisation.render_scaling(Scaling(2.0, 1.0, 0.9))
    assert "alpha 2.000, beta 1.000, peak at d 2.7 (KL 7)" in found


def test_the_curve_of_gao_is_found_again_and_peaks_where_it_says():
    kl_N = np.linspace(0.1, 200.0, 400)
    d_N = np.sqrt(kl_N)
    found = fit_scaling(kl_N, d_N * (0.9 - 0.3 * np.log(d_N)))
    assert (found.alpha, found.beta, found.explained) == pytest.approx((0.9, 0.3, 1.0))
    assert d_N[found.gain_N(kl_N).argmax()] == pytest.approx(found.peak_d, abs=0.05)
    assert log(found.peak_d) == pytest.approx(0.9 / 0.3 - 1.0)
    assert np.isnan(Scaling(1.0, -0.1, 0.5).peak_d)


def test_the_curve_goes_through_all_runs_from_the_common_start():
    kl_T = np.linspace(0.0, 100.0, 50)
    d_T = np.sqrt(np.maximum(kl_T, 1e-300))
    runs = [outcome(1.25 + d_T * (a - 0.2 * np.log(d_T)), kl_T) for a in (0.5, 0.7)]
    found = scaling_of(runs, start=1.25)
    assert (found.alpha, found.beta) == (pytest.approx(0.6), pytest.approx(0.2))
