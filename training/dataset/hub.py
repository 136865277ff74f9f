"""Announce names that are looked up on the Hugging Face hub, bound the wait for a hub that does not reply, and upload checkpoints.

The libraries retry for minutes. Here one request with a timeout decides: without a reply the process goes offline, so
that cached files are used and other names are refused at once.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from rewardserve.training.console import say
from rewardserve.training.errors import UploadFailed
from rewardserve.training.settings.validation import ConfigError

ANSWER_S = 10.0
"""Longest wait for the hub, name resolution included."""


def announce(kind: str, name: str) -> None:
    """Print that `name` comes from the hub, or from its cache alone if the process is offline or the hub does not reply."""
    if is_offline():
        say(f"{kind} {name}: from the cache of the Hugging Face hub alone (offline)")
        return
    say(f"{kind} {name}: from the Hugging Face hub at {_endpoint()}, or its cache")
    if not answers(_endpoint(), ANSWER_S):
        say(f"the hub does not reply (within {ANSWER_S:.0f} s); using cached files")
        _go_offline()


def announce_model(path_or_name: str) -> None:
    """Announce a model, and the base model that an adapter or bare heads name."""
    for name in (path_or_name, *_base_names(Path(path_or_name).expanduser())):
        if is_hub_model(name):
            announce("model", name)


def is_hub_model(name: str) -> bool:
    """Whether a model of this name is looked up on the hub."""
    from rewardserve.model.checkpoint.packaged_bases import PACKAGED_BASES

    if name.partition(":")[0] in PACKAGED_BASES or Path(name).expanduser().is_dir():
        return False
    return not (Path(name).is_absolute() or name.startswith((".", "~"))) and name.count("/") == 1


def is_offline() -> bool:
    """Whether the hub must not be used: HF_HUB_OFFLINE is set, or the hub did not reply."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def remedy(kind: str, how: str) -> str:
    """Remedy for a name that is not in the cache while the hub is unreachable. `how`: the option that names a file instead."""
    option = "" if kind == "model" else " --repo-type dataset"
    return (
        f"The hub is offline or did not reply, and the name is not in the cache. Fetch it on a machine with a network (hf download "
        f"NAME{option}) and copy the cache (HF_HOME), or name a folder or file: {how}."
    )


def answers(endpoint: str, timeout_s: float) -> bool:
    """Whether a server replies in time, with any status."""
    import httpx

    found: list[bool] = []

    def send() -> None:
        try:
            httpx.head(endpoint, timeout=timeout_s)
        except (httpx.HTTPError, OSError, ValueError):
            return
        found.append(True)

    # In a separate thread: name resolution has no timeout and cannot be interrupted.
    thread = threading.Thread(target=send, name="hub", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(found)


def create_repository(name: str, *, private: bool) -> None:
    """Create the repository of `output.push_to_hub` if there is none, before data are read. Raise `ConfigError`."""
    from huggingface_hub import HfApi

    if is_offline():
        raise ConfigError(f"output.push_to_hub: {name} cannot be written offline (HF_HUB_OFFLINE). Leave it out.")
    if not answers(_endpoint(), ANSWER_S):
        raise ConfigError(
            f"output.push_to_hub: the hub at {_endpoint()} does not reply (within {ANSWER_S:.0f} s). Leave it out, and upload the "
            "checkpoint later: hf upload NAME FOLDER."
        )
    try:
        HfApi(endpoint=_endpoint()).create_repo(name, private=private, exist_ok=True)
    except Exception as error:  # without an account, of another organisation, a name that is not allowed
        raise ConfigError(
            f"output.push_to_hub: {name} cannot be written: {_first_line(error)}. Log in (hf auth login, or HF_TOKEN) with a token "
            "that may write there."
        ) from error


def push(folder: Path, name: str) -> str:
    """Upload a checkpoint in one commit. Return the address of the repository. Raise `UploadFailed`."""
    from huggingface_hub import HfApi

    say(f"uploading {folder} to {name}")
    try:
        HfApi(endpoint=_endpoint()).upload_folder(
            repo_id=name, folder_path=folder, commit_message="Add a reward model trained by RewardServe"
        )
    except Exception as error:
        raise UploadFailed(
            f"the checkpoint is written to {folder}, and could not be uploaded: {_first_line(error)}. Upload it with "
            f"`hf upload {name} {folder}`."
        ) from error
    return f"{_endpoint()}/{name}"


def _first_line(error: Exception) -> str:
    """The first line of a message of huggingface_hub; later ones have headers and addresses."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _go_offline() -> None:
    """Set the flag that both libraries read before each request."""
    from huggingface_hub import constants

    modules: list[Any] = [constants]
    try:
        import datasets

        modules.append(datasets.config)
    except ImportError:
        pass
    for module in modules:
        module.HF_HUB_OFFLINE = True


def _base_names(folder: Path) -> list[str]:
    from rewardserve.model.checkpoint.heads import base_of_heads

    names: list[str | None] = []
    try:
        if folder.is_dir():
            names.append(base_of_heads(folder))
            config = folder / "adapter_config.json"
            names.append(json.loads(config.read_text()).get("base_model_name_or_path") if config.is_file() else None)
    except Exception:  # faults of these files are reported when they are read
        return []
    return [name for name in names if isinstance(name, str)]
