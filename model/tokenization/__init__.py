"""Between text and token ids: policies, control tokens, split points, caches."""
