"""The parts of trip wires that do I/O: watcher, audit judge, canaries, evidence, baselines on disk, webhook."""
