"""From encoded sequences to forwards of a network: batches, packed rows, scores."""
