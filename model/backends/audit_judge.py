"""Find the audit judge that was trained beside a model: the folder `audit_judge` of its checkpoint."""

from __future__ import annotations

from pathlib import Path

from rewardserve.model.backends import LoadError


def find_audit_judge(model: str) -> Path | None:
    """The folder of the judge of this model (a folder, or a name of the hub; empty: the default model). Raise `LoadError`."""
    from rewardserve.model.checkpoint import AUDIT_JUDGE, CheckpointError
    from rewardserve.model.checkpoint.reading import resolve
    from rewardserve.model.default import DEFAULT_MODEL, FOLDER

    try:
        folder = FOLDER if model in ("", DEFAULT_MODEL) else resolve(model)
    except CheckpointError as error:
        raise LoadError(str(error)) from error
    judge = folder / AUDIT_JUDGE
    return judge if judge.is_dir() else None
