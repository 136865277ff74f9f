"""Bounded reads, atomic writes and watched files."""
