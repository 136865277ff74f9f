"""Text from outside: read from files, escaped for a terminal. Standard library only."""
