"""Benchmark of the trip wires on streams of real text: exploits that no list knows, and honest change that must not page.

Preference pairs from a folder make an honest run of training; an exploit is put into a growing share of its responses. Each stream
is replayed through the parts that watch a run in the server.

    python -m gym.streams --data FOLDER
"""
