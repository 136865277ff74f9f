"""What trip wires do beyond deciding: watch, ask, deliver, keep."""
