"""Who rides together through the network, and the task that drives."""
