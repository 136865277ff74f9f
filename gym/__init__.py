"""Simulated RLHF with a known gold reward, in which a policy over-optimises a reward model within seconds."""
