"""The HTTP API: JSON requests become records for `scoring`, and its results become JSON replies."""
