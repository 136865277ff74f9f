"""Tokenisation: encoding policies, control tokens, split points, caches."""
