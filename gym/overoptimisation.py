"""The table of over-optimisation: what a policy is truly worth after climbing a reward, by how that reward is made.

`python -m gym.overoptimisation --seeds 20 26` trains a policy for every row and seed, with rewards that come out of the
service's own reward pipeline, calibrated by the trainer's own code on responses of the base policy. The one exception
is the oracle: its reward is gold itself, and no pipeline is asked. Seeds differ in their labelled pairs and backbones;
a row is compared with `raw` seed by seed. What it does not know: whether a real policy would find the same exploits, and
at what KL; the order of the rows is the claim, not the numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from gym.ensembles import JURIES, World
from gym.outcomes import Run, followed, paired, scaling_of
from gym.policy import base_policy
from gym.rewards import Jury, by_pipeline, reference
from gym.scaling import Scaling
from gym.training import STEPS, RewardOf, by_gold, train
from rewardserve.model.reward import CombineMethod, CombineSettings, RewardSettings, build_pipeline

NONE: Final = RewardSettings(shape="none")
SOFTMIN: Final = RewardSettings(shape="none", combine=CombineSettings("softmin", beta=0.5))


@dataclass(frozen=True, slots=True)
class Row:
    """A way to make a reward. `jury` is one of `JURIES`; None: gold itself. `cap_quantile` asks for a cap there."""

    name: str
    jury: str | None = "one"
    settings: RewardSettings = NONE
    kl: float = 0.0
    cap_quantile: float | None = None


def _combined(how: CombineMethod) -> RewardSettings:
    return RewardSettings(shape="none", combine=CombineSettings(how))


RAW: Final = Row("raw")
ROWS: Final[tuple[Row, ...]] = (
    RAW,
    Row("cap z<=2", settings=RewardSettings(shape="cap", cap_high=2.0)),
    Row("cap q99.5", settings=RewardSettings(shape="cap"), cap_quantile=0.995),
    Row("softcap (default)", settings=RewardSettings()),
    Row("par", settings=RewardSettings(shape="par")),
    Row("lsc", settings=RewardSettings(shape="lsc")),
    Row("4 heads, mean", "heads", _combined("mean")),
    Row("4 heads, min", "heads", _combined("min")),
    Row("4 backbones, mean", "backbones", _combined("mean")),
    Row("4 backbones, min", "backbones", _combined("min")),
    Row("4 backbones, softmin", "backbones", SOFTMIN),
    Row("debias 1", settings=RewardSettings(shape="none", length_debias=1.0)),
    Row("debias .5", settings=RewardSettings(shape="none", length_debias=0.5)),
    Row("mined", "one, mined"),
    Row("mined, softmin, KL .01", "backbones, mined", SOFTMIN, kl=0.01),
    Row("audited base", "one, audited base"),
    Row("audited base, softmin, KL .01", "backbones, audited base", SOFTMIN, kl=0.01),
    Row("audited variants", "one, audited variants"),
    Row("audited variants, softmin, KL .01", "backbones, audited variants", SOFTMIN, kl=0.01),
    # What of the three rows with softmin and KL is due to these alone.
    Row("softmin, KL .01", "backbones", SOFTMIN, kl=0.01),
    Row("raw, KL .02", kl=0.02),
    Row("raw, KL .05", kl=0.05),
    Row("par, KL .005", settings=RewardSettings(shape="par"), kl=0.005),
    Row("oracle (gold), KL .02", jury=None, kl=0.02),
)


def reward_of(row: Row, jury: Jury) -> RewardOf:
    """The pipeline that a row asks for, as the reward of a run."""
    settings = row.settings
    if row.cap_quantile is not None:
        settings = replace(settings, cap_high=_normalised_quantile(jury, row.cap_quantile))
    return by_pipeline(build_pipeline(jury.ensemble_members, settings), jury.models.heads)


def _normalised_quantile(jury: Jury, p: float) -> float:
    (only,) = jury.ensemble_members
    if only.calibration is None:
        raise ValueError(f"{only.name} has no calibration to take the quantile {p} of")
    return (dict(only.calibration.quantiles)[p] - only.calibration.mean) / only.calibration.std


def runs_of(world: World, rows: Sequence[Row], steps: int) -> dict[str, Run]:
    """Every row for one seed, by name. The sampling noise of all rows is that of the seed."""
    juries = {name: JURIES[name](world) for name in {row.jury or "one" for row in rows}}
    runs = {}
    for row in rows:
        jury = juries[row.jury or "one"]
        reward = by_gold if row.jury is None else reward_of(row, jury)
        runs[row.name] = followed(train(world.base, jury.models, reward, steps, seed=world.seed, kl_coefficient=row.kl))
    return runs


def summary(runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """The table as numbers, and every seed behind them."""
    table = {}
    for name, of_row in runs.items():
        difference, error = paired(of_row, runs[RAW.name])
        table[name] = {
            "peak": fmean(run.peak for run in of_row),
            "final": fmean(run.final for run in of_row),
            "worst": min(run.final for run in of_row),
            "kl": fmean(run.kl for run in of_row),
            "length": fmean(run.length for run in of_row),
            "against_raw": difference,
            "against_raw_error": error,
            "final_by_seed": [run.final for run in of_row],
        }
    return table


def printed(table: dict[str, dict[str, Any]], scaling: Scaling) -> str:
    """The table as text."""
    lines = [f"{'':35}{'peak':>6}{'final':>7}{'worst':>7}{'KL':>7}{'length':>8}   final - raw (se)"]
    lines += [
        f"{name:35}{r['peak']:6.2f}{r['final']:7.2f}{r['worst']:7.2f}{r['kl']:7.1f}{r['length']:8.0f}"
        f"   {r['against_raw']:+.2f} ({r['against_raw_error']:.2f})"
        for name, r in table.items()
    ]
    lines.append(
        f"raw as d (alpha - beta log d), d = sqrt(KL): alpha {scaling.alpha:.3f}, beta {scaling.beta:.3f}, peak at d "
        f"{scaling.peak_d:.1f} (KL {scaling.peak_d**2:.0f}); explains {scaling.explained:.0%} of the variance of gold"
    )
    return "\n".join(lines)


def main() -> None:
    """Run every row for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(20, 26), metavar=("FIRST", "END"), help="END is not run")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path, help="where to write the table as JSON too")
    arguments = parser.parse_args()
    base = base_policy()
    against = reference(base)
    by_seed = [runs_of(World(base, against, s), ROWS, arguments.steps) for s in range(*arguments.seeds)]
    runs = {row.name: [of_seed[row.name] for of_seed in by_seed] for row in ROWS}
    start = fmean(float(run.gold_T[0]) for run in runs[RAW.name])
    table, scaling = summary(runs), scaling_of(runs[RAW.name], start)
    print(printed(table, scaling))
    if arguments.json:
        found = {
            "seeds": list(range(*arguments.seeds)),
            "steps": arguments.steps,
            "start": start,
            "scaling": asdict(scaling) | {"peak_d": scaling.peak_d},
            "rows": table,
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
