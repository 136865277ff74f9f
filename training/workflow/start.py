"""Load the checkpoint that a run starts from or judges, with the limits of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.engine_check import padding_objection
from rewardserve.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    ReadOptions,
    read,
    read_backbone,
    with_openrlhf_note,
    with_whole_tokenization,
    without_bias,
)
from rewardserve.model.reward.checkpoint_members import head_of_members
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training.console import say
from rewardserve.training.dataset import hub
from rewardserve.training.errors import ModelUnusable
from rewardserve.training.loop.methods import disable_dropout, not_adapted
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.workflow.processes import process


def load_start(config: Config) -> Checkpoint:
    """Load the weights that training starts from, on the device of the run."""
    with name_setting("model.path", config.model.path, how="--set model.path=PATH"):
        checkpoint = _start(config)
    if config.encoding.chat_template is not None:
        checkpoint = _with_template(checkpoint, Path(config.encoding.chat_template))
    checkpoint.network.to(process().device)
    left_out = not_adapted(checkpoint.network, config.method)
    checkpoint = with_limits(config, require_padding_safe(checkpoint))
    keeps = config.optim.dropout or config.method.name == "frozen" or config.optim.epochs == 0
    off = () if keeps else disable_dropout(checkpoint.network.backbone)
    return replace(checkpoint, notes=(*checkpoint.notes, *left_out, *off))


def _with_template(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with the chat template of a file. Raise `ConfigError`."""
    policy = checkpoint.policy
    try:
        template = path.read_text(encoding="utf-8")
        own = infer_policy(
            checkpoint.tokenizer,
            max_tokens=policy.max_tokens,
            vocab_size=policy.vocab_size,
            rule=policy.rule,
            pad_id=policy.skip_id,
            template=template,
            truncation=policy.truncation,
        )
    except (OSError, UnicodeDecodeError, EncodingPolicyError) as error:
        raise ConfigError(f"encoding.chat_template: {path} cannot be used: {error}") from error
    return replace(checkpoint, policy=own)


def print_not_adapted(config: Config, start: Checkpoint) -> None:
    """Print which parameters have no adapter; the notes of the checkpoint carry it into the report."""
    for note in not_adapted(start.network, config.method):
        say(note)


@contextmanager
def name_setting(setting: str, path: str, *, how: str) -> Iterator[None]:
    """Announce a model of the hub, and name the setting or option in errors about the model. Raise `ModelUnusable`."""
    hub.announce_model(path)
    try:
        yield
    except CheckpointError as error:
        if hub.is_hub_model(path) and hub.is_offline():
            raise ModelUnusable(f"{setting}: {path!r} is not a folder. {hub.remedy('model', how)}") from error
        raise ModelUnusable(f"{setting}: {error}") from error


def _start(config: Config) -> Checkpoint:
    wanted, options = config.model, _read_options(config, config.model.dtype)
    if wanted.start == "backbone":
        return read_backbone(
            wanted.path,
            options,
            head_names=wanted.outputs,
            head_weights=wanted.weight_of_output,
            n_layers=wanted.n_layers,
        )
    checkpoint = read(wanted.path, options)
    if checkpoint.network.head_names != wanted.outputs:
        raise ConfigError(
            f"{wanted.path} has heads {list(checkpoint.network.head_names)}; the recipe has {list(wanted.outputs)}. Set "
            "model.heads to those of the reward model, in their order, and model.members to the number of its members."
        )
    return as_written(checkpoint)


def read_reward_model(config: Config, path: str) -> Checkpoint:
    own = Path(config.output.folder) / "checkpoint"
    if Path(path) == own and not own.is_dir():
        raise ConfigError(
            f"{own} does not exist: finish a run of this recipe first (rewardserve train), or name another reward model with "
            "--checkpoint."
        )
    with name_setting("--checkpoint", path, how="--checkpoint=PATH"):
        checkpoint = read(path, _read_options(config, "float32"), device=str(process().device))
    return require_padding_safe(checkpoint)


def _read_options(config: Config, dtype: str) -> ReadOptions:
    return ReadOptions(
        dtype=dtype,
        allow_pickle=config.model.allow_pickle,
        ignore_checkpoint_code=config.model.ignore_checkpoint_code,
    )


def require_padding_safe(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint. Raise `ModelUnusable` if a padded batch gives other scores than each row alone."""
    network = checkpoint.network
    try:
        objection = padding_objection(network, pad_id=checkpoint.pad_id, max_tokens=checkpoint.policy.max_tokens)
    except LoadError as error:
        raise ModelUnusable(f"model.path: {error}") from error
    if objection is not None:
        raise ModelUnusable(
            f"model.path: {type(network.backbone).__name__} cannot be trained here: training pads its batches, and padding "
            f"changes this model's values ({objection}), so the trained reward would differ from the served one. "
            "Choose an architecture with correct padding in docs/reference/architectures.md."
        )
    return checkpoint


def with_limits(config: Config, checkpoint: Checkpoint) -> Checkpoint:
    """Checkpoint with the maximum length and the truncation of the recipe."""
    limit = min(config.encoding.max_tokens, checkpoint.policy.max_tokens)
    if limit < config.encoding.max_tokens:
        say(f"encoding.max_tokens is {config.encoding.max_tokens:,}; the model reads at most {limit:,}, which is used")
    policy = replace(checkpoint.policy, max_tokens=limit, truncation=config.encoding.truncation)
    return replace(checkpoint, policy=policy)


def with_own_heads(config: Config, checkpoint: Checkpoint) -> Config:
    """Recipe for an existing model: its heads are fixed; the recipe may still set their weights."""
    outputs = checkpoint.network.head_names
    common = head_of_members(outputs)
    names = outputs if common is None else (common,)
    for section, of in (("sources", config.data.sources), ("eval_sources", config.data.eval_sources)):
        for i, source in enumerate(of):
            missing = next((head for head in source.trained_heads if head not in names), None)
            if missing is not None:
                raise ConfigError(
                    f"data.{section}.{i} ({source.path!r}) has pairs for head {missing!r}, which the checkpoint lacks. Its "
                    f"heads are {list(names)}. Leave the source out, or evaluate one of these heads on its pairs: --set "
                    f"data.{section}.{i}.head={names[0]}."
                )
    weights = config.model.head_weights if len(config.model.head_weights) == len(names) else ()
    return replace(
        config,
        model=replace(
            config.model,
            heads=names,
            members=len(outputs) // len(names),
            member_data=config.model.member_data if common else "bootstrap",
            head_weights=weights,
            head_l2=config.model.head_l2[:1],
        ),
    )


def as_written(checkpoint: Checkpoint) -> Checkpoint:
    """Checkpoint in RewardServe's layout. The necessary changes are printed and reported."""
    for step in (without_bias, with_whole_tokenization, with_openrlhf_note):
        checkpoint, note = step(checkpoint)
        if note:
            say(note)
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, note))
    return checkpoint
