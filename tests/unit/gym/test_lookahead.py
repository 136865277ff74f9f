"""A choice that pays now and is bad later is learned without lookahead, and avoided with it, within its limits."""

from __future__ import annotations

from gym.lookahead import ARMS, AVOIDED, LEARNED, main, train

SHARE = {arm.name: train(arm, seed=1) for arm in ARMS}


def test_lookahead_ends_the_bait():
    assert SHARE["no lookahead"] >= LEARNED
    assert max(SHARE[f"lookahead, {by}"] for by in ("min", "mean", "quantile 0.25")) <= AVOIDED


def test_it_sees_no_further_than_its_continuations_and_does_not_outbid_replaced_rewards():
    limits = [share for name, share in SHARE.items() if ";" in name]
    assert len(limits) == 2
    assert min(limits) >= LEARNED


def test_the_command_prints_a_row_of_every_arm(capsys):
    main(["--seeds", "0", "1", "--steps", "2"])
    printed = capsys.readouterr().out
    assert all(f"| {arm.name} |" in printed for arm in ARMS)
