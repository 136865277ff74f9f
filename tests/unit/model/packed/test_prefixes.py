"""Prefixes that are cached from batch to batch, and their eviction."""

from __future__ import annotations

import torch

from rewardserve.model.backends.packed.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache
from rewardserve.model.common_prefix import row_key
from rewardserve.model.scorer import TokenBatch
from tests.unit.model.packed.test_parity import packed
from tests.unit.model.test_network import make

PROMPT = tuple(range(100))


def layers(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of two layers; 64 bytes a token."""
    return [(torch.zeros(1, 1, n, 4), torch.zeros(1, 1, n, 4)) for _ in range(2)]


def test_a_row_finds_the_beginning_that_it_has_most_in_common_with():
    kept = PrefixCache(10**6)
    kept.keep(row_key(PROMPT), layers(100))
    kept.keep(row_key((*PROMPT[:50], 7, *range(40))), layers(91))
    found = kept.find(row_key((*PROMPT[:80], 9)))
    assert found is not None
    assert (found[0].key, found[1]) == (row_key(PROMPT), 80)


def test_at_least_one_token_of_a_row_is_left_to_compute():
    kept = PrefixCache(10**6)
    kept.keep(row_key(PROMPT), layers(100))
    found = kept.find(row_key(PROMPT[:60]))
    assert found is not None
    assert found[1] == 59


def test_a_short_beginning_is_not_worth_finding():
    kept = PrefixCache(10**6)
    kept.keep(row_key(PROMPT), layers(100))
    assert kept.find(row_key((*PROMPT[: MIN_PREFIX_TOKENS - 1], 999, 999))) is None


def test_what_is_kept_stays_within_its_bytes_and_the_least_used_goes_first():
    kept = PrefixCache(3 * (100 * 64 + 400))
    prompts = [tuple(range(i, i + 100)) for i in (0, 1000, 2000, 3000)]
    for prompt in prompts[:3]:
        kept.keep(row_key(prompt), layers(100))
    assert kept.find(row_key((*prompts[0], 5))) is not None  # used again
    kept.keep(row_key(prompts[3]), layers(100))
    assert kept.n_bytes <= kept.max_bytes
    assert [kept.find(row_key((*p, 5))) is not None for p in prompts] == [True, False, True, True]


def test_a_beginning_larger_than_the_cache_is_not_kept():
    kept = PrefixCache(1000)
    kept.keep(row_key(PROMPT), layers(100))
    assert (len(kept), kept.n_bytes) == (0, 0)


def test_a_longer_beginning_takes_the_place_of_its_own_beginning():
    kept = PrefixCache(10**6)
    kept.keep(row_key(PROMPT[:50]), layers(50))
    kept.keep(row_key(PROMPT), layers(100))
    assert len(kept) == 1
    assert kept.n_bytes == 100 * 64 + len(row_key(PROMPT))


def test_a_row_without_a_shared_prefix_costs_no_memory():
    network = make("llama")
    with packed(network, prefix_cache_bytes=10**8) as scorer:
        for i in range(5):
            scorer.score(TokenBatch((tuple(range(5 + 50 * i, 55 + 50 * i)),)))
        assert len(scorer.prefix_cache) == 0


def test_a_prompt_that_comes_for_the_second_time_is_kept_and_the_third_time_found():
    network = make("llama")
    prompt = tuple(range(5, 105))
    rows = [(*prompt, 200 + i, 201, 202) for i in range(3)]
    with packed(network, prefix_cache_bytes=10**8) as scorer:
        computed = [scorer.score(TokenBatch((row,))).tokens_computed for row in rows]
    assert computed == [103, 103, 3]


def test_responses_of_one_prompt_keep_their_prompt_once():
    network = make("llama")
    prompt = tuple(range(5, 105))
    rows = [(*prompt, 110 + i // 2, 120 + i, 202) for i in range(8)]  # two and two go on alike
    with packed(network, prefix_cache_bytes=10**8) as scorer:
        scorer.score(TokenBatch(tuple(rows)))
        assert len(scorer.prefix_cache) == 1
        found = scorer.prefix_cache.find(row_key((*prompt, 1, 2)))
        assert found is not None
        assert found[1] == 100


def test_memory_stays_bounded_over_many_prompts():
    network = make("llama")
    with packed(network, prefix_cache_bytes=200_000) as scorer:
        for i in range(60):
            prompt = tuple((i * 7 + j * 13) % 300 + 5 for j in range(60))
            scorer.score(TokenBatch(tuple((*prompt, 6 + k) for k in range(3))))
            assert scorer.prefix_cache.n_bytes <= 200_000
        assert len(scorer.prefix_cache) > 3
