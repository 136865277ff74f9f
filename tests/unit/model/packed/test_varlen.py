"""The CUDA path's attention on the CPU: torch's variable-length kernel has a stand-in of the same signature, written out.

Keys, queries and values are looked up by token and position, so that each row has a separate reference: plain causal
attention over that row alone.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import varlen as torchs

from rewardserve.model.backends.packed.attention import PackedForward
from rewardserve.model.backends.packed.kernels import kernel_for
from rewardserve.model.backends.packed.layout import KeyRange, PrefixedTree, SelfSpan, lay_out
from rewardserve.model.backends.packed.tree import build_prefix_tree, without_sharing
from rewardserve.model.backends.packed.varlen import flash_varlen

N_IDS, N_POSITIONS, WIDTH = 3, 96, 8
TOLERANCE = 1e-5


def attend_written_out(query, key, value, cu_seq_q, cu_seq_k, *, scale, window_size, enable_gqa):
    """What the kernel is documented to do. A window is (left, right) of the diagonal through the last query and key."""
    n_repeat = query.shape[1] // key.shape[1]
    assert n_repeat == 1 or enable_gqa, "the kernel would refuse"
    outs, sums = [], []
    for i in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[i] : cu_seq_q[i + 1]].transpose(0, 1)
        k, v = (x[cu_seq_k[i] : cu_seq_k[i + 1]].transpose(0, 1).repeat_interleave(n_repeat, 0) for x in (key, value))
        at_Q = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        at_K = torch.arange(k.shape[1])
        left, right = (math.inf if side < 0 else side for side in window_size)
        sees = (at_K >= at_Q - left) & (at_K <= at_Q + right)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~sees, -math.inf)
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, dim=1)


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    """torch 2.13's."""
    assert return_aux.lse
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    return attend_written_out(
        query, key, value, cu_seq_q, cu_seq_k, scale=scale, window_size=window_size, enable_gqa=enable_gqa
    )


def older_varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None, scale=None
):  # fmt: skip
    """The first form that torch had: no windows, no groups of heads."""
    window_size = (-1, 0) if is_causal else (-1, -1)
    return attend_written_out(
        query, key, value, cu_seq_q, cu_seq_k, scale=scale, window_size=window_size, enable_gqa=False
    )


def test_the_stand_in_has_the_signature_of_the_kernel():
    theirs, ours = (inspect.signature(f).parameters.values() for f in (torchs.varlen_attn, varlen_attn))
    if "enable_gqa" not in {p.name for p in theirs}:
        pytest.skip("this torch has an older kernel")
    assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in ours]


def tables(n_heads: int, seed: int) -> torch.Tensor:
    """`(positions, ids, heads, width)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_POSITIONS, N_IDS, n_heads, WIDTH, generator=generator)


def looked_up(table: torch.Tensor, positions, ids) -> torch.Tensor:
    """`(1, H, N, E)`, as transformers hands it over."""
    return table[torch.tensor(positions), torch.tensor(ids)].transpose(0, 1)[None]


def alone(row, query, key, value, window) -> torch.Tensor:
    """`(H, E)`: the last token of plain causal attention over one row."""
    at = range(len(row))
    q, k, v = (looked_up(table, at, row)[0] for table in (query, key, value))
    n_repeat = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(n_repeat, 0) for x in (k, v))
    scores = q[:, -1:] @ k.transpose(1, 2) * WIDTH**-0.5
    if window:
        scores[..., : max(0, len(row) - window)] = -math.inf
    return (scores.softmax(-1) @ v)[:, 0]


def beginnings(self_span: SelfSpan, ids, known) -> list[tuple[int, ...]]:
    """For each token of a segment, the row up to it."""
    spelt = tuple(i for k in self_span.chain for i in (ids if k.given is None else known[k.given])[k.first : k.last])
    return [spelt[: self_span.first_position + n + 1] for n in range(self_span.queries[1] - self_span.queries[0])]


rows_of_ids = st.lists(st.lists(st.integers(0, N_IDS - 1), min_size=1, max_size=24).map(tuple), min_size=1, max_size=8)


@st.composite
def batches(draw):
    """Groups of rows, each with a known beginning or none, and rows that begin alike: few ids make many trees."""
    groups = draw(st.lists(st.tuples(st.integers(0, 20), rows_of_ids), min_size=1, max_size=3))
    known = [tuple(draw(st.integers(0, N_IDS - 1)) for _ in range(n)) for n, _ in groups]
    stems = [tuple(draw(st.integers(0, N_IDS - 1)) for _ in range(draw(st.integers(0, 40)))) for _ in groups]
    return [(k, [s + r for r in rows]) for k, s, (_, rows) in zip(known, stems, groups, strict=True)]


@given(
    batch=batches(),
    n_key_heads=st.sampled_from([1, 2]),
    n_repeat=st.sampled_from([1, 3]),
    window=st.sampled_from([None, None, 4, 30, 90]),
    tree_of=st.sampled_from([build_prefix_tree, without_sharing]),
    kernel=st.sampled_from([varlen_attn, older_varlen_attn]),
    only_last=st.booleans(),
)
def test_random_trees_attend_as_each_row_alone(batch, n_key_heads, n_repeat, window, tree_of, kernel, only_last):
    query, key, value = tables(n_key_heads * n_repeat, 1), tables(n_key_heads, 2), tables(n_key_heads, 3)
    parts, given_kv, whole = [], [], []
    for known, rows in batch:
        parts.append(PrefixedTree(tree_of(rows), len(given_kv) if known else None, len(known)))
        if known:
            at = range(len(known))
            given_kv.append([(looked_up(key, at, known), looked_up(value, at, known))])
        whole += [known + row for row in rows]
    layout = lay_out(parts)
    q, k, v = (looked_up(table, layout.positions, layout.ids) for table in (query, key, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchs, "varlen_attn", kernel)
        forward = PackedForward(
            layout, torch.tensor(layout.scored), kernel_for(torch.device("cpu")), flash_varlen(), given=given_kv
        )
        if only_last:
            forward.last_kv, q = (k, v), q[:, :, list(layout.scored)]
        out_QHE = forward.attend(q, k, v, WIDTH**-0.5, window, None)[0]
    scored_SHE = out_QHE if only_last else out_QHE[list(layout.scored)]
    expected = torch.stack([alone(row, query, key, value, window) for row in whole])
    torch.testing.assert_close(scored_SHE[list(layout.rows)], expected, atol=TOLERANCE, rtol=0)
    if not only_last:  # the tokens before the last ones feed the next layer
        known_ids = [known for known, _ in batch if known]
        before = [row for self_span in layout.every.self_spans for row in beginnings(self_span, layout.ids, known_ids)]
        expected = torch.stack([alone(row, query, key, value, window) for row in before])
        torch.testing.assert_close(out_QHE, expected, atol=TOLERANCE, rtol=0)


def test_what_a_chain_keeps_is_the_rows_own_keys():
    """Keys and values to keep are gathered along the chain of a row, from the given beginning on."""
    key, value = tables(2, 2), tables(2, 3)
    known, row = (0, 1, 2, 1), (2, 2, 0)
    layout = lay_out([PrefixedTree(build_prefix_tree([row, (2, 2, 1, 1)]), 0, len(known))])
    at = range(len(known))
    given_kv = [[(looked_up(key, at, known), looked_up(value, at, known))]]
    chain = layout.last.self_spans[layout.rows[0]].chain
    assert chain[0] == KeyRange(0, len(known), 0)
    k, v = (looked_up(table, layout.positions, layout.ids) for table in (key, value))
    forward = PackedForward(
        layout, torch.tensor(layout.scored), kernel_for(torch.device("cpu")), None, given=given_kv, kept=[chain]
    )
    forward.attend(k, k, v, 1.0, None, None)
    ((kept_key, kept_value),) = forward.copies[0]
    whole = known + row
    assert torch.equal(kept_key, looked_up(key, range(len(whole)), whole))
    assert torch.equal(kept_value, looked_up(value, range(len(whole)), whole))
