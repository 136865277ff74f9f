"""Workloads are what their descriptions say, and the same for the same seed."""

import pytest

from benchmarks import workloads
from benchmarks.workloads import DUPLICATES, GROUP_SIZE, LONG, WORKLOADS, make


def n_tokens(tokenizer, text):
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_texts_and_another_one_shares_none(tokenizer, name):
    once, again, other = (make(name, tokenizer, 0.05, seed).pairs for seed in (3, 3, 4))
    assert once == again
    assert not {p.response for p in once} & {p.response for p in other}


@pytest.mark.parametrize(
    ("name", "prompt", "response"),
    [
        ("ragged", workloads.PROMPT, workloads.RESPONSE),
        ("single", workloads.PROMPT, workloads.RESPONSE),
        ("grpo", workloads.GROUP_PROMPT, workloads.GROUP_RESPONSE),
    ],
)
def test_every_length_is_in_the_stated_range(tokenizer, name, prompt, response):
    for pair in make(name, tokenizer, 0.25).pairs:
        assert prompt[0] - 1 <= n_tokens(tokenizer, pair.prompt) <= prompt[1] + 1
        assert response[0] - 1 <= n_tokens(tokenizer, pair.response) <= response[1] + 1


def test_ragged_lengths_really_are_ragged(tokenizer):
    lengths = sorted(n_tokens(tokenizer, p.prompt) for p in make("ragged", tokenizer, 0.5).pairs)
    tenth = len(lengths) // 10
    assert lengths[-tenth] > 4 * lengths[tenth]


def test_long_rows_are_of_about_four_thousand_tokens(tokenizer):
    for pair in make("long", tokenizer, 0.1).pairs:
        assert LONG[0] - 10 <= n_tokens(tokenizer, pair.prompt) + n_tokens(tokenizer, pair.response) <= LONG[1] + 300


def test_one_pair_in_five_is_a_copy_of_an_earlier_one(tokenizer):
    pairs = make("duplicates", tokenizer, 1.0).pairs
    copies = [i for i, pair in enumerate(pairs) if pair in pairs[:i]]
    assert len(copies) == round(DUPLICATES * len(pairs))


def test_a_group_has_one_prompt_and_eight_different_responses(tokenizer):
    work = make("grpo", tokenizer, 0.1)
    assert len({request[0].prompt for request in work.requests}) == len(work.requests)
    for request in work.requests:
        assert len({p.prompt for p in request}) == 1
        assert len({p.response for p in request}) == GROUP_SIZE


def test_full_size_is_sixty_four_groups_and_the_scale_keeps_requests_whole(tokenizer):
    assert len(make("grpo", tokenizer).requests) == 64
    assert {len(r) for r in make("ragged", tokenizer, 0.1).requests} == {16}
    assert len(make("single", tokenizer, 0.01).requests) == 32
