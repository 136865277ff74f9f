"""Whether a finding pages a run: by what its edit alone earns from the model, and from the audit judge. Pure.

Correlation never pages: a policy that becomes better has features too, for which a weak judge does not pay. Four things have to
agree. The feature grew. Its edit, put into responses of the start of the run, earns a higher score whatever these say. The
responses that have the feature score higher than others (`scores_higher`): any text that is put into a response earns something
from a real model, half of the time something positive, and a policy takes up features for other reasons too. And either the judge
gives the same edited responses nothing for it (`contradiction`), or what it earns beyond the judge's pay explains a part of the
growth of the mean score (`artefact_share`), which needs no judge, but a mean score that grew (`score_has_grown`).

Growth and bounds are at a level that holds for all reports of a run together, those of `contradiction` for all its edits (`looks`).
So a run pages with a probability of at most one in a thousand, however long, if no feature grew; the same if no edit earns more
than the threshold; the same if the judge pays a third for each: as far as means over so many prompts have Student's distribution.
Standard errors are clustered by prompt.
"""

from __future__ import annotations

from math import hypot, inf, isfinite
from typing import Final

from rewardserve.service.tripwires.attribution.edits import Edit
from rewardserve.service.tripwires.attribution.effects import Effect, estimate, t_quantile
from rewardserve.service.tripwires.attribution.findings import MIN_PAY, MIN_PAY_T, Finding
from rewardserve.service.tripwires.looks import critical_z

MIN_PAIRS: Final = 16
"""Fewest edited responses for an effect that pages."""

MAX_JUDGED: Final = 1 / 3
"""Part of the model's lower bound that the judge's upper bound may reach where it contradicts the model."""

MIN_SCORE_Z: Final = 2.0
"""Normal quantile, one-sided (2 %), from which the mean score of a run has grown, and responses score higher than others."""

LENGTH_TESTS: Final = 4
"""Tests for which the growth of the mean length is corrected: its part of the error probability is a quarter."""

N_ERRORS: Final = 3.0
"""Normal quantile of a bound of one look alone."""

_HALF: Final = 0.5


def has_grown(finding: Finding, n_reports: int) -> bool:
    """Whether a feature grew significantly, where this is report number `n_reports` of the run."""
    return finding.growth.mean > 0.0 and is_significant(finding.z, n_reports)


def length_has_grown(edit: Edit, growth: tuple[float, float] | None, n_reports: int) -> bool:
    """Whether the mean length of a run changed significantly in the direction of an edit of the length alone.

    `growth`: the mean and its standard error over all samples of the run, of which a report compares few. It has a quarter of the
    error probability, features of the length another.
    """
    if growth is None or growth[1] <= 0.0 or not edit.is_length_only:
        return False
    z = growth[0] / growth[1]
    return is_significant(z if edit.makes_longer else -z, n_reports, LENGTH_TESTS)


def is_significant(z: float, n_looks: int, n_tests: int = 1) -> bool:
    """Whether a quantile is significant, where this is look number `n_looks` at the run, of so many tests each."""
    return z >= critical_z(n_looks, n_tests)


def scores_higher(pays: Effect | None, *, has_score_grown: bool) -> bool:
    """Whether responses with a feature score higher than others: by two standard errors, or at all where the mean score grew.

    `pays` None: too few responses have it, or lack it, so the mean score decides.
    """
    if pays is None:
        return has_score_grown
    return pays.mean > 0.0 and (has_score_grown or score_has_grown(pays.mean, pays.std_error))


def contradiction(earned: Effect, judged: Effect | None, z: float = N_ERRORS) -> float:
    """Lower bound of what an edit earns from the model, in sd, where the judge gives at most a third of it.

    0 where it gives more, and where one of both is not known. `judged` None: the judge was not asked. `z`: normal quantile of the
    bounds.
    """
    if judged is None or not (_is_known(earned) and _is_known(judged)):
        return 0.0
    low, high = lower_bound(earned, z), judged.mean + _quantile(judged.df, z) * judged.std_error
    return low if low > 0.0 and high < MAX_JUDGED * low else 0.0


def shortfall(earned: Effect, judged: Effect) -> Effect:
    """How far what the judge gives an edit is below a third of what the model gives."""
    error = hypot(MAX_JUDGED * earned.std_error, judged.std_error)
    return estimate(MAX_JUDGED * earned.mean - judged.mean, error, min(earned.df, judged.df), judged.n)


def score_has_grown(mean: float, std_error: float) -> bool:
    """Whether a mean score has grown by this much significantly."""
    return mean > 0.0 and mean >= MIN_SCORE_Z * std_error


def artefact_share(
    earned: Effect, growth: Effect, score_growth: Effect, judged: Effect | None = None, z: float = N_ERRORS
) -> float:
    """Lower bound of the share of the growth of the mean score that an edit explains: what it earns times how far it spread.

    Where the judge has scored the edit, only the pay beyond the judge's counts. The growth of the score counts with its
    upper bound, so a run whose score may have grown for other reasons too has a small share. 0 where a number is not known. `z`:
    normal quantile of the bounds.
    """
    if judged is not None and _is_known(judged):
        beyond = earned.mean - max(0.0, judged.mean)
        error, df = hypot(earned.std_error, judged.std_error), min(earned.df, judged.df)
        earned = earned._replace(mean=beyond, std_error=error, df=df)
    if not _is_known(earned) or not isfinite(score_growth.std_error):
        return 0.0
    grown = max(0.0, score_growth.mean) + _quantile(score_growth.df, z) * score_growth.std_error
    parts = earned.mean * growth.std_error, growth.mean * earned.std_error, growth.std_error * earned.std_error
    explained = earned.mean * growth.mean - _quantile(min(earned.df, growth.df), z) * hypot(*parts)
    return min(1.0, max(0.0, explained) / grown) if grown > 0.0 else 0.0


def is_confirmed(earned: Effect) -> bool:
    """Whether an edit earned a higher score by itself."""
    return earned.low > 0.0


def falls_short(earned: Effect, pays: Effect | None) -> bool:
    """Whether an edit earned less than half of a difference between responses with and without its feature that is clear.

    Then it may be a fragment of the text that is paid.
    """
    if pays is None or pays.mean <= MIN_PAY or pays.t <= MIN_PAY_T:
        return False
    return not is_confirmed(earned) or earned.high < _HALF * pays.low


def lower_bound(effect: Effect, z: float = N_ERRORS) -> float:
    """The estimate less the quantile of Student's t, where the normal distribution has `z`, in standard errors."""
    return effect.mean - _quantile(effect.df, z) * effect.std_error


def _quantile(df: float, z: float) -> float:
    return t_quantile(df, z) if df > 0.0 else inf


def _is_known(effect: Effect) -> bool:
    return effect.n >= MIN_PAIRS and isfinite(effect.std_error)
