"""Every decoder architecture of transformers, tiny and random, through the engine that is chosen for it at load."""
