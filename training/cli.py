"""Training subcommands: parse arguments, call one function of `workflow`, map errors to one line and an exit code."""

from __future__ import annotations

import gc
import json
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rewardserve.arguments import Parser, respell
from rewardserve.exit_codes import FAILED, INTERRUPTED, SOME_FAILED, USAGE_ERROR
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.text.printable import printable
from rewardserve.signals import sigterm_as_sigint
from rewardserve.training.dataset import counterexamples, data, sources
from rewardserve.training.dataset.data import DataError
from rewardserve.training.dataset.sequences import PairEncodingError
from rewardserve.training.errors import (
    ModelUnusable,
    PackagesMissing,
    RunFailed,
    Stopped,
    UploadFailed,
    explain,
    require_packages,
)
from rewardserve.training.evaluation.calibrate import NothingToFit
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

_TO_CORRECT = (ConfigError, DataError, PairEncodingError, NothingToFit)
_SETTINGS = {name: f"model.{name}: true" for name in ("allow_pickle", "ignore_checkpoint_code")}
"""Settings that messages of `model` name, as they are written in a recipe."""
_SUMMARIES = {
    "train": "Train a reward model, and write it as a checkpoint.",
    "finish": "Finish a stopped training: turn its newest complete step into a checkpoint. A run that ended between its "
    "checkpoint and its report gets all that it lacks.",
    "evaluate": "Evaluate a checkpoint on the held-out pairs of a recipe, and write a report; or score a benchmark file with a "
    "checkpoint or a running server.",
    "calibrate": "Fit the calibration of a checkpoint on the held-out pairs of a recipe, and write the checkpoint with it into "
    "output.folder, with calibration.html. A checkpoint that is read from there is replaced; one from elsewhere stays as it "
    "is, and output.folder must hold no finished run.",
    "average": "Average the weights of several trainings of one model (WARM), and write the mean as a checkpoint with its "
    "calibration and report. Refused where the path between them loses accuracy on the held-out pairs of the recipe.",
    "crossvalidate": "Evaluate a recipe on every pair, each held out once with its whole group.",
    "sweep": "Search settings of a recipe for the highest cross-validated accuracy, and write the best recipe. The same command "
    "continues a stopped sweep.",
}


def main(verb: str, arguments: Sequence[str]) -> int:
    """Run one subcommand. Return the exit code, as in `rewardserve.exit_codes`."""
    parser = _parser(verb)
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"the recipe is an option: write --config {arguments[0]}")
    options = parser.parse_args(arguments)
    _check_options(verb, options, parser)
    config: Config | None = None
    try:
        with _without_tracebacks_of_threads(), sigterm_as_sigint():
            require_packages()
            if getattr(options, "benchmark", None):
                return _benchmark(options)
            config = recipe.load(Path(options.config), [*_of_options(options), *options.set])
            # A cross-validation reads no eval_sources; it refuses them itself.
            held_out = () if verb in ("crossvalidate", "sweep") else config.data.eval_sources
            for place, listed in (("sources", config.data.sources), ("eval_sources", held_out)):
                for number, source in enumerate(listed):
                    with sources.named(f"data.{place}.{number}"):
                        sources.find_reader(source)  # a missing file is reported before the model is loaded
            if config.counterexamples is not None:
                counterexamples.require_file(config.counterexamples.path)
            if verb == "train":
                data.check_small_files(config.data, config.model.heads[0])
            _run(verb, config, options)
            _leave_process_group()
    except _TO_CORRECT as error:
        return _end(verb, USAGE_ERROR, respell(str(error), _SETTINGS))
    except (PackagesMissing, UploadFailed) as error:
        return _end(verb, FAILED, respell(str(error), _SETTINGS))
    except RunFailed as error:
        return _end(verb, FAILED, f"{error}{_resume_hint(config, verb)}")
    except (Stopped, KeyboardInterrupt) as error:
        if isinstance(error, Stopped):
            _leave_process_group()  # all processes stop after the same step
        return _end(verb, INTERRUPTED, f"{str(error) or 'stopped'}.{_resume_hint(config, verb)}")
    except _of_model() as error:
        return _end(verb, FAILED, respell(str(error), _SETTINGS))
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        return _end(verb, FAILED, f"{reason}{_resume_hint(config, verb)}")
    return 0


train, finish, evaluate, calibrate, average, crossvalidate, sweep = (partial(main, verb) for verb in _SUMMARIES)


def _of_model() -> tuple[type[Exception], ...]:
    """Errors of a model. They are imported after the others have been told, as torch comes with them."""
    from rewardserve.model.checkpoint import CheckpointError

    return ModelUnusable, CheckpointError, CalibrationError, EncodingPolicyError


def _leave_process_group() -> None:
    """Close the connections to the other processes of a finished run before the interpreter shuts down.

    A thread of gloo that frees a Python tensor during finalization aborts the process (PyTorch, pull request 179291). Its threads
    end with the last reference to the group, and DDP has one, in the cycle of a Trainer and its network: that is collected first.
    A failed run leaves its connections to the kernel: the other processes may be waiting in a collective.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def _end(verb: str, code: int, message: str) -> int:
    print(printable(f"rewardserve {verb}: {message}", keep="\n"), file=sys.stderr)
    return code


def _resume_hint(config: Config | None, verb: str) -> str:
    """Name the step from which an interrupted training can resume; empty for other subcommands."""
    if config is None or verb != "train":
        return ""
    from rewardserve.training.loop.stages import newest_step
    from rewardserve.training.run_folder import lacks_report

    folder = Path(config.output.folder)
    if step := newest_step(config, folder):
        return f" Resume from {step.name} with --set output.resume=true."
    if lacks_report(folder):
        return " The checkpoint is written; `rewardserve finish` with this recipe writes its report."
    return " There is no saved step to resume from."


@contextmanager
def _without_tracebacks_of_threads() -> Iterator[None]:
    """Discard the tracebacks of threads that write logs: the main thread reports their errors."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs, /) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _parser(verb: str) -> Parser:
    parser = Parser(
        f"rewardserve {verb}",
        _SUMMARIES[verb],
        more="--set output.resume=true resumes from the last step checkpoint." * (verb == "train"),
    )
    of_benchmark = "; default: none, with --benchmark" if verb == "evaluate" else ""
    parser.add_argument(
        "--config", required=not of_benchmark, metavar="RECIPE", help=f"the recipe, a YAML file{of_benchmark}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the recipe, e.g. optim.lr=1e-4; may be repeated; default: none",
    )
    if verb in ("train", "finish", "evaluate"):
        parser.add_argument(
            "--counterexamples",
            metavar="FILE",
            help="labelled queue of rewardserve mine, trained on beside the data; sets counterexamples.path; default: none",
        )
    if verb in ("crossvalidate", "sweep"):
        parser.add_argument("--folds", type=int, default=5, help="number of folds; as many as groups leaves one out")
    if verb == "sweep":
        parser.add_argument(
            "--space",
            action="append",
            required=True,
            metavar="KEY=VALUES",
            help="setting: optim.lr=1e-5..1e-3:log, optim.batch_pairs=8..64 or method.rank=8|16|32; may be repeated",
        )
        parser.add_argument("--trials", type=int, default=20, help="number of trials, with those of a stopped sweep")
    if verb in ("evaluate", "calibrate"):
        parser.add_argument("--checkpoint", help="reward model to read; default: the one in the recipe's output.folder")
    if verb == "evaluate":
        parser.add_argument(
            "--invariance",
            action="store_true",
            help="also score held-out responses under twelve changes that keep their meaning, as every training does; "
            "eval.invariance_pairs sets the number of pairs",
        )
        parser.add_argument(
            "--benchmark",
            type=Path,
            metavar="FILE",
            help="score a file of RewardBench, RewardBench 2 or RM-Bench, and write its result files; default: a recipe's pairs",
        )
        parser.add_argument(
            "--url", help="with --benchmark: score with this running server; default: with --checkpoint"
        )
        parser.add_argument(
            "--key-file", type=Path, metavar="FILE", help="file with the API key for --url; default: no key"
        )
        parser.add_argument(
            "--output", type=Path, metavar="FOLDER", help="folder of the result files; default: results"
        )
    if verb == "average":
        parser.add_argument(
            "--checkpoint",
            action="append",
            required=True,
            help="reward model to average; given once for each, two or more",
        )
    return parser


def _check_options(verb: str, options: Namespace, parser: Parser) -> None:
    """End with an error of usage for options of `evaluate` that contradict each other."""
    if verb != "evaluate":
        return
    if options.benchmark is None:
        for name in ("url", "key_file", "output"):
            if getattr(options, name) is not None:
                parser.error(f"--{name.replace('_', '-')} is for --benchmark FILE")
        if options.config is None:
            parser.error("write --config RECIPE, or --benchmark FILE")
        return
    idle = [name for name in ("config", "set", "counterexamples", "invariance") if getattr(options, name)]
    if idle:
        parser.error(f"--{idle[0]} has no effect with --benchmark; leave it out")
    if (options.url is None) == (options.checkpoint is None):
        parser.error("--benchmark takes either --checkpoint CHECKPOINT or --url URL")
    if options.key_file is not None and options.url is None:
        parser.error("--key-file is for --url")


def _benchmark(options: Namespace) -> int:
    from rewardserve.training import workflow
    from rewardserve.training.console import show
    from rewardserve.training.evaluation import benchmark
    from rewardserve.training.evaluation.benchmark_files import read_benchmark
    from rewardserve.training.run_folder import require_writable

    folder = options.output or Path("results")
    rows = read_benchmark(options.benchmark)
    require_writable(folder)
    if options.url:
        key = options.key_file.read_text().strip() if options.key_file else ""
        scored = benchmark.score_with_server(options.url.rstrip("/"), key, rows.samples())
    else:
        scored = workflow.score_benchmark(rows, options.checkpoint)
    lines, n_left_out = benchmark.write_results(folder, rows, scored)
    for line in lines:
        show(line)
    return SOME_FAILED if n_left_out else 0


def _of_options(options: Namespace) -> list[str]:
    """The overrides of a recipe that are options too."""
    file = getattr(options, "counterexamples", None)
    return [] if file is None else [f"counterexamples.path={json.dumps(file)}"]


def _run(verb: str, config: Config, options: Namespace) -> None:
    from rewardserve.training import workflow
    from rewardserve.training.console import show
    from rewardserve.training.evaluation.evaluate import summary_lines
    from rewardserve.training.evaluation.invariance import summary_line

    if verb in ("evaluate", "calibrate"):
        checkpoint = options.checkpoint or str(Path(config.output.folder) / "checkpoint")
    if verb == "train":
        print(f"checkpoint: {workflow.train(config)}")
    elif verb == "finish":
        print(f"checkpoint: {workflow.export_last_step(config)}")
    elif verb == "crossvalidate":
        _crossvalidate(config, options.folds)
    elif verb == "sweep":
        _sweep(options)
    elif verb == "calibrate":
        print(f"checkpoint: {workflow.calibrate_checkpoint(config, checkpoint)}")
    elif verb == "average":
        print(f"checkpoint: {workflow.average_checkpoints(config, options.checkpoint)}")
    else:
        metrics, invariant, page = workflow.evaluate_checkpoint(
            config, checkpoint, measures_invariance=options.invariance
        )
        for line in summary_lines(metrics):
            show(line)
        if invariant is not None:
            show(summary_line(invariant))
        show(f"report: {page}")


def _sweep(options: Namespace) -> None:
    from rewardserve.training.console import show
    from rewardserve.training.crossvalidate import crossvalidate
    from rewardserve.training.sweep import parse_space, sweep

    lines, best = sweep(
        Path(options.config),
        options.set,
        parse_space(options.space),
        options.trials,
        options.folds,
        lambda config, n_folds: crossvalidate(config, n_folds).metrics,
    )
    for line in lines:
        show(line)
    show(f"best recipe: {best}")


def _crossvalidate(config: Config, n_folds: int) -> None:
    from rewardserve.training.console import show
    from rewardserve.training.crossvalidate import crossvalidate, spread
    from rewardserve.training.evaluation.evaluate import summary_lines
    from rewardserve.training.evaluation.graded_metrics import graded_lines

    found = crossvalidate(config, n_folds)
    each = [
        f", shorter {m.shorter:.3f}; accuracy of a group {spread(by_group)}, NLL {m.nll:.3f}, ECE {m.ece:.3f}"
        for m, by_group in zip(found.metrics, found.by_group, strict=True)
    ]
    for line, more in zip(summary_lines(found.metrics), each or [""], strict=True):
        show(line + more)
    for m in found.crossed:
        show(f"{m.head} on {m.source}: accuracy {m.accuracy:.3f} [{m.accuracy_low:.3f}, {m.accuracy_high:.3f}]")
    for text in graded_lines(found.graded):
        show(text)
    show(f"report: {found.page}")
