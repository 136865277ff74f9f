"""The models in memory: what is loaded, which of them serves, and how one follows another."""
