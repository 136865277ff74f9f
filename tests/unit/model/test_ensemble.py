"""Several models as one: the scores of each alone, from one encoding, or no server at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewardserve.model.backends import LoadError, ModelSpec, echo, load
from rewardserve.model.backends.ensemble import EnsembleScorer, ensemble
from rewardserve.model.conversation import Sample
from rewardserve.model.reward import CombineSettings, RewardSettings, build_pipeline
from rewardserve.model.scorer import BatchScores, TokenBatch
from tests.support.checkpoints import reward_model
from tests.support.service_fakes import FakeScorer, one_too_few

ROWS = ((5, 6, 7), (5, 6, 7, 8), (9,))


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Two real checkpoints with the same tokenizer: one with two heads, one with one."""
    folder = tmp_path_factory.mktemp("members")
    reward_model(folder / "one", heads={"good": 1.0, "kind": 0.5})
    reward_model(folder / "two")
    return [(name, load("torch", ModelSpec(model=str(folder / name), device="cpu"))) for name in ("one", "two")]


def test_every_row_has_the_scores_that_each_member_gives_alone(members):
    scored = ensemble(members).scorer.score(TokenBatch(ROWS))
    for name, loaded in members:
        alone = loaded.scorer.score(TokenBatch(ROWS)).rows
        for row, expected in zip(scored.rows, alone, strict=True):
            assert {head: row[f"{name}/{head}"] for head in expected} == pytest.approx(expected, abs=1e-4)
    assert scored.tokens_computed == sum(m.scorer.score(TokenBatch(ROWS)).tokens_computed for _, m in members)


def test_its_reward_is_made_of_its_members_rewards(members):
    together = ensemble(members)
    ids = together.encode(Sample(prompt="a question", response="an answer")).ids
    heads = together.scorer.score(TokenBatch((ids,))).rows[0]
    alone = [
        build_pipeline(m.ensemble_members, RewardSettings(shape="none"))
        .one(m.scorer.score(TokenBatch((ids,))).rows[0])
        .value
        for _, m in members
    ]
    settings = RewardSettings(combine=CombineSettings(method="min"))
    assert build_pipeline(together.ensemble_members, settings).one(heads).value == pytest.approx(min(alone), abs=1e-4)


def test_it_says_who_is_in_it(members):
    loaded = ensemble(members)
    assert loaded.identity.name == "one+two"
    assert [name for name, _ in loaded.identity.heads] == ["one/good", "one/kind", "two/score"]
    assert loaded.identity.n_parameters == sum(m.identity.n_parameters for _, m in members)
    assert loaded.report.holds
    assert loaded.report.n_probes == sum(m.report.n_probes for _, m in members)
    assert loaded.contract.digest not in {m.contract.digest for _, m in members}


def test_it_says_where_each_member_reads_its_score(members):
    same = members[0][1].identity.score_position
    assert same
    assert ensemble(members).identity.score_position == same
    (one, first), (two, second) = members
    other = replace(second, identity=replace(second.identity, score_position="reads the score elsewhere"))
    said = ensemble([(one, first), (two, other)]).identity.score_position
    assert said == f"one {same}; two reads the score elsewhere"
    for members_of in ([(one, first), (two, other)], [(two, other), (one, first)]):
        fast = [(n, replace(m, identity=replace(m.identity, matmul_precision="high" if m is first else "highest")))
                for n, m in members_of]  # fmt: skip
        assert ensemble(fast).identity.matmul_precision == "high"


@pytest.mark.parametrize("clause", ["tokenizer_digest", "template_digest", "end_ids", "max_tokens"])
def test_members_that_would_read_other_ids_are_refused_by_clause(clause):
    one = echo.load(ModelSpec())
    other = replace(one, contract=replace(one.contract, **{clause: 7}))
    with pytest.raises(LoadError, match=clause):
        ensemble([("one", one), ("other", other)])


def test_a_member_that_has_lost_count_is_the_batchers_business():
    scorer = EnsembleScorer([("good", FakeScorer()), ("bad", FakeScorer(one_too_few))])
    assert len(scorer.score(TokenBatch(ROWS)).rows) == 2


def test_a_batch_is_padded_if_one_member_pads():
    padded, plain = FakeScorer(), echo.EchoScorer()
    scorer = EnsembleScorer([("a", padded), ("b", plain)])
    assert scorer.pads_rows
    assert not EnsembleScorer([("a", plain), ("b", plain)]).pads_rows
    assert (scorer.shares_prefixes, scorer.concurrency, scorer.max_tokens) == (False, 1, plain.max_tokens)
    assert isinstance(scorer.score(TokenBatch(ROWS)), BatchScores)
