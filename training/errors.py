"""Errors that end a run, and descriptions of their causes. The command line maps them to one line and an exit code.

Does not import torch: its errors are recognised by their messages.
"""

from __future__ import annotations

from importlib.util import find_spec

from rewardserve.model.resource_errors import describe_resource_error


class RunFailed(Exception):
    """The run failed while it worked: the recipe is readable and may be right. Exit code 1."""


class ModelUnusable(Exception):
    """The model of the recipe or of `--checkpoint` cannot be read, or not be trained. Exit code 1."""


class PackagesMissing(Exception):
    """The packages for training are not installed. Exit code 1."""


class UploadFailed(Exception):
    """The finished checkpoint could not be uploaded; it is written. Exit code 1."""


class NonFiniteLoss(RunFailed):
    """The loss of a step is NaN or infinite; the message names the step and the rows."""


class Stopped(Exception):
    """A signal has stopped the run, and it is saved. Exit code 130."""


_NO_MEMORY = ("out of memory", "allocate memory", "STATUS_ALLOC_FAILED")
"""Parts of torch's messages about memory, on a CPU and on a GPU."""
_WRITE_FAILED = ("PytorchStreamWriter", "inline_container", "iostream error", "Error while serializing")
"""Parts of messages of torch and safetensors about a file that cannot be written; they give no reason."""
_READ_FAILED = ("PytorchStreamReader", "Error while deserializing")
"""The same for reading: a step checkpoint of several processes, whose files are not compared with their lengths."""


_PACKAGES = ("datasets", "matplotlib", "tensorboard")
"""Packages of the extra `train` that are imported only where they are used: a report is drawn after hours of training."""
_EXTRA = "`pip install 'rewardserve[train]'` installs the packages for training."


def require_packages() -> None:
    """Raise `PackagesMissing` before a run reads anything."""
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise PackagesMissing(f"training needs {', '.join(missing)}, which this Python lacks. {_EXTRA}")


def explain(error: BaseException) -> str | None:
    """Describe an error of the machine (disk, memory, files) in one line; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(m in text for m in _NO_MEMORY)):
        return (
            "out of memory. Lower optim.batch_pairs (or batch_sequences) and raise optim.accumulate, lower "
            "encoding.max_tokens or eval.batch_tokens, or set optim.gradient_checkpointing: true or method.name: lora."
        )
    if any(mark in text for mark in _WRITE_FAILED):
        return f"a file could not be written, most likely because the disk is full: {text[:200]}"
    if any(mark in text for mark in _READ_FAILED):
        return f"a file is damaged or cut off: {text[:200]}."
    if (short := describe_resource_error(error)) is not None:
        return f"{short}."
    if isinstance(error, OSError):
        where = f" at {error.filename}" if error.filename else ""
        return f"a file could not be read or written{where}: {error.strerror or text or type(error).__name__}."
    if isinstance(error, ImportError):
        return f"a package is missing: {text[:200]}. {_EXTRA}"
    return None
