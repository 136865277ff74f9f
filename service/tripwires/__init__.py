"""Trip wires: what a run's responses and rewards say of whether the policy exploits its reward. Pure but for the board's state."""
