"""Search settings of a recipe for the highest cross-validated accuracy, with Optuna (extra `sweep`).

A trial is one cross-validation of the recipe with other values. The study is a file, so a stopped sweep continues where it ended.
Knows settings by their names alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from rewardserve.model.text.text_files import write_text
from rewardserve.training import run_folder
from rewardserve.training.console import say
from rewardserve.training.dataset.data import DataError
from rewardserve.training.errors import PackagesMissing, RunFailed, explain
from rewardserve.training.evaluation.evaluate import ALL, COMBINED, SliceMetrics
from rewardserve.training.settings import recipe, yaml12
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

STUDY, TABLE, BEST = "sweep.db", "trials.csv", "best.yaml"
_MADE_OF = "made of"
_FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "nll", "reason")


@dataclass(frozen=True, slots=True)
class Dimension:
    """Values of one setting: those of `choices`, or the numbers from `low` to `high`, whole ones where both are."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the setting is a whole number."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values whose check in a recipe shows whether the whole dimension is valid."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Any) -> Any:
        """Take a value from the sampler. Optuna keeps choices as JSON texts, since a value may be a list."""
        if self.choices:
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(choice) for choice in self.choices]))
        if self.is_whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.is_log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.is_log)

    def stored(self, value: Any) -> Any:
        """The value as Optuna keeps it; None if the dimension does not have it."""
        if self.choices:
            return json.dumps(value) if value in self.choices else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number and self.low <= value <= self.high else None


def parse_space(texts: Sequence[str]) -> tuple[Dimension, ...]:
    """Read `KEY=LOW..HIGH`, `KEY=LOW..HIGH:log` and `KEY=A|B|C`. Raise `ConfigError`."""
    found = tuple(map(_dimension, texts))
    keys = [each.key for each in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"--space names {', '.join(twice)} twice")
    if not found:
        raise ConfigError("--space is missing: name a setting and its values, such as optim.lr=1e-5..1e-3:log")
    return found


def _dimension(text: str) -> Dimension:
    key, _, values = text.partition("=")
    key, values = key.strip(), values.strip()
    wrong = ConfigError(
        f"--space {text!r}: write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B|C, such as optim.lr=1e-5..1e-3:log"
    )
    if not key or not values:
        raise wrong
    try:
        if "|" in values:
            return Dimension(key, tuple(yaml12.load(value.strip()) for value in values.split("|")))
        numbers, is_log = values.removesuffix(":log"), values.endswith(":log")
        low, high = (yaml12.load(end.strip()) for end in numbers.split(".."))
    except (ValueError, yaml.YAMLError) as error:
        raise wrong from error
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise wrong
    if not low < high or (is_log and low <= 0):
        raise ConfigError(f"--space {text!r}: LOW must be below HIGH{', and above 0 with :log' if is_log else ''}")
    return Dimension(key, low=low, high=high, is_log=is_log)


CrossValidate = Callable[[Config, int], Sequence[SliceMetrics]]


def sweep(
    path: Path,
    overrides: Sequence[str],
    space: Sequence[Dimension],
    n_trials: int,
    n_folds: int,
    crossvalidate: CrossValidate,
) -> tuple[list[str], Path]:
    """Run trials until the study has `n_trials`. Return the lines of the table, and the path of the best recipe."""
    if find_spec("optuna") is None:
        raise PackagesMissing(
            "sweep needs optuna, which this Python lacks. `pip install 'rewardserve[sweep]'` installs it."
        )
    if n_trials < 1:
        raise ConfigError(f"--trials is {n_trials}; it must be one or more")
    config = _checked(path, overrides, space)
    folder = Path(config.output.folder)
    with run_folder.lock_folder(folder):
        study = _study(folder, config, space, n_folds)
        _run(study, path, overrides, space, n_trials, n_folds, crossvalidate)
        return _results(study, folder, path, overrides, space)


def _checked(path: Path, overrides: Sequence[str], space: Sequence[Dimension]) -> Config:
    """The recipe. Raise `ConfigError` if it, or an end of a dimension in it, is invalid."""
    config = recipe.load(path, overrides)
    for dimension in space:
        if dimension.key.split(".")[0] in ("output", "eval", "export"):
            raise ConfigError(f"--space {dimension.key}: it changes no weight, so there is nothing to search")
        for end in dimension.ends:
            recipe.load(path, [*overrides, _set(dimension.key, end)])
    return config


def _set(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"


def _study(folder: Path, config: Config, space: Sequence[Dimension], n_folds: int) -> Any:
    """The study of the folder, new or continued. Raise `ConfigError` if another recipe or space made it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plain = {k: v for k, v in recipe.plain(config).items() if k not in ("output", "eval", "export")}
    searched = {d.key: [d.choices, d.low, d.high, d.is_log] for d in space}
    made_of = hashlib.sha256(json.dumps([plain, searched, n_folds], sort_keys=True).encode()).hexdigest()
    # Any path may name the file: in a URL a question mark begins options, and Optuna fills in braces.
    opened = {"creator": partial(sqlite3.connect, folder / STUDY, timeout=60, check_same_thread=False)}
    storage = optuna.storages.RDBStorage("sqlite:///", engine_kwargs=opened)
    study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
    if study.user_attrs.setdefault(_MADE_OF, made_of) != made_of:
        raise ConfigError(
            f"{folder / STUDY} was made by another recipe, --space or --folds. Choose another output.folder, or move it away."
        )
    study.set_user_attr(_MADE_OF, made_of)
    if not study.trials:
        own = {d.key: d.stored(_value_in(recipe.plain(config), d.key)) for d in space}
        if None not in own.values():
            study.enqueue_trial(own)  # the recipe itself, to compare with
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # of a sweep that was killed
    study.sampler = optuna.samplers.TPESampler(seed=(config.seed + len(_finished(study))) % 2**32)
    return study


def _value_in(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain[int(part)] if isinstance(plain, list | tuple) else plain[part]
    return list(plain) if isinstance(plain, tuple) else plain


def _finished(study: Any) -> list[Any]:
    """Trials that have ended by themselves: with a figure, or with a reason for none."""
    return [t for t in study.get_trials(deepcopy=False) if t.value is not None or "reason" in t.user_attrs]


def _run(
    study: Any,
    path: Path,
    overrides: Sequence[str],
    space: Sequence[Dimension],
    n_trials: int,
    n_folds: int,
    crossvalidate: CrossValidate,
) -> None:
    from optuna.trial import TrialState

    if n_done := len(_finished(study)):
        say(f"the sweep goes on after {n_done} of {n_trials} trials")
    while len(_finished(study)) < n_trials:
        trial = study.ask()
        values = {dimension.key: dimension.suggest(trial) for dimension in space}
        n = len(_finished(study)) + 1
        say(f"trial {n} of {n_trials}: {', '.join(f'{key} {value}' for key, value in values.items())}")
        try:
            config = recipe.load(path, [*overrides, *(_set(key, value) for key, value in values.items())])
            place = Path(config.output.folder) / "trials" / str(trial.number)
            config = replace(config, output=replace(config.output, folder=str(place)))
            accuracy = pooled(metrics := crossvalidate(config, n_folds), "accuracy")
            if math.isnan(accuracy):
                raise DataError("no two held-out responses can be compared, so there is no accuracy to search for")
        except BaseException as error:
            # Before any result the fault is the recipe's, not that of a trial's values.
            reason = _reason(error) if _finished(study) or not isinstance(error, ConfigError | DataError) else None
            if reason is not None:
                trial.set_user_attr("reason", reason)
            study.tell(trial, state=TrialState.FAIL)
            if reason is None:
                raise
            say(f"trial {n} has no accuracy: {reason}")
            continue
        for name in ("accuracy_low", "accuracy_high", "nll"):
            trial.set_user_attr(name, pooled(metrics, name))
        study.tell(trial, accuracy)
        say(f"trial {n}: accuracy {accuracy:.3f}")


def _reason(error: BaseException) -> str | None:
    """Why a trial has no accuracy, if its values may be the cause; None ends the sweep."""
    if isinstance(error, ConfigError | DataError | RunFailed):
        return " ".join(str(error).split())
    if isinstance(error, Exception) and not isinstance(error, OSError):
        return explain(error)
    return None


def pooled(metrics: Sequence[SliceMetrics], name: str) -> float:
    """Mean of a figure over all pairs, each judged by its own head."""
    lines = [m for m in metrics if m.source != ALL and m.head != COMBINED]
    total = sum(m.n_pairs for m in lines)
    return sum(getattr(m, name) * m.n_pairs for m in lines) / total if total else math.nan


def _results(
    study: Any, folder: Path, path: Path, overrides: Sequence[str], space: Sequence[Dimension]
) -> tuple[list[str], Path]:
    """Write the table of trials, best first, and the best recipe. Raise `RunFailed` if no trial has an accuracy."""
    done = sorted(_finished(study), key=lambda t: (t.value is None, -(t.value or 0.0), t.number))
    keys = [dimension.key for dimension in space]
    rows = []
    for trial in done:
        values = [_shown(space[i], trial.params.get(key)) for i, key in enumerate(keys)]
        figures = [trial.value, *(trial.user_attrs.get(name) for name in _FIGURES[1:])]
        rows.append([trial.number, *values, *figures])
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["trial", *keys, *_FIGURES], *rows])
    if not done or done[0].value is None:
        reasons = list(dict.fromkeys(t.user_attrs.get("reason", "") for t in done))
        raise RunFailed(f"no trial of {len(done)} has an accuracy: {'; '.join(reasons[:3])}")
    best = {dimension.key: _shown(dimension, done[0].params[dimension.key]) for dimension in space}
    config = recipe.load(path, [*overrides, *(_set(key, value) for key, value in best.items())])
    write_text(folder / BEST, yaml12.dump(recipe.plain(config)))
    lines = [_line(row, keys) for row in rows[:20]]
    if len(rows) > len(lines):
        lines.append(f"and {len(rows) - len(lines)} more in {folder / TABLE}")
    return lines, folder / BEST


def _shown(dimension: Dimension, stored: Any) -> Any:
    return json.loads(stored) if dimension.choices and stored is not None else stored


def _line(row: Sequence[Any], keys: Sequence[str]) -> str:
    number, values, (accuracy, low, high, nll, reason) = row[0], row[1 : 1 + len(keys)], row[1 + len(keys) :]
    settings = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in zip(keys, values, strict=True)
    )
    if accuracy is None:
        return f"trial {number}: no accuracy ({reason}); {settings}"
    return f"trial {number}: accuracy {accuracy:.3f} [{low:.3f}, {high:.3f}], NLL {nll:.3f}; {settings}"
