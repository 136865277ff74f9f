"""What operators see: metrics and logs. Never a conversation, never a key."""
