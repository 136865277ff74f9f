"""Trip wires: detect policies that exploit their reward, from features of the samples of a run. Pure but for `io`."""
