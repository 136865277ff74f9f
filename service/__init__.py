"""The server: samples come in over HTTP, rewards go out. Knows no torch."""
