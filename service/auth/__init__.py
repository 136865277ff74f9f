"""API keys, rate limits and TLS."""
