"""A response that raises its own feedback corrupts a policy gradient, and not one of independent queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gym.approvals import ARMS, PROTECTED_WORDS, main, tampered, train

ARM = {arm.name: arm for arm in ARMS}


def test_only_feedback_on_the_response_taken_teaches_tampering():
    plain, decoupled = (train(ARM[f"channel, {name}"], seed=1, steps=60) for name in ("policy gradient", "decoupled"))
    assert plain.words > 3 * PROTECTED_WORDS > 3 * decoupled.words


def test_the_channel_of_a_group_cancels_in_its_baseline():
    """As if there were none: the feedback of a group is raised by one number."""
    arm = ARM["channel, decoupled in groups of 8"]
    with_channel = train(arm, seed=1, steps=5)
    of_one = replace(
        arm, feedback=lambda queries, taken: tampered(queries, taken.take(np.zeros(len(taken), dtype=np.int64)))
    )
    without = train(of_one, seed=1, steps=5)
    assert abs(with_channel.gold - without.gold) < 1e-6


def test_the_command_prints_a_row_of_every_arm(capsys):
    main(["--seeds", "0", "1", "--steps", "2"])
    printed = capsys.readouterr().out
    assert all(f"| {arm.name} |" in printed for arm in ARMS)
