"""Which samples are audited: many prompts rather than many responses to one, whatever the order and the size of requests."""

from __future__ import annotations

from collections import Counter
from statistics import mean

import pytest

from rewardserve.service.tripwires.audit_sampling import AuditSampler


def chosen(stream, share=0.1, block=128, n_learning=0):
    """The chosen (prompt, response) of a stream of these, by block."""
    sampler = AuditSampler(share, block)
    done = []
    for n, (prompt, response) in enumerate(stream):
        done.append(sampler.add((prompt, response), prompt, hash((prompt, response)), every_prompt=n < n_learning))
    return [each for each in done if each]


def groups(n_prompts, size, first=0):
    return [(prompt, response) for prompt in range(first, first + n_prompts) for response in range(size)]


def test_the_share_is_kept_over_blocks():
    blocks = chosen(groups(1280, 1))
    assert sum(map(len, blocks)) == 128
    assert {len(block) for block in blocks} == {12, 13}


@pytest.mark.parametrize("size", [2, 4, 8])
def test_no_second_response_to_a_prompt_is_audited_while_there_are_other_prompts(size):
    blocks = chosen(groups(128, size))
    assert len(blocks) == size
    for block in blocks:
        assert Counter(Counter(prompt for prompt, _ in block).values()).keys() == {1}


def test_large_groups_spend_the_share_on_second_responses():
    (block,) = chosen(groups(8, 16))
    assert sorted(Counter(prompt for prompt, _ in block).values()) == [1] * 4 + [2] * 4


@pytest.mark.parametrize("size", [1, 4, 16])
def test_every_prompt_of_the_start_is_audited_once(size):
    (block,) = chosen(groups(128 // size, size), share=0.01, n_learning=128)
    assert sorted(prompt for prompt, _ in block) == list(range(128 // size))


def test_after_the_start_the_share_begins_again():
    blocks = chosen(groups(512, 1), n_learning=256)
    assert [len(block) for block in blocks] == [128, 128, 12, 13]


def test_interleaved_groups_are_audited_as_contiguous_ones():
    stream = [(prompt, response) for response in range(8) for prompt in range(16)]
    (block,) = chosen(stream)
    assert len({prompt for prompt, _ in block}) == len(block) == 12


def test_every_place_in_a_group_is_as_likely():
    """Completed responses may arrive the shortest first, so the first of a group is no random one."""
    blocks = chosen(groups(16 * 300, 8))
    assert mean(response for block in blocks for _, response in block) == pytest.approx(3.5, abs=0.15)


def test_samples_that_may_be_chosen_later_are_kept_and_no_others():
    """The choice from a whole block, sorted at its end, is the same as the choice with the few that are kept."""
    stream = [((n * 7919) % 23, n) for n in range(1280)]
    kept = chosen(stream)

    sampler = AuditSampler(0.1, 128)
    for n, (prompt, response) in enumerate(stream):
        sampler.add((prompt, response), prompt, hash((prompt, response)), every_prompt=False)
        assert len(sampler._candidates) <= 2 * 13 + 1 or n % 128 == 127
    assert kept == reference(stream)


def reference(stream, block=128, share=0.1):
    """The same rule over whole blocks: by turn of the response in its prompt, then by priority."""
    out, spent = [], 0
    for at in range(0, len(stream), block):
        part = stream[at : at + block]
        number = at // block + 1
        priority = {each: hash((number, hash(each))) for each in part}

        def turn(each, part=part, priority=priority):
            return sum(other[0] == each[0] and priority[other] < priority[each] for other in part)

        n = int(share * block * number - spent + 1e-9)
        spent += n
        out.append(sorted(part, key=lambda each: (turn(each), priority[each]))[:n])
    return out


def test_a_sample_without_a_share_is_never_audited():
    assert chosen(groups(256, 1), share=1e-6) == []
