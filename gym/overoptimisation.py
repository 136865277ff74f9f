"""Table of over-optimisation: gold of a policy after training on a reward, by the kind of reward.

`python -m gym.overoptimisation --seeds 20 26` trains a policy for every row and seed, with rewards of the service's
reward pipeline, calibrated by the trainer's code on responses of the base policy. The one exception is the oracle: its
reward is gold, without a pipeline. Seeds differ in their labelled pairs and backbones; a row is compared with `raw`
seed by seed. The table cannot show whether a real policy would find the same exploits, and at which KL: the order of
the rows is the claim, not the numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from gym.outcomes import GymRun, paired_difference, record_run, scaling_of
from gym.policy import base_policy
from gym.reward_models import REWARD_MODELS, SeedData
from gym.rewards import RewardModels, calibration_data, pipeline_reward
from gym.scaling import Scaling
from gym.training import STEPS, RewardOf, gold_reward, train
from rewardserve.model.reward import CombineMethod, CombineSettings, RewardSettings, build_pipeline

NONE: Final = RewardSettings(shape="none")
SOFTMIN: Final = RewardSettings(shape="none", combine=CombineSettings("softmin", beta=0.5))


@dataclass(frozen=True, slots=True)
class RewardVariant:
    """Kind of reward. `reward_models` is one of `REWARD_MODELS`; None: gold. `cap_quantile`: quantile of the cap."""

    name: str
    reward_models: str | None = "one"
    settings: RewardSettings = NONE
    kl: float = 0.0
    cap_quantile: float | None = None


def _combined(method: CombineMethod) -> RewardSettings:
    return RewardSettings(shape="none", combine=CombineSettings(method))


RAW: Final = RewardVariant("raw")
VARIANTS: Final[tuple[RewardVariant, ...]] = (
    RAW,
    RewardVariant("cap z<=2", settings=RewardSettings(shape="cap", cap_high=2.0)),
    RewardVariant("cap q99.5", settings=RewardSettings(shape="cap"), cap_quantile=0.995),
    RewardVariant("softcap (default)", settings=RewardSettings()),
    RewardVariant("par", settings=RewardSettings(shape="par")),
    RewardVariant("lsc", settings=RewardSettings(shape="lsc")),
    RewardVariant("4 heads, mean", "heads", _combined("mean")),
    RewardVariant("4 heads, min", "heads", _combined("min")),
    RewardVariant("4 backbones, mean", "backbones", _combined("mean")),
    RewardVariant("4 backbones, min", "backbones", _combined("min")),
    RewardVariant("4 backbones, softmin", "backbones", SOFTMIN),
    RewardVariant("debias 1", settings=RewardSettings(shape="none", length_debias=1.0)),
    RewardVariant("debias .5", settings=RewardSettings(shape="none", length_debias=0.5)),
    RewardVariant("mined", "one, mined"),
    RewardVariant("mined, softmin, KL .01", "backbones, mined", SOFTMIN, kl=0.01),
    RewardVariant("audited base", "one, audited base"),
    RewardVariant("audited base, softmin, KL .01", "backbones, audited base", SOFTMIN, kl=0.01),
    RewardVariant("audited variants", "one, audited variants"),
    RewardVariant("audited variants, softmin, KL .01", "backbones, audited variants", SOFTMIN, kl=0.01),
    # The share of softmin and KL alone in the three rows above.
    RewardVariant("softmin, KL .01", "backbones", SOFTMIN, kl=0.01),
    RewardVariant("raw, KL .02", kl=0.02),
    RewardVariant("raw, KL .05", kl=0.05),
    RewardVariant("par, KL .005", settings=RewardSettings(shape="par"), kl=0.005),
    RewardVariant("oracle (gold), KL .02", reward_models=None, kl=0.02),
)


def reward_of(variant: RewardVariant, reward_models: RewardModels) -> RewardOf:
    """Pipeline of a row, as the reward of a run."""
    settings = variant.settings
    if variant.cap_quantile is not None:
        settings = replace(settings, cap_high=_normalised_quantile(reward_models, variant.cap_quantile))
    return pipeline_reward(build_pipeline(reward_models.ensemble_members, settings), reward_models.models.heads)


def _normalised_quantile(reward_models: RewardModels, p: float) -> float:
    (only,) = reward_models.ensemble_members
    if only.calibration is None:
        raise ValueError(f"{only.name} has no calibration to take the quantile {p} of")
    return (dict(only.calibration.quantiles)[p] - only.calibration.mean) / only.calibration.std


def runs_of(data: SeedData, variants: Sequence[RewardVariant], steps: int) -> dict[str, GymRun]:
    """Every row for one seed, by name. All rows share the sampling noise of the seed."""
    model_sets = {name: REWARD_MODELS[name](data) for name in {variant.reward_models or "one" for variant in variants}}
    runs = {}
    for variant in variants:
        reward_models = model_sets[variant.reward_models or "one"]
        reward = gold_reward if variant.reward_models is None else reward_of(variant, reward_models)
        runs[variant.name] = record_run(
            train(data.base, reward_models.models, reward, steps, seed=data.seed, kl_coefficient=variant.kl)
        )
    return runs


def summary(runs: dict[str, list[GymRun]]) -> dict[str, dict[str, Any]]:
    """The table as numbers, with every seed."""
    table = {}
    for name, of_variant in runs.items():
        difference, error = paired_difference(of_variant, runs[RAW.name])
        table[name] = {
            "peak": fmean(run.peak for run in of_variant),
            "final": fmean(run.final for run in of_variant),
            "worst": min(run.final for run in of_variant),
            "kl": fmean(run.kl for run in of_variant),
            "length": fmean(run.length for run in of_variant),
            "against_raw": difference,
            "against_raw_error": error,
            "final_by_seed": [run.final for run in of_variant],
        }
    return table


def render_table(table: dict[str, dict[str, Any]], scaling: Scaling) -> str:
    """Render the table as text."""
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
    parser.add_argument("--json", type=Path, help="file for the table as JSON")
    arguments = parser.parse_args()
    base = base_policy()
    against = calibration_data(base)
    by_seed = [runs_of(SeedData(base, against, s), VARIANTS, arguments.steps) for s in range(*arguments.seeds)]
    runs = {variant.name: [of_seed[variant.name] for of_seed in by_seed] for variant in VARIANTS}
    start = fmean(float(run.gold_T[0]) for run in runs[RAW.name])
    table, scaling = summary(runs), scaling_of(runs[RAW.name], start)
    print(render_table(table, scaling))
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
