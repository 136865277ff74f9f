"""The exit codes of every command, for the code, for `--help` and for the reference. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

FAILED, USAGE_ERROR, SOME_FAILED, INTERRUPTED = 1, 2, 3, 130
"""The meaning of a number is the same in all commands; `EXIT_CODES` has it word by word."""

_INVALID = "invalid arguments, settings or files"
_STOPPED = "interrupted by Ctrl-C"
_TRAINING = {
    FAILED: "the model cannot be loaded, or the run failed: a loss that is not finite, a full disk, too little memory",
    USAGE_ERROR: "invalid arguments, recipe or data",
    INTERRUPTED: "interrupted by Ctrl-C or SIGTERM",
}

EXIT_CODES: Mapping[str, Mapping[int, str]] = {
    "serve": {
        0: "stopped by SIGTERM or Ctrl-C, with every accepted request answered",
        FAILED: "the model or its audit judge cannot be served, the port cannot be bound, or REWARD_DRAIN_TIMEOUT_S was too "
        "short for the accepted requests",
        USAGE_ERROR: _INVALID,
    },
    "demo": {
        0: "the demonstration has ended, also by Ctrl-C",
        FAILED: "the server cannot be started, or fails",
        USAGE_ERROR: _INVALID,
    },
    "check": {
        0: "a server would serve the checkpoint",
        FAILED: "it would refuse the checkpoint, for the printed reasons",
        USAGE_ERROR: "invalid arguments",
        INTERRUPTED: _STOPPED,
    },
    "compare": {
        0: "every row is in the comparison",
        FAILED: "a model cannot be loaded",
        USAGE_ERROR: _INVALID,
        SOME_FAILED: "some rows have no score of both models",
        INTERRUPTED: _STOPPED,
    },
    "bench": {
        0: "every sample has a score",
        FAILED: "no server, or no sample with a score",
        USAGE_ERROR: _INVALID,
        SOME_FAILED: "some requests or samples have no score",
        INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; the figures so far are printed",
    },
    "score": {
        0: "every line has a score",
        FAILED: "the model cannot be loaded, or scoring ended early: the same command continues it",
        USAGE_ERROR: _INVALID,
        SOME_FAILED: "some lines have an error instead of a score",
        INTERRUPTED: f"{_STOPPED}; the same command continues it",
    },
    "train": {0: "the checkpoint is written", **_TRAINING},
    "finish": {0: "the checkpoint, or its missing report, is written", **_TRAINING},
    "evaluate": {
        0: "the report, or the results of the benchmark, are written",
        **_TRAINING,
        SOME_FAILED: "some rows of the benchmark have a response without a score",
    },
    "calibrate": {0: "the checkpoint is written", **_TRAINING},
    "average": {0: "the checkpoint is written", **_TRAINING},
    "crossvalidate": {0: "the report is written", **_TRAINING},
    "sweep": {0: "the table of trials and the best recipe are written", **_TRAINING},
    "mine": {
        0: "the queue is written, or no pair is contradicted by the judge",
        FAILED: "a model cannot be loaded, or the policy's server fails",
        USAGE_ERROR: _INVALID,
        SOME_FAILED: "some rows or responses were not looked at; the queue of the others is written",
        INTERRUPTED: _STOPPED,
    },
    "export-labels": {
        0: "the labels are printed",
        FAILED: "the store cannot be opened or read",
        USAGE_ERROR: _INVALID,
        INTERRUPTED: _STOPPED,
    },
    "export": {
        0: "the contract, or the whole checkpoint, is written",
        FAILED: "nothing is written, for the printed reason",
        USAGE_ERROR: "invalid arguments or files",
        INTERRUPTED: f"{_STOPPED} or SIGTERM; nothing is written",
    },
    "keys": {0: "the key is printed and its digest is in the file", USAGE_ERROR: _INVALID},
    "rules": {0: "the rules are printed", USAGE_ERROR: _INVALID},
    "review": {
        0: "the action is done",
        FAILED: "the store cannot be opened, read or written",
        USAGE_ERROR: "invalid arguments or lines, or no such run or sample",
        INTERRUPTED: f"{_STOPPED}; the samples that are imported stay",
    },
    "honeypots": {0: "the hashed prompts are printed", USAGE_ERROR: _INVALID, INTERRUPTED: _STOPPED},
    "version": {0: "the versions are printed", USAGE_ERROR: "invalid arguments"},
}
"""Command -> exit code -> its meaning. Besides these, each command exits with 1 where output cannot be written, where the system
refuses memory, threads or files, and after a bug, which prints a traceback."""


def exit_codes_of(command: str) -> str:
    """The exit codes of a command as a sentence, for its help."""
    return f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES[command].items())}."
