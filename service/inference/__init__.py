"""From samples to rewards: encode, queue, plan, run batches, cache, reward."""
