"""Chat templates: rendered within a budget, and taken apart."""
