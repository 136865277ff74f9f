"""Decide whether a folder's run may be resumed: by the same recipe, data and model."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rewardserve.model.checkpoint import Checkpoint, source_digests
from rewardserve.training import run_folder
from rewardserve.training.console import say
from rewardserve.training.dataset import data
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.finish import reported_data
from rewardserve.training.loop.stages import newest_step, step_folders
from rewardserve.training.loop.step_checkpoints import COMPLETE, damaged
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.workflow.processes import process

_DATA = "data.json"

_PAIRS, _OF_MODEL = "training data", "model: "
"""Names of the digests in that file."""


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock of the folder, held by the first process for all."""
    return run_folder.lock_folder(folder) if process().is_main_process else nullcontext()


def step_to_resume(config: Config, folder: Path) -> Path | None:
    """Step checkpoint to resume from. A folder in use is never overwritten, nor resumed by another recipe."""
    found = newest_step(config, folder)
    if found is not None and not config.output.resume:
        run_folder.refuse_finished(folder)
        raise ConfigError(
            f"{folder} holds a run at {found.name} already. Resume from it with --set output.resume=true, "
            "or choose another output.folder."
        )
    if found is None:
        run_folder.refuse_finished(folder)
    else:
        refuse_other_recipe(config, folder)
    if process().is_main_process:
        begins = f"the run resumes from {found.name}" if found else "the run starts from the beginning"
        for step, why in (one for steps in step_folders(config, folder) for one in damaged(steps)):
            say(f"{step} is damaged ({why}) and left out: {begins}")
            (step / COMPLETE).unlink(missing_ok=True)
        run_folder.write_json(folder / run_folder.RECIPE, _identity(config))
    return found


def refuse_other_recipe(config: Config, folder: Path) -> None:
    """Raise `ConfigError` if another recipe made the steps in the folder."""
    kept, now = folder / run_folder.RECIPE, json.loads(json.dumps(_identity(config)))
    try:
        then = json.loads(kept.read_text())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigError(
            f"{kept} is unreadable ({error}): whether this recipe made the steps there is not known"
        ) from error
    if not isinstance(then, dict):
        raise ConfigError(f"{kept} holds no recipe: whether this recipe made the steps there is not known")
    changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
    if changed:
        raise ConfigError(
            f"{folder} was started by another recipe: {', '.join(changed)} differ. Choose another output.folder."
        )


def refuse_other_inputs(
    config: Config, folder: Path, start: Checkpoint, table: FeedbackTable, step: Path | None
) -> None:
    """Raise `ConfigError` if the step was made with other training pairs or over another model; without a step, record both.

    Otherwise the rest of the epoch would have other pairs than its first part has left, adapters and heads would continue
    on weights that they were not trained on, and the report would name the wrong inputs.
    """
    if not process().is_main_process or (step is None and not config.optim.epochs):
        return
    kept = folder / "steps" / _DATA
    # Steps of full training contain all weights.
    model = source_digests(start, weights_too=config.method.name != "full")
    now = {_PAIRS: data.digest(table.items)} | {_OF_MODEL + name: digest for name, digest in model.items()}
    if step is None:
        run_folder.write_json(kept, now)
        return
    try:
        then = json.loads(kept.read_text())
        changed = [name for name in now if name in then and then[name] != now[name]]
    except (OSError, ValueError, TypeError):
        return  # steps of a version without this file
    if changed:
        name = changed[0]
        what, source = ("training pairs", "data.sources") if name == _PAIRS else (name, "model.path")
        raise ConfigError(
            f"{folder} was started with other {what} ({then[name]}; they are {now[name]} now): the files of {source} have changed. "
            "Restore them, or choose another output.folder."
        )


def refuse_other_solution(checkpoint: Path, table: FeedbackTable) -> None:
    """Raise `ConfigError` if a checkpoint was trained without steps on other pairs than these."""
    if reported_data(checkpoint) not in (None, data.digest(table.items)):
        raise ConfigError(
            f"{checkpoint} was trained on other training pairs: the files of data.sources have changed. Restore them, or choose "
            "another output.folder."
        )


def _identity(config: Config) -> dict[str, Any]:
    """Settings that must be equal for two runs to be the same run: all but output paths and intervals."""
    plain = recipe.plain(config)
    for setting in ("allow_pickle", "ignore_checkpoint_code"):
        plain["model"].pop(setting)  # it decides whether a file is read, not the weights in it
    plain["data"].pop("on_disk")
    return {k: v for k, v in plain.items() if k not in ("output", "eval", "export")}
