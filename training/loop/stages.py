"""Stages of a run: each trains on some kinds of feedback, with its own loss and optimizer, from the weights of the one before.

A recipe without stages is one stage over all kinds. Decides only; `workflow` trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rewardserve.training.dataset.feedback import counted, kinds_of
from rewardserve.training.dataset.sequences import FeedbackTable, subset
from rewardserve.training.loop.step_checkpoints import WHOLE, last_complete
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

_FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """The recipe of one stage, and its items over the sequences of the run. A run of one stage has no `name`."""

    name: str
    config: Config
    table: FeedbackTable

    def steps(self, folder: Path) -> Path:
        """Folder of the step checkpoints, in the folder of a run."""
        return folder / "steps" / self.name

    def __str__(self) -> str:
        """One line for the console."""
        return f"{self.name.replace('-', ' ')}: {counted(self.table.items)}"


def stages_of(config: Config, table: FeedbackTable) -> tuple[TrainingStage, ...]:
    """Stages with their items. Raise `ConfigError` for a stage without items, and for items that no stage trains on."""
    if not config.stages:
        return (TrainingStage("", config, table),)
    present = set(kinds_of(table.items))
    for i, stage in enumerate(config.stages):
        if not present & set(stage.kinds):
            raise ConfigError(
                f"stages.{i} trains on {' and '.join(stage.kinds)}, and the training data have only {', '.join(sorted(present))}. "
                "Add such a source, or leave the stage out."
            )
    idle = present - {kind for stage in config.stages for kind in stage.kinds}
    if idle:
        raise ConfigError(
            f"no stage trains on the {' and '.join(sorted(idle))} of the data: name them in the kinds of a stage"
        )
    return tuple(
        TrainingStage(name, own, subset(table, [item.kind in stage.kinds for item in table.items], renumber=False))
        for name, own, stage in zip(_names(config), stage_configs(config), config.stages, strict=True)
    )


def stage_configs(config: Config) -> tuple[Config, ...]:
    """The recipe of each stage: that of the run with the stage's loss and optimizer."""
    if not config.stages:
        return (config,)
    return tuple(replace(config, stages=(), loss=stage.loss, optim=stage.optim) for stage in config.stages)


def newest_step(config: Config, folder: Path) -> Path | None:
    """Last complete step checkpoint of the latest stage that has one."""
    found = [step for steps in step_folders(config, folder) if (step := last_complete(steps)) is not None]
    return found[-1] if found else None


def step_folders(config: Config, folder: Path) -> list[Path]:
    """Folders of the step checkpoints of all stages, in order."""
    return [folder / "steps" / name for name in _names(config)]


def _names(config: Config) -> list[str]:
    return [f"stage-{i + 1}" for i in range(len(config.stages))] or [""]


def continued(log: Sequence[Mapping[str, float]], before: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The log of a stage, with its steps counted from the end of the stages before."""
    done = max((line["step"] for line in before if "step" in line), default=0)
    return [{**line, "step": line["step"] + done} if "step" in line else dict(line) for line in log]


def mark_finished(steps: Path) -> None:
    """Note in the folder of its steps that a stage has ended, perhaps before its last step."""
    steps.mkdir(parents=True, exist_ok=True)
    (steps / _FINISHED).touch()


def mark_begun(steps: Path) -> None:
    """Remove the note of an earlier run, and the weights that it left."""
    (steps / _FINISHED).unlink(missing_ok=True)
    (steps / WHOLE).unlink(missing_ok=True)


def is_finished(steps: Path) -> bool:
    """Whether a stage has ended."""
    return (steps / _FINISHED).is_file()
