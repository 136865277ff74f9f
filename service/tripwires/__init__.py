"""Where the trip wires will live: what they are handed is the record that `scoring` finishes."""
