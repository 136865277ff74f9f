"""Attention along whole chains of key ranges, by the kernels in C, against softmax written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardserve.model.backends.native import Instructions, Kernels, load
from rewardserve.model.backends.packed import chains
from rewardserve.model.backends.packed.chains import attend_chains, kernel_tables
from rewardserve.model.backends.packed.layout import AttentionPlan, Layout, PrefixedTree, lay_out
from rewardserve.model.backends.packed.tree import build_prefix_tree, without_sharing
from tests.support.machine import KERNELS
from tests.unit.model.packed.test_parity import packed, scores_of
from tests.unit.model.test_network import alone, make, ragged_rows

ROW = st.lists(st.integers(0, 2), min_size=1, max_size=90).map(tuple)
ROWS = st.lists(ROW, min_size=1, max_size=6)
HEADS = st.sampled_from([(1, 1), (4, 2), (6, 1)])
WIDTH = st.sampled_from([8, 32, 40, 64, 80])
TOLERANCE: dict[Instructions, float] = {"amx": 1e-4, "avx512": 1e-5}  # of values of the size of 1


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load(request.param)


def tensors(layout: Layout, heads: tuple[int, int], width: int, n_given: int) -> list[torch.Tensor]:
    """Queries, keys, values as transformers hands them over, and keys and values of one beginning."""
    generator = torch.Generator().manual_seed(len(layout.ids))
    n = len(layout.ids)
    shapes = [(n, heads[0]), (n, heads[1]), (n, heads[1]), (n_given, heads[1]), (n_given, heads[1])]
    return [torch.randn(1, *shape, width, generator=generator).transpose(1, 2) for shape in shapes]


def written_out(query, key, value, cached_prefix, plan: AttentionPlan, scale: float) -> torch.Tensor:
    """Every query for itself: the keys of its chain up to its own position, softmax, sum."""
    query, key, value = (x[0].double() for x in (query, key, value))
    n_repeat = query.shape[0] // key.shape[0]
    out = torch.zeros(plan.n_queries, query.shape[0], query.shape[2], dtype=torch.float64)
    for self_span in plan.self_spans:
        of_chain = [
            (key, value) if part.given is None else tuple(x[0].double() for x in cached_prefix)
            for part in self_span.chain
        ]
        k, v = (
            torch.cat([kv[i][:, p.first : p.last] for kv, p in zip(of_chain, self_span.chain, strict=True)], 1)
            for i in (0, 1)
        )
        k, v = (x.repeat_interleave(n_repeat, 0) for x in (k, v))
        for at in range(*self_span.queries):
            sees = self_span.n_keys - (self_span.queries[1] - at) + 1
            weights = (scale * torch.einsum("he,hke->hk", query[:, at], k[:, :sees])).softmax(-1)
            out[at] = torch.einsum("hk,hke->he", weights, v[:, :sees])
    return out


@settings(deadline=None)
@given(ROWS, st.booleans(), HEADS, WIDTH, st.sampled_from([0, 5, 40]))
def test_every_query_sees_its_chain_up_to_itself(kernels: Kernels, rows, shares: bool, heads, width: int, n_given: int):
    layout = lay_out(
        [PrefixedTree((build_prefix_tree if shares else without_sharing)(rows), 0 if n_given else None, n_given)]
    )
    query, key, value, *cached_prefix = tensors(layout, heads, width, n_given)
    for plan in (layout.every, layout.last):
        asked = query[:, :, : plan.n_queries]
        out = attend_chains(kernels, asked, key, value, [tuple(cached_prefix)], kernel_tables(plan), 0.3)
        expected = written_out(asked, key, value, cached_prefix, plan, 0.3)
        torch.testing.assert_close(out[0].double(), expected, rtol=0, atol=TOLERANCE[kernels.instructions])


def test_scores_far_apart_are_a_choice_and_no_overflow(kernels: Kernels):
    layout = lay_out([PrefixedTree(without_sharing([tuple(range(50))]))])
    query, key, value, *_ = tensors(layout, (2, 1), 32, 0)
    out = attend_chains(kernels, 100 * query, 100 * key, value, [], kernel_tables(layout.every), 1.0)
    best = (query[0].double() @ key[0].double().transpose(1, 2)).masked_fill(torch.ones(50, 50).triu(1).bool(), -1e9)
    torch.testing.assert_close(out[0].transpose(0, 1), value[0, 0][best.argmax(-1)], rtol=1e-4, atol=1e-4)


def test_what_is_no_number_stays_with_those_who_see_it(kernels: Kernels):
    rows = [(1, 2) * 20 + (3,) * 9, (1, 2) * 20 + (4,) * 9, (5,) * 30]
    layout = lay_out([PrefixedTree(build_prefix_tree(rows))])
    query, key, value, *_ = tensors(layout, (2, 1), 32, 0)
    spoilt = layout.scored[layout.rows[0]]  # the last token of the first row
    key[:, :, spoilt] = float("nan")
    out = attend_chains(kernels, query, key, value, [], kernel_tables(layout.every), 1.0)[0]
    assert [i for i in range(len(layout.ids)) if out[i].isnan().any()] == [spoilt]


def test_the_bits_do_not_depend_on_the_number_of_threads(kernels: Kernels):
    layout = lay_out([PrefixedTree(build_prefix_tree([(1,) * 70 + (i,) * 50 for i in range(2, 8)]))])
    query, key, value, *_ = tensors(layout, (4, 2), 64, 0)
    before, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            outs.append(attend_chains(kernels, query, key, value, [], kernel_tables(layout.every), 1.0))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_a_chain_that_is_too_long_is_left_to_the_other_kernels(monkeypatch):
    monkeypatch.setattr(chains, "_MOST_COLUMNS", 32)
    assert kernel_tables(lay_out([PrefixedTree(without_sharing([(1,) * 33]))]).every) is None
    network, rows = make("llama"), ragged_rows()
    assert max(map(len, rows)) > 32
    expected = torch.stack([alone(network, row) for row in rows])
    with packed(network, matmul_precision="high") as scorer:
        torch.testing.assert_close(scores_of(scorer, rows), expected, rtol=0, atol=1e-4)
