"""Send the figures of a run to experiment trackers, through the callbacks of transformers.

One record a tracker. Accounts and addresses come from the environment variables of each library (docs/how-to/training.md): no key
is a setting, so that none can get into a recipe or a report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardserve.training.console import is_first_process
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

if TYPE_CHECKING:
    from rewardserve.training.loop.trainer import RewardTrainer


@dataclass(frozen=True, slots=True)
class Tracker:
    """A tracker that transformers can report to. `end` closes its run where its callback left it open, as after a failure."""

    package: str
    extra: str
    end: Callable[[Any, bool], None]
    log_in: Callable[[Any], None] = lambda library: None


def _end_wandb(wandb: Any, failed: bool) -> None:
    if wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def _end_mlflow(mlflow: Any, failed: bool) -> None:
    if mlflow.active_run() is not None:
        mlflow.end_run(status="FAILED" if failed else "FINISHED")


def _end_trackio(trackio: Any, failed: bool) -> None:
    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


def _end_nothing(library: Any, failed: bool) -> None:
    """The callback has ended it."""


def _log_in_to_wandb(wandb: Any) -> None:
    """Ask for the key where there is none, before the data are read: `wandb.init` would ask at the first step."""
    if wandb.setup().settings.mode not in ("offline", "disabled", "dryrun"):
        wandb.login()


TRACKERS = {
    "tensorboard": Tracker("tensorboard", "train", _end_nothing),
    "wandb": Tracker("wandb", "wandb", _end_wandb, _log_in_to_wandb),
    "trackio": Tracker("trackio", "trackio", _end_trackio),
    "mlflow": Tracker("mlflow", "mlflow", _end_mlflow),
}


def check_trackers(config: Config) -> None:
    """Raise `ConfigError` for a tracker whose package is missing, or that refuses the account, before data are read."""
    for name in config.output.report_to:
        tracker = TRACKERS[name]
        if find_spec(tracker.package) is None:
            raise ConfigError(
                f"output.report_to names {name}, and this Python lacks the package {tracker.package}: "
                f"pip install 'rewardserve[{tracker.extra}]', or leave {name} out."
            )
        if not is_first_process():
            continue
        try:
            tracker.log_in(import_module(tracker.package))
        except Exception as error:  # each library has its own errors
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ConfigError(f"output.report_to: {name} cannot be used here: {reason}") from error


@contextmanager
def reports(trainer: RewardTrainer, names: Sequence[str], logs: Path) -> Iterator[None]:
    """Report the steps of the body to these trackers, from the first process, and close their runs. `logs`: of TensorBoard."""
    if not trainer.is_world_process_zero():
        yield
        return
    for name in names:
        trainer.add_callback(_callback(name, logs))
    failed = True
    try:
        yield
        failed = False
    finally:
        for name in names:
            TRACKERS[name].end(import_module(TRACKERS[name].package), failed)


def _callback(name: str, logs: Path) -> Any:
    from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return TensorBoardCallback(SummaryWriter(str(logs)))
    (kind,) = get_reporting_integration_callbacks([name])
    return kind()
