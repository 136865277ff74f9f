"""The routes of this server's API, one file an area."""
