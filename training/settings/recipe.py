"""Convert a YAML file and `--set key=value` to `Config`. Unknown keys are errors that name the nearest known one.

Depends on the types of the records in `config`, not on their meaning.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from rewardserve.model.text.nearest_word import CUTOFF_OF_NAMES, did_you_mean, nearest_word
from rewardserve.training.settings import yaml12
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError, shown

_ELSEWHERE = {
    "learning_rate": "optim.lr",
    "num_train_epochs": "optim.epochs",
    "num_epochs": "optim.epochs",
    "per_device_train_batch_size": "optim.batch_pairs",
    "batch_size": "optim.batch_pairs",
    "gradient_accumulation_steps": "optim.accumulate",
    "lr_scheduler_type": "optim.schedule",
    "warmup_ratio": "optim.warmup",
    "warmup_steps": "optim.warmup",
    "bf16": "optim.precision",
    "fp16": "optim.precision",
    "optim": "optim.optimizer",
    "max_length": "encoding.max_tokens",
    "max_seq_length": "encoding.max_tokens",
    "output_dir": "output.folder",
    "use_wandb": "output.report_to",
    "wandb_run_name": "output.run_name",
    "logging_steps": "output.log_steps",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "dataset_name": "data.sources",
    "lora_r": "method.rank",
    "r": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "load_in_4bit": "method.quantize",
    "quantization_bit": "method.quantize",
    "target_modules": "method.targets",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_betas": "optim.betas",
    "adam_epsilon": "optim.epsilon",
    "push_to_hub": "output.push_to_hub",
    "hub_model_id": "output.push_to_hub",
    "hub_private_repo": "output.hub_private",
    "disable_dropout": "optim.dropout",
    "metric_for_best_model": "eval.best_by",
    "load_best_model_at_end": "eval.best_by",
    "early_stopping_patience": "eval.patience",
    "eval_steps": "eval.steps",
    "center_rewards_coefficient": "loss.centring",
}
"""Names of these settings in other trainers."""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply the overrides, in order. Raise `ConfigError`."""
    try:
        data = path.read_bytes()
        raw = yaml12.load(data)
    except OSError as error:
        hint = _recipe_like(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}{hint}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        place = f", {_position(error)}," if _position(error) else ""
        raise ConfigError(f"{path}{place} is not a recipe: {_in_words(error)}") from error
    try:
        return parse(raw, overrides)
    except ConfigError as error:
        raise ConfigError(_with_place(str(error), path, data, overrides)) from error


def _with_place(message: str, path: Path, data: bytes, overrides: Sequence[str]) -> str:
    """Put the file before a message, with the line of the setting that it begins with; neither if `--set` gives that setting."""
    named = re.match(r"(?:unknown setting )?'?([\w-]+(?:\.[\w-]+)*)", message)
    setting = named[1].split(".") if named else []
    keys = [override.partition("=")[0].strip().split(".") for override in overrides]
    line = yaml12.line_of(data, setting)
    if message.startswith("--set") or any(setting[: len(key)] == key for key in keys):
        return message
    if line is None and any(key[: len(setting)] == setting for key in keys):
        return message
    return f"{path}, line {line}: {message}" if line else f"{path}: {message}"


def _recipe_like(path: Path) -> str:
    """Suggest a recipe beside the missing file, or one of those that are shipped, by its name without `.yaml`."""
    shipped = Path(__file__).parents[1] / "recipes"
    for folder in (path.parent, shipped):
        found = {each.stem: each for each in folder.glob("*.y*ml")}
        near = nearest_word(path.stem, found)
        if near is not None:
            return f"; did you mean {found[near]}?"
    return f". The shipped recipes are in {shipped}"


_WORDS = {
    r"found character '\\t' that cannot start any token": "a tab; indent with spaces",
    r"expected <block end>, but found .*": "the indentation differs from that of the lines before",
    r"but found another document": "a second document begins here; a recipe is one document",
    r"mapping values are not allowed here": "a second colon; put text that contains one in quotes",
    r"could not find expected ':'": "a key without its colon",
    r"(.*)'<stream end>'": r"\1the end",
    r"could not determine a constructor for the tag (.*)": r"the tag \1 is unknown",
}
"""Pattern of PyYAML's words -> ours."""


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"it contains the control character #x{code:02x}"
    text = error.problem or "" if isinstance(error, yaml.MarkedYAMLError) else str(error)
    for pattern, words in _WORDS.items():
        text = re.sub(rf"{pattern}\Z", words, text)
    return " ".join(text.split())


def _position(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def parse(raw: Any, overrides: Sequence[str] = ()) -> Config:
    """Convert a recipe that was already read. Raise `ConfigError`."""
    if not isinstance(raw, dict):
        given = "empty" if raw is None else "a list" if isinstance(raw, list) else "a single value"
        sections = ", ".join(f.name for f in dataclasses.fields(Config))
        raise ConfigError(f"the recipe is {given}; it must be a mapping of sections: {sections}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}: write key=value, for instance optim.lr=1e-4")
        raw = _put(raw, key.strip().split("."), _value(value), where="")
    raw = _with_whole_stages(raw)
    try:
        config: Config = _record(Config, raw, where="")
    except RecursionError:
        raise ConfigError("the recipe is nested too deeply") from None
    return config


def _with_whole_stages(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the sections of each stage completed by those of the run."""
    if not isinstance(raw.get("stages"), list):
        return raw
    return raw | {"stages": [_whole_stage(stage, raw) for stage in raw["stages"]]}


def _whole_stage(stage: Any, raw: dict[str, Any]) -> Any:
    if not isinstance(stage, dict):
        return stage
    sections = {name: (raw.get(name), stage.get(name)) for name in ("loss", "optim")}
    whole = {
        name: {**run, **(own or {})}
        for name, (run, own) in sections.items()
        if isinstance(run, dict) and isinstance(own, dict | None)
    }
    return stage | whole


def plain(config: Config) -> dict[str, Any]:
    """The recipe as plain values, for reports and for comparing two runs."""
    return dataclasses.asdict(config)


def _value(text: str) -> Any:
    try:
        return yaml12.load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set: {shown(text)} is not a YAML value: {_in_words(error)}") from error


def _put(node: Any, path: list[str], value: Any, where: str) -> Any:
    """Copy `node` with `value` at `path`; numbers index lists."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    here = f"{where}.{key}" if where else key
    if key == "0" and (node is None or node == []):
        return [_put(None, rest, value, here)]  # the first of a list that the recipe does not have
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise ConfigError(f"--set {here}: {where} is a list of {len(node)}; give the number of an item, from 0")
        return [_put(item, rest, value, here) if i == int(key) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise ConfigError(f"--set {here}: {where} is {shown(node)} and has no parts")
    return {**node, key: _put(node.get(key), rest, value, here)}


def _record(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where or 'recipe'} is {shown(raw)}; it must be a mapping")
    types_of = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise ConfigError(_unknown(_join(where, str(key)), str(key), list(known), where))
    for name, f in known.items():
        if name not in raw and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(where, name)} is missing")
    return kind(**{key: _coerce(types_of[key], value, _join(where, key)) for key, value in raw.items()})


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _unknown(full: str, key: str, known: list[str], where: str) -> str:
    """Name the nearest known setting only if it is close: a wrong hint is worse than none."""
    near = nearest_word(key, known, CUTOFF_OF_NAMES)
    hint = _join(where, near) if near else _ELSEWHERE.get(key) or _settings_called(key)
    meant = f"; did you mean {hint!r}?" if hint else "."
    return f"unknown setting {full!r}{meant} Known here: {', '.join(known)}"


def _settings_called(key: str) -> str | None:
    """Full name of a setting in another section."""
    sections = {f.name: typing.get_type_hints(Config)[f.name] for f in dataclasses.fields(Config)}
    found = [
        f"{name}.{key}"
        for name, kind in sections.items()
        if dataclasses.is_dataclass(kind) and key in {f.name for f in dataclasses.fields(kind)}
    ]
    return found[0] if len(found) == 1 else None


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """Convert `value` to the annotated type. Raise `ConfigError` naming field, value and type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if origin is Literal:
        if value not in args:
            names = list(map(str, args))
            raise ConfigError(
                f"{where} is {shown(value)}; it must be one of {', '.join(names)}{did_you_mean(value, names)}"
            )
        return value
    if origin in (types.UnionType, typing.Union):  # the second of a Literal
        if value is None:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(args[0], item, f"{where}.{i}") for i, item in enumerate(items))
    return _scalar(kind, value, where)


_WRITTEN = {bool: "true or false", int: "a whole number, as 12", float: "a number, as 0.001 or 1e-3"}


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is {shown(value)}; the number is too large") from None
    if kind is str and isinstance(value, str) and not _is_clean(value):
        raise ConfigError(f"{where} is {shown(value)}; it contains NUL or a lone surrogate, which text cannot contain")
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    is_unquoted = kind is str and isinstance(value, bool | int | float)
    how = _WRITTEN.get(kind) or ("text: put it in quotes" if is_unquoted else "text")
    raise ConfigError(f"{where} is {shown(value)}; it must be of type {kind.__name__} ({how})")


def _is_clean(text: str) -> bool:
    """No NUL, which ends a path, and no lone surrogate, which cannot be printed."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text
