"""Members of an ensemble that one checkpoint has: heads over one backbone, named `1/score`, `2/score`, and so on.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewardserve.model.calibration import Calibration
from rewardserve.model.reward.pipeline import EnsembleMember

_MEMBER = re.compile(r"[1-9][0-9]*/(?P<head>.+)")


def head_name(member: str, head: str) -> str:
    """Name of a member's head."""
    return f"{member}/{head}"


def head_of_members(names: Sequence[str]) -> str | None:
    """The one head of which these are the members; None where they are no members of one."""
    found = [_MEMBER.fullmatch(name) for name in names]
    heads = {each["head"] if each else None for each in found}
    return heads.pop() if len(names) > 1 and len(heads) == 1 else None


def members_of(heads: Sequence[tuple[str, float]], calibration: Calibration | None) -> tuple[EnsembleMember, ...]:
    """Heads of one model as members with a calibration each; empty where they are no members of one head."""
    if head_of_members([name for name, _ in heads]) is None:
        return ()
    fitted = {head.name: head for head in calibration.heads} if calibration else {}
    return tuple(
        EnsembleMember(
            name,
            ((name, 1.0),),
            Calibration(fitted[name].mean, fitted[name].std, fitted[name].temperature) if name in fitted else None,
        )
        for name, _ in heads
    )
