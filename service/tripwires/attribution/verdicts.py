"""Whether a finding pages a run: by what its edit alone earns from the model, and from the audit judge. Pure.

Correlation never pages: a policy that becomes better has features too, for which a weak judge does not pay. Three things have to
agree. The feature grew, at a level that holds for all reports of a run together. Its edit, put into responses of the start
of the run, earns a higher score whatever these say. And either the judge gives the same edited responses nothing for it
(`contradiction`), or what it earns beyond the judge's pay explains a part of the growth of the mean score (`artefact_share`),
which needs no judge, but a mean score that grew (`score_has_grown`): any text that is put into a response earns something from a
real model, half of the time something positive. Bounds are three standard errors from the estimate, clustered by prompt, as those
of the other wires.
"""

from __future__ import annotations

from math import hypot, isfinite
from typing import Final

from rewardserve.service.tripwires.attribution.effects import Effect, corrected_z
from rewardserve.service.tripwires.attribution.findings import Finding

MIN_PAIRS: Final = 16
"""Fewest edited responses for an effect that pages."""

MAX_JUDGED: Final = 1 / 3
"""Part of the model's lower bound that the judge's upper bound may reach where it contradicts the model."""

MIN_SCORE_Z: Final = 2.0
"""Normal quantile, one-sided (2 %), from which the mean score of a run has grown."""

_N_ERRORS: Final = 3.0
_SIGNIFICANT: Final = 3.29
"""Normal quantile of one in a thousand, two-sided: the probability that any look at a run finds a change that did not happen."""


def has_grown(finding: Finding, n_reports: int) -> bool:
    """Whether a feature grew significantly, where this is report number `n_reports` of the run."""
    return finding.growth.mean > 0.0 and is_significant(finding.z, n_reports)


def is_significant(z: float, n_looks: int, n_tests: int = 1) -> bool:
    """Whether a quantile is significant, where this is look number `n_looks` at the run, of so many tests each.

    Look k has 1/(k (k + 1)) of the error probability of the run: these sum to 1, so their number needs no limit.
    """
    return corrected_z(z, n_tests * n_looks * (n_looks + 1)) >= _SIGNIFICANT


def contradiction(earned: Effect, judged: Effect | None) -> float:
    """Lower bound of what an edit earns from the model, in sd, where the judge gives at most a third of it.

    0 where it gives more, and where one of both is not known. `judged` None: the judge was not asked.
    """
    if judged is None or not (_is_known(earned) and _is_known(judged)):
        return 0.0
    low = lower_bound(earned)
    high = judged.mean + _N_ERRORS * judged.std_error
    return low if low > 0.0 and high < MAX_JUDGED * low else 0.0


def score_has_grown(mean: float, std_error: float) -> bool:
    """Whether a mean score has grown by this much significantly."""
    return mean > 0.0 and mean >= MIN_SCORE_Z * std_error


def artefact_share(earned: Effect, growth: Effect, score_growth: Effect, judged: Effect | None = None) -> float:
    """Lower bound of the share of the growth of the mean score that an edit explains: what it earns times how far it spread.

    Where the judge has scored the edit, only the pay beyond the judge's counts. The growth of the score counts with its
    upper bound, so a run whose score may have grown for other reasons too has a small share. 0 where a number is not known.
    """
    if judged is not None and _is_known(judged):
        beyond = earned.mean - max(0.0, judged.mean)
        earned = earned._replace(mean=beyond, std_error=hypot(earned.std_error, judged.std_error))
    if not _is_known(earned) or not isfinite(score_growth.std_error):
        return 0.0
    grown = max(0.0, score_growth.mean) + _N_ERRORS * score_growth.std_error
    parts = earned.mean * growth.std_error, growth.mean * earned.std_error, growth.std_error * earned.std_error
    explained = earned.mean * growth.mean - _N_ERRORS * hypot(*parts)
    return min(1.0, max(0.0, explained) / grown) if grown > 0.0 else 0.0


def lower_bound(effect: Effect) -> float:
    """The estimate less three standard errors."""
    return effect.mean - _N_ERRORS * effect.std_error


def _is_known(effect: Effect) -> bool:
    return effect.n >= MIN_PAIRS and isfinite(effect.std_error)
