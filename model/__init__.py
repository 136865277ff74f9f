"""What a reward model is. Knows no HTTP, no metrics, no optimizer."""
