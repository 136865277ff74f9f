"""Metrics and logs for operators. Never a conversation, never a key."""
