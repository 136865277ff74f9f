"""Sharded training (FSDP, DeepSpeed), for which the launcher of accelerate asks by environment variables. Shards nothing itself."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env

from rewardserve.training.console import say
from rewardserve.training.loop.stages import stage_configs
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

_FLAGS = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}


def check_sharding(config: Config) -> None:
    """Raise `ConfigError` for settings that need whole weights on every rank; print a note if accelerate will not shard."""
    asked = next((name for name, flag in _FLAGS.items() if parse_flag_from_env(flag)), None)
    if asked is None:
        return
    needs_whole = {
        # Written for FSDP and tested there; ZeRO-3 has no weights outside of a forward, and DeepSpeed runs on GPUs alone.
        "stages": bool(config.stages) and asked == "DeepSpeed",
        "length_head": bool(config.length_head.correlation) and asked == "DeepSpeed",
        "method.quantize": config.method.quantize is not None,
        "loss.sft": any(each.loss.sft for each in stage_configs(config)),
        "optim.ema": any(each.optim.ema for each in stage_configs(config)),
    }
    found = [name for name, is_set in needs_whole.items() if is_set]
    if found:
        raise ConfigError(
            f"{found[0]} needs whole weights on every rank, which {asked} has on none: leave it out, or start the run without "
            f"{asked}"
        )
    if not torch.cuda.is_available():
        say(f"{asked} shards on GPUs alone, and torch finds none here: each process holds all weights (DDP)")
