"""Every architecture, packed and with shared prefixes: equal to a plain float32 forward of each row alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from rewardserve.model.backends import ModelSpec
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import TokenBatch
from tests.support.tiny import ARCHITECTURES
from tests.unit.model.test_network import TOLERANCE, VOCAB, alone, make, ragged_rows

MANY_BYTES = 2**30
WHOLE_LAST_LAYER = {"gpt2"}  # its attention gives the whole row its shape back
WAYS = [(a, trim) for a in ARCHITECTURES for trim in (False, True) if not (trim and a in WHOLE_LAST_LAYER)]


def rows_of_groups() -> list[list[int]]:
    """Preamble, two prompts, five responses each; a response that is the beginning of another; one row twice."""
    generator = torch.Generator().manual_seed(3)

    def some(n: int) -> list[int]:
        return torch.randint(5, VOCAB, (n,), generator=generator).tolist()

    preamble = some(20)
    rows = []
    for n_prompt in (30, 45):
        prompt = preamble + some(n_prompt)
        rows += [prompt + some(n) for n in (1, 2, 13, 40)]
        rows.append(rows[-1] + some(9))
    return [*rows, rows[3], some(7)]


@contextmanager
def packed(network: RewardNetwork, **options) -> Iterator[PackedScorer]:
    scorer = PackedScorer(network, max_tokens=256, **options)
    try:
        yield scorer
    finally:
        scorer.uninstall()


def scores_of(scorer: PackedScorer, rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([[row["score"]] for row in scorer.score(TokenBatch(tuple(map(tuple, rows)))).rows])


@pytest.mark.parametrize(("architecture", "trim"), WAYS)
def test_a_row_scores_the_same_in_a_packed_batch_as_alone(architecture: str, trim: bool):
    network, rows = make(architecture), ragged_rows()
    expected = torch.stack([alone(network, row) for row in rows])
    with packed(network, share=False, trim=trim) as scorer:
        scores = scores_of(scorer, rows)
    assert expected.std() > 0.05, "the reference tells rows apart, or the comparison means nothing"
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("architecture", "trim"), WAYS)
def test_a_row_scores_the_same_with_shared_beginnings_as_alone(architecture: str, trim: bool):
    network, rows = make(architecture), [*rows_of_groups(), *ragged_rows()]
    expected = torch.stack([alone(network, row) for row in rows])
    with packed(network, trim=trim) as scorer:
        done = scorer.score(TokenBatch(tuple(map(tuple, rows))))
    scores = torch.tensor([[row["score"]] for row in done.rows])
    assert done.tokens_computed < 0.6 * sum(map(len, rows)), "something was shared"
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_scores_the_same_after_a_beginning_from_an_earlier_batch(architecture: str):
    network, rows = make(architecture), rows_of_groups()
    expected = torch.stack([alone(network, row) for row in rows])
    n_computed = 0
    with packed(network, trim=architecture not in WHOLE_LAST_LAYER, prefix_cache_bytes=MANY_BYTES) as scorer:
        for row, score in zip(rows, expected, strict=True):  # one at a time: all that is shared comes from before
            done = scorer.score(TokenBatch((tuple(row),)))
            n_computed += done.tokens_computed
            assert done.rows[0]["score"] == pytest.approx(score.item(), abs=TOLERANCE)
        together = scores_of(scorer, rows)
    assert n_computed < 0.85 * sum(map(len, rows)), "beginnings were carried over"
    torch.testing.assert_close(together, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_packed_and_all_but_gpt2_trimmed(architecture: str):
    scorer, notes = choose_engine(make(architecture), ModelSpec(), pad_id=4, max_tokens=256)
    assert isinstance(scorer, PackedScorer)
    is_whole = any(note.startswith("the last layer is computed whole") for note in notes)
    assert is_whole == (architecture in WHOLE_LAST_LAYER) == bool(notes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_that_is_chosen_gives_the_scores_of_rows_alone(architecture: str):
    network, rows = make(architecture), [*rows_of_groups(), *ragged_rows()]
    expected = torch.stack([alone(network, row) for row in rows])
    scorer, _ = choose_engine(network, ModelSpec(prefix_cache_bytes=MANY_BYTES), pad_id=4, max_tokens=256)
    for _ in range(2):
        torch.testing.assert_close(scores_of(scorer, rows), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_by_one_the_bits_of_a_score_do_not_depend_on_the_others(architecture: str):
    scorer, _ = choose_engine(make(architecture), ModelSpec(deterministic=True), pad_id=4, max_tokens=256)
    rows = [tuple(row) for row in rows_of_groups()]
    together = scorer.score(TokenBatch(tuple(rows))).rows
    assert [scorer.score(TokenBatch((row,))).rows[0] for row in reversed(rows)] == list(reversed(together))


def looped(query, key, value, call, is_causal, scale):
    """What variable-length flash attention is documented to do, one segment after the other, in plain attention."""
    n_repeat = query.shape[1] // key.shape[1]
    outs, lses = [], []
    for i in range(len(call.ends_q) - 1):
        q = query[call.ends_q[i] : call.ends_q[i + 1]].transpose(0, 1)
        k, v = (
            x[call.ends_k[i] : call.ends_k[i + 1]].transpose(0, 1).repeat_interleave(n_repeat, 0) for x in (key, value)
        )
        scores = q @ k.transpose(1, 2) * scale
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
        lses.append(scores.logsumexp(-1))
        assert q.shape[1] <= call.longest_q
        assert k.shape[1] <= call.longest_k
    return torch.cat(outs), torch.cat(lses, dim=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_scores_the_same_when_many_segments_share_a_kernel_call(architecture: str, monkeypatch):
    monkeypatch.setattr("rewardserve.model.backends.packed.scorer.varlen_for", lambda network: looped)
    network, rows = make(architecture), [*rows_of_groups(), *ragged_rows()]
    expected = torch.stack([alone(network, row) for row in rows])
    with packed(network, trim=architecture not in WHOLE_LAST_LAYER, prefix_cache_bytes=MANY_BYTES) as scorer:
        for _ in range(2):  # the second time, beginnings come from the first
            torch.testing.assert_close(scores_of(scorer, rows), expected, atol=TOLERANCE, rtol=0)
