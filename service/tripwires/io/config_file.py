"""Read the configuration of the wires from a file."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from rewardserve.model.text.text_files import decode_text, error_reason, read_bounded
from rewardserve.service.tripwires.config import WireConfig, WireConfigError, parse_wire_config

_MAX_BYTES = 2**20


def read_wire_config(path: Path) -> WireConfig:
    """Read a configuration; its phrase files are relative to its folder. Raise `WireConfigError`."""
    try:
        config = parse_wire_config(tomllib.loads(decode_text(read_bounded(path, _MAX_BYTES))))
    except (OSError, ValueError) as error:
        raise WireConfigError(error_reason(error)) from None
    return replace(config, lexicons=tuple(str(path.parent / name) for name in config.lexicons))
