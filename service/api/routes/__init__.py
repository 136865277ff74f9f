"""Our own routes, one file an area."""
