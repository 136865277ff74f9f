"""Models in memory: load, serve, replace and unload them."""
