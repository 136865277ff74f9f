"""Settings of what a run writes: folder, trackers, evaluation, contents of the checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewardserve.training.settings.validation import ConfigError, require, require_ranges


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Output folder of a run: `checkpoint/`, `report.html`, `logs/` (TensorBoard), `steps/` (to resume from)."""

    folder: str
    """Folder of the run."""
    resume: bool = False
    """Continue the run in this folder from its last complete step checkpoint."""
    save_steps: int = 500
    """Steps between two step checkpoints."""
    keep: int = 2
    """Number of step checkpoints that are kept."""
    log_steps: int = 10
    """Steps between two lines of the log."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ("tensorboard",)
    """Trackers that get the curves of the run; accounts and addresses come from the environment variables of each."""
    run_name: str = ""
    """Name of the run in the trackers; empty: the name of `folder`."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub, `ORGANISATION/NAME`, to which the finished checkpoint is uploaded with its model card;
    null: none."""
    hub_private: bool = True
    """Make that repository private if it is new."""
    adapter: bool = True
    """Also write the trained part alone, over the base model by name: `adapter/` of LoRA, `heads/` of a frozen backbone."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("output", self)
        require(bool(self.folder), "output.folder", self.folder, "a folder")
        require(
            len(set(self.report_to)) == len(self.report_to), "output.report_to", self.report_to, "names that differ"
        )
        is_repository = self.push_to_hub is None or re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub)
        require(bool(is_repository), "output.push_to_hub", self.push_to_hub, "ORGANISATION/NAME")

    @property
    def reported_name(self) -> str:
        """Name of the run in the trackers."""
        return self.run_name or Path(self.folder).absolute().name


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Evaluation on held-out pairs."""

    steps: int = 0
    """Steps between two evaluations on the held-out pairs; 0: only before and after training."""
    best_by: Literal["accuracy", "nll"] | None = None
    """Export the step with the highest accuracy, or the lowest NLL, over all held-out pairs, each judged by its head; of equal ones
    the earliest. The steps are those of `eval.steps`, and the last one. null: export the last step."""
    patience: int = 0
    """Evaluations in a row without a better step after which training ends; 0: never."""
    batch_tokens: int = 16384
    """Largest number of tokens of one forward in evaluation, with padding."""
    bootstrap: int = 1000
    """Number of resamples of the confidence intervals."""
    invariance_pairs: int = 100
    """Held-out pairs, chosen by digest, whose responses are scored again under twelve changes that keep their meaning, at most 24
    forwards of one response a pair; 0: none."""
    style_file: str | None = None
    """File of RM-Bench for the matrix of styles in the report; null: the pairs of `invariance_pairs` in three made styles."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("eval", self)
        if self.best_by is not None and not self.steps:
            raise ConfigError(f"eval.best_by is {self.best_by!r}; set eval.steps, the steps between two evaluations")
        if self.patience and self.best_by is None:
            raise ConfigError(
                f"eval.patience is {self.patience}; set eval.best_by: accuracy or nll, by which a step is better"
            )


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Contents of the exported checkpoint."""

    probes: str | None = None
    """JSONL file of samples for the golden probes of the contract, if the data's licence forbids shipping its text; null: pairs of
    the run."""
