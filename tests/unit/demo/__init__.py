"""The streams of `rewardserve demo`."""
