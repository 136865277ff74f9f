"""Step checkpoints: check their completeness, read them, and the callbacks that write files beside the weights.

Depends on files and weights, not on losses or data.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from rewardserve.training.batches.pair_batches import PairBatches
from rewardserve.training.console import ProgressLines, say
from rewardserve.training.objective.indifference import MovingMoments
from rewardserve.training.settings.output_config import EvalConfig
from rewardserve.training.settings.validation import ConfigError

COMPLETE = "complete"
BEST = "best.safetensors"
WHOLE = "whole.safetensors"
"""Trained weights at the end of a stage whose steps are shards."""
WEIGHTS = "model.safetensors"
_EMA = "ema.safetensors"
_MOMENTS = "moments.safetensors"
_NAME = re.compile(r"checkpoint-([0-9]+)")


def last_complete(steps: Path) -> Path | None:
    """Newest step checkpoint that was completely written (a kill leaves half of one) and is not damaged."""
    whole = [step for step in _in_order(steps) if (step / COMPLETE).is_file() and damage(step) is None]
    return whole[-1] if whole else None


def damaged(steps: Path) -> list[tuple[Path, str]]:
    """Step checkpoints that were completely written and are now damaged, with the damage of each."""
    marked = [step for step in _in_order(steps) if (step / COMPLETE).is_file()]
    return [(step, why) for step in marked if (why := damage(step)) is not None]


def damage(step: Path) -> str | None:
    """First file that is missing or has another length than when the checkpoint was marked complete; None if undamaged.

    Runs of several processes record no lengths: other processes may still write when the first marks the checkpoint.
    """
    noted = (step / COMPLETE).read_text(encoding="utf-8", errors="replace")
    try:
        length_of = json.loads(noted or "{}")
        for name, length in length_of.items():
            now = (step / name).stat().st_size if (step / name).is_file() else None
            if now is None:
                return f"{name} is missing"
            if now != length:
                return f"{name} has {now:,} bytes, and was written with {length:,}"
    except (ValueError, AttributeError, TypeError):
        return f"{COMPLETE} is not a list of its files"
    return None


def _in_order(steps: Path) -> list[Path]:
    """Folders named by the Trainer, by their step; a folder of another name belongs to the user."""
    named = [(int(match[1]), p) for p in steps.glob("checkpoint-*") if (match := _NAME.fullmatch(p.name))]
    return [p for _, p in sorted(named)]


def history_of(step: Path) -> list[dict[str, float]]:
    """Log of a run up to a step checkpoint."""
    history: list[dict[str, float]] = json.loads((step / "trainer_state.json").read_text())["log_history"]
    return history


def load_weights(network: nn.Module, folder: Path) -> None:
    """Load the weights of a step checkpoint, averaged if the run averaged, into `network`."""
    averaged = folder / _EMA
    if not averaged.is_file() and not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} holds shards, not whole weights: resume from it (output.resume=true) instead")
    load_trained(network, averaged if averaged.is_file() else folder / WEIGHTS)


def save_whole(network: nn.Module, steps: Path) -> None:
    """Write the trained weights of a stage in one file, at once."""
    learned = {n: p.detach().cpu().contiguous() for n, p in network.named_parameters() if p.requires_grad}
    steps.mkdir(parents=True, exist_ok=True)
    save_file(learned, steps / f"{WHOLE}.new")
    (steps / f"{WHOLE}.new").replace(steps / WHOLE)


def load_trained(network: nn.Module, file: Path) -> None:
    """Load the trained weights of a file into `network`."""
    state, folder = load_file(file), file.parent
    own = dict(network.named_parameters())
    other = [name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape]
    if other:
        raise ConfigError(f"{folder} was written by another recipe: {other[0]} has another shape")
    unexpected = network.load_state_dict(state, strict=False).unexpected_keys
    if unexpected:
        raise ConfigError(f"{folder} was written by another recipe: this network has no {unexpected[0]}")


class WeightAverage(TrainerCallback):
    """Exponential moving average of the trained weights; it replaces them when training ends."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start from the weights, or from the average of the resumed run."""
        at = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _EMA
        saved = load_file(at) if state.global_step and at.is_file() else {}
        self._average = {n: saved.get(n, p.detach()).to(p.device, torch.float32).clone() for n, p in self._learning()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the average; in the first steps the decay is smaller, so that the start is forgotten."""
        decay = min(self._decay, (1 + state.global_step) / (10 + state.global_step))
        for name, weight in self._learning():
            self._average[name].lerp_(weight.detach().float(), 1 - decay)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the average beside the weights, so that a resumed run continues it."""
        if state.is_world_process_zero:
            save_file(self._average, Path(args.output_dir) / f"checkpoint-{state.global_step}" / _EMA)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace the weights by their average."""
        self._copy(self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the weights for the body, as they will be exported."""
        weights = {name: weight.detach().clone() for name, weight in self._learning()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(weights)

    def _copy(self, source: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._learning():
                weight.copy_(source[name])

    def _learning(self) -> Sequence[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self._network.named_parameters() if p.requires_grad]


@dataclass(frozen=True, slots=True)
class BestStep:
    """Step with the best held-out figure so far, and that figure; its trained weights are in the same file."""

    step: int
    metric: str
    value: float

    def is_worse_than(self, value: float) -> bool:
        """Whether the value is strictly better; NaN never is."""
        return value > self.value if self.metric == "accuracy" else value < self.value


def read_best(steps: Path, metric: str | None) -> BestStep | None:
    """The best step of a run by this metric; None if none was chosen by it."""
    if metric is None or not (steps / BEST).is_file():
        return None
    with safe_open(steps / BEST, framework="pt") as file:
        noted = file.metadata()
    return BestStep(int(noted["step"]), metric, float(noted["value"])) if noted["metric"] == metric else None


class KeepBest(TrainerCallback):
    """Keeps the trained weights of the best evaluated step, and ends training after `patience` evaluations without a better one.

    One file has weights and figure, replaced at once, so a killed run has both or neither. `trained_state` returns the weights
    that would be exported; all processes call it.
    """

    def __init__(self, config: EvalConfig, trained_state: Callable[[], Mapping[str, Tensor]]) -> None:
        self._config, self._trained_state = config, trained_state
        self._best: BestStep | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Continue from the best step of a resumed run; a run from the beginning has none."""
        steps = Path(args.output_dir)
        if not state.global_step and state.is_world_process_zero:
            (steps / BEST).unlink(missing_ok=True)
        self._best = read_best(steps, self._config.best_by) if state.global_step else None
        control.should_training_stop = self._is_over(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the last step too."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Keep the weights if the step is the best so far; otherwise end training once patience is exhausted."""
        by = str(self._config.best_by)
        value = float(metrics[f"eval_{by}"])
        if math.isfinite(value) and (self._best is None or self._best.is_worse_than(value)):
            self._best = BestStep(state.global_step, by, value)
            trained = self._trained_state()
            if state.is_world_process_zero:
                self._write(Path(args.output_dir), trained, self._best)
        elif self._is_over(state.global_step):
            say(
                f"no better {by} than that of step {self._best.step if self._best else 0:,} for {self._config.patience} evaluations"
            )
            control.should_save = control.should_training_stop = True

    def _is_over(self, step: int) -> bool:
        patience = self._config.patience * self._config.steps
        return bool(patience) and self._best is not None and step - self._best.step >= patience

    def _write(self, steps: Path, trained: Mapping[str, Tensor], best: BestStep) -> None:
        steps.mkdir(parents=True, exist_ok=True)
        noted = {name: str(value) for name, value in asdict(best).items()}
        save_file({n: t.detach().cpu().contiguous() for n, t in trained.items()}, steps / f"{BEST}.new", metadata=noted)
        (steps / f"{BEST}.new").replace(steps / BEST)


class SavedMoments(TrainerCallback):
    """Saves the moments of the latest pairs beside the weights, so that a resumed run continues with the same correlations."""

    def __init__(self, moments: Mapping[str, MovingMoments]) -> None:
        self._moments = moments

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the moments of the resumed run."""
        at = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MOMENTS
        if state.global_step and at.is_file():
            for name, kept in load_file(at).items():
                self._moments[name].kept_HV4 = kept

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the moments; they are the same in every process."""
        kept = {name: m.kept_HV4.cpu() for name, m in self._moments.items() if m.kept_HV4 is not None}
        if state.is_world_process_zero and kept:
            save_file(kept, Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MOMENTS)


class EpochOrder(TrainerCallback):
    """Sets the epoch of the batches, also in a resumed run, where wrappers of the loader hide them."""

    def __init__(self, batches: PairBatches) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch; `state.epoch` is fractional while an epoch runs."""
        self._batches.set_epoch(int(state.epoch or 0))


class MarkComplete(TrainerCallback):
    """Writes the last file of a step checkpoint. Added last, so that every other callback has written its files.

    Older checkpoints are deleted only then: until the new one is complete, a resumed run starts from the newest of them.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint complete, and delete older ones."""
        if not state.is_world_process_zero:
            return
        steps = Path(args.output_dir)
        new = steps / f"checkpoint-{state.global_step}"
        lengths = _lengths(new) if args.world_size == 1 else {}
        (new / COMPLETE).write_text(json.dumps(lengths) if lengths else "")
        # Checkpoints of a killed run beyond this step are no reason to delete this one.
        until_now = _in_order(steps)
        for folder in until_now[: until_now.index(new) + 1][: -self._keep]:
            # The mark is deleted first, so that a half-deleted checkpoint does not count as complete.
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _lengths(step: Path) -> dict[str, int]:
    files = [p for p in sorted(step.rglob("*")) if p.is_file() and p != step / COMPLETE]
    return {p.relative_to(step).as_posix(): p.stat().st_size for p in files}


class StepLogLines(TrainerCallback):
    """Prints a line at the start, at intervals, at each evaluation and at the end, if there is no terminal."""

    def __init__(self) -> None:
        self._lines: ProgressLines | None = None
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the step of a resumed run."""
        self._lines = ProgressLines("training", state.max_steps, " steps", done=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the figures for the next line; print those of held-out pairs at once, as they are rare."""
        logs = logs or {}
        if "loss" in logs:
            figures = [f"{name} {logs[name]:.3g}" for name in ("loss", "accuracy", "margin") if name in logs]
            self._note = f": {', '.join(figures)}"
        held_out = [
            f"{name.removeprefix('eval_')} {value:.3f}" for name, value in logs.items() if name.endswith("/accuracy")
        ]
        if held_out:
            say(f"held out at step {state.global_step:,}: {', '.join(held_out)}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        if self._lines:
            self._lines.advance(1, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the last figures."""
        if self._lines:
            self._lines.end(self._note or " ")


class StopAfterStep(TrainerCallback):
    """Ends training after the current step once `requested`; the step is saved."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint and the end of training from the Trainer."""
        if self.requested:
            control.should_save = control.should_training_stop = True
