"""Rows go to an engine with continuous batching, and every request is answered after any failure of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rewardserve.model.backends.vllm_api import PooledRow
from rewardserve.model.backends.vllm_scorer import IN_FLIGHT, EventLoopThread, VllmScorer
from rewardserve.model.scorer import OutOfMemory, ScorerError, TokenBatch
from tests.support.engines import TIMEOUT_S, GatedEngine

A, B, C = (1, 2, 3), (4, 5), (6,)


class EngineDeadError(Exception):
    """Of the same name as vLLM's."""


@pytest.fixture
def build():
    """Scorers over gated engines, and their ends."""
    built = []

    def scorer(engine, *, names=("score",), biases=(0.0,), stall_timeout_s=TIMEOUT_S):
        ended = []
        made = VllmScorer(
            engine,
            EventLoopThread(),
            names,
            biases,
            max_tokens=99,
            shares=True,
            stall_timeout_s=stall_timeout_s,
            after=lambda: ended.append(1),
        )
        made.ended = ended
        built.append(made)
        return made

    yield scorer
    for made in built:
        made.close()
        assert not made._loop._thread.is_alive()


@pytest.fixture
def callers():
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        yield threads


def test_rows_keep_their_order_in_any_order_of_results(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A, B, C)))
    engine.wait_for(3)
    for row in (C, A, B):
        engine.let_go(row)
    scored = coming.result(TIMEOUT_S)
    assert scored.rows == ({"score": 1.0}, {"score": 4.0}, {"score": 6.0})
    assert len(set(engine.names)) == 3


def test_what_the_engine_had_already_is_not_computed(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A, B)))
    engine.wait_for(2)
    for row in (A, B):
        engine.let_go(row)
    assert coming.result(TIMEOUT_S).tokens_computed == 2


def test_batches_are_at_the_engine_together_and_none_waits_for_another(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    assert scorer.streams
    first, second = (callers.submit(scorer.score, TokenBatch((row,))) for row in (A, B))
    engine.wait_for(2)
    engine.let_go(B)
    assert second.result(TIMEOUT_S).rows == ({"score": 4.0},)
    assert not first.done()
    engine.let_go(A)
    first.result(TIMEOUT_S)


def test_heads_have_their_names_and_biases(build, callers):
    engine = GatedEngine(lambda ids: PooledRow((1.0, 2.0), 0))
    scorer = build(engine, names=("a", "b"), biases=(0.5, -0.25))
    coming = callers.submit(scorer.score, TokenBatch((A,)))
    engine.wait_for(1)
    engine.let_go(A)
    assert coming.result(TIMEOUT_S).rows == ({"a": 1.5, "b": 1.75},)


def test_another_number_of_values_than_of_heads_is_an_error(build, callers):
    engine = GatedEngine(lambda ids: PooledRow((1.0, 2.0), 0))
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A,)))
    engine.wait_for(1)
    engine.let_go(A)
    with pytest.raises(ScorerError, match="2 values for the 1 heads"):
        coming.result(TIMEOUT_S)


def test_one_row_that_fails_fails_its_batch_and_the_others_are_given_up(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A, B, C)))
    engine.wait_for(3)
    engine.let_go(B, ValueError("the prompt 'my secret' is odd"))
    with pytest.raises(ScorerError) as raised:
        coming.result(TIMEOUT_S)
    assert "secret" not in str(raised.value)
    assert "ValueError" in str(raised.value)
    again = callers.submit(scorer.score, TokenBatch(((9,),)))  # what was cancelled before it has run by then
    engine.wait_for(1)
    engine.let_go((9,))
    assert again.result(TIMEOUT_S).rows == ({"score": 9.0},)
    assert set(engine.given_up) == {A, C}
    assert scorer.is_alive


def test_an_engine_that_dies_fails_the_rows_in_flight_and_is_not_asked_again(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A,)))
    engine.wait_for(1)
    engine.is_dead = True
    engine.let_go(A, EngineDeadError("see above"))
    with pytest.raises(ScorerError, match="died"):
        coming.result(TIMEOUT_S)
    assert not scorer.is_alive
    with pytest.raises(ScorerError, match="dead"):
        scorer.score(TokenBatch((B,)))
    assert len(engine.names) == 1


def test_running_out_of_memory_has_its_own_word(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A,)))
    engine.wait_for(1)
    error = RuntimeError("a step failed")
    error.__cause__ = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    engine.let_go(A, error)
    with pytest.raises(OutOfMemory):
        coming.result(TIMEOUT_S)


def test_an_error_that_is_a_timeout_is_an_error_and_not_a_wait(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A,)))
    engine.wait_for(1)
    engine.let_go(A, TimeoutError())
    with pytest.raises(ScorerError, match="TimeoutError"):
        coming.result(TIMEOUT_S)
    assert scorer.is_alive


def test_an_engine_that_answers_nothing_counts_as_dead(build):
    engine = GatedEngine()
    scorer = build(engine, stall_timeout_s=0.05)
    with pytest.raises(ScorerError, match="counts as dead"):
        scorer.score(TokenBatch((A, B)))
    assert not scorer.is_alive


def test_a_row_that_never_comes_back_while_others_do_is_given_up_and_the_engine_lives(build, callers):
    engine = GatedEngine()
    scorer = build(engine, stall_timeout_s=0.5)
    lost = callers.submit(scorer.score, TokenBatch((A,)))
    engine.wait_for(1)
    while not lost.done():
        coming = callers.submit(scorer.score, TokenBatch((B,)))
        engine.wait_for(1)
        engine.let_go(B)
        coming.result(TIMEOUT_S)
    with pytest.raises(ScorerError, match="has not answered"):
        lost.result()
    assert scorer.is_alive


def test_closing_refuses_what_is_in_flight_and_ends_the_engine_once(build, callers):
    engine = GatedEngine()
    scorer = build(engine)
    coming = callers.submit(scorer.score, TokenBatch((A, B)))
    engine.wait_for(2)
    scorer.close()
    with pytest.raises(ScorerError):
        coming.result(TIMEOUT_S)
    assert set(engine.given_up) == {A, B}
    scorer.close()
    assert (engine.n_shutdowns, scorer.ended) == (1, [1])
    assert not scorer.is_alive
    with pytest.raises(ScorerError):
        scorer.score(TokenBatch((A,)))


def test_whoever_comes_while_it_is_being_closed_is_refused(build):
    """Between the question whether it lives and the loop that takes the row, it may have been closed."""
    scorer = build(GatedEngine())
    scorer.close()
    scorer._is_closed, scorer._engine.is_dead = False, False
    with pytest.raises(ScorerError, match="shut down"):
        scorer.score(TokenBatch((A,)))
    scorer._is_closed = True


def test_an_engine_that_chokes_on_its_end_is_ended_all_the_same(build):
    engine = GatedEngine()
    engine.shutdown = lambda: 1 / 0
    scorer = build(engine)
    scorer.close()
    assert scorer.ended == [1]
