"""`reward-train`: the command line. Parses, calls one verb of `run`, turns errors into one line and exit code 2."""

# ruff: noqa: E402
from __future__ import annotations

from model.shortage import explain_shortage

explain_shortage("reward-train")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.calibration import CalibrationError
from model.checkpoint import CheckpointError
from model.printable import printable
from model.template import EncodingPolicyError
from training import recipe
from training.calibrate import NothingToFit
from training.config import Config, ConfigError
from training.data import DataError
from training.sequences import EncodingFailed

VERBS = ("train", "evaluate", "calibrate", "export", "crossvalidate")
_EXPECTED = (
    ConfigError,
    DataError,
    EncodingFailed,
    CheckpointError,
    CalibrationError,
    EncodingPolicyError,
    NothingToFit,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Return the exit code: 0, or 2 when the recipe, the data or the model is at fault."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0].startswith("--config") or arguments[0].startswith("--set"):
        arguments.insert(0, "train")
    options = _parser().parse_args(arguments)
    try:
        _run(options.verb, recipe.load(Path(options.config), options.set), options.checkpoint, options.folds)
    except _EXPECTED as error:
        print(printable(f"reward-train: {error}", keep="\n"), file=sys.stderr)
        return 2
    except Exception as error:
        from training.trainer import NonFiniteLoss

        if not isinstance(error, NonFiniteLoss):
            raise
        print(printable(f"reward-train: {error}", keep="\n"), file=sys.stderr)
        return 3
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reward-train", description="Train, judge, calibrate and export reward models."
    )
    parser.add_argument("verb", choices=VERBS, nargs="?", default="train")
    parser.add_argument("--config", required=True, help="the recipe, a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. optim.lr=1e-4")
    parser.add_argument(
        "--folds", type=int, default=5, help="crossvalidate: how many; as many as groups leaves one out"
    )
    parser.add_argument("--checkpoint", help="evaluate, calibrate: the reward model to read")
    return parser


def _run(verb: str, config: Config, checkpoint: str | None, n_folds: int) -> None:
    from training import run

    if verb in ("evaluate", "calibrate") and checkpoint is None:
        checkpoint = str(Path(config.output.folder) / "checkpoint")
    if verb == "train":
        print(f"checkpoint: {run.train(config)}")
    elif verb == "export":
        print(f"checkpoint: {run.export_last_step(config)}")
    elif verb == "crossvalidate":
        _crossvalidate(config, n_folds)
    elif verb == "calibrate":
        print(f"checkpoint: {run.calibrate_checkpoint(config, str(checkpoint))}")
    else:
        metrics, page = run.evaluate_checkpoint(config, str(checkpoint))
        for m in metrics:
            print(f"{m.head} {m.source}: accuracy {m.accuracy:.3f} of {m.n_pairs} pairs, longer wins {m.longer:.3f}")
        print(f"report: {page}")


def _crossvalidate(config: Config, n_folds: int) -> None:
    from training.crossvalidate import crossvalidate, spread

    found = crossvalidate(config, n_folds)
    for m, by_group in zip(found.metrics, found.by_group, strict=True):
        print(
            f"{m.head} {m.source}: accuracy {m.accuracy:.3f} [{m.accuracy_low:.3f}, {m.accuracy_high:.3f}] of {m.n_pairs} "
            f"pairs in {m.n_groups} groups ({spread(by_group)} a group), longer wins {m.longer:.3f}, shorter "
            f"{m.shorter:.3f}, NLL {m.nll:.3f}, ECE {m.ece:.3f}"
        )
    for m in found.crossed:
        print(f"{m.head} on {m.source}: accuracy {m.accuracy:.3f} [{m.accuracy_low:.3f}, {m.accuracy_high:.3f}]")
    print(f"report: {found.page}")


if __name__ == "__main__":
    sys.exit(main())
