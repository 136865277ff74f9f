"""Table of over-optimisation: gold of a policy after training on a reward, by the kind of reward.

`python -m gym.overoptimisation --seeds 20 26` trains a policy for every row and seed, with rewards of the service's
reward pipeline, calibrated by the trainer's code on responses of the base policy. The one exception is the oracle: its
reward is gold, without a pipeline. Seeds differ in their labelled pairs and backbones; a row is compared with another
(`--against`) seed by seed. The table cannot show whether a real policy would find the same exploits, and at which KL:
the order of the rows is the claim, not the numbers.

Rows `gold, ...` shape the true reward itself: they show the price of a shape where nothing is to be exploited.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from gym.labeller import PLANTED
from gym.mining import WEIGHT
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
SHAPES: Final = (
    RAW,
    RewardVariant("cap z<=2", settings=RewardSettings(shape="cap", cap_high=2.0)),
    RewardVariant("cap q95", settings=RewardSettings(shape="cap"), cap_quantile=0.95),
    RewardVariant("cap q99", settings=RewardSettings(shape="cap"), cap_quantile=0.99),
    RewardVariant("cap q99.5", settings=RewardSettings(shape="cap"), cap_quantile=0.995),
    RewardVariant("cap q99.9", settings=RewardSettings(shape="cap")),
    RewardVariant("softcap q95", settings=RewardSettings(shape="softcap"), cap_quantile=0.95),
    RewardVariant("softcap q99", settings=RewardSettings(shape="softcap"), cap_quantile=0.99),
    RewardVariant("softcap q99.5", settings=RewardSettings(shape="softcap"), cap_quantile=0.995),
    RewardVariant("softcap q99.9", settings=RewardSettings(shape="softcap")),
    RewardVariant("par", settings=RewardSettings(shape="par")),
    RewardVariant("lsc", settings=RewardSettings(shape="lsc")),
)
VARIANTS: Final[tuple[RewardVariant, ...]] = (
    *SHAPES,
    *(replace(variant, name=f"gold, {variant.name}", reward_models="gold") for variant in SHAPES),
    RewardVariant("4 heads, mean", "heads", _combined("mean")),
    RewardVariant("4 heads, min", "heads", _combined("min")),
    RewardVariant("4 backbones, mean", "backbones", _combined("mean")),
    RewardVariant("4 backbones, min", "backbones", _combined("min")),
    RewardVariant("4 backbones, softmin", "backbones", SOFTMIN),
    RewardVariant(
        "4 backbones, softmin 1", "backbones", replace(SOFTMIN, combine=CombineSettings("softmin", beta=1.0))
    ),
    RewardVariant("4 backbones, and", "backbones", _combined("and")),
    RewardVariant("4 backbones, mean, cap z<=2", "backbones", RewardSettings(shape="cap", cap_high=2.0)),
    RewardVariant("4 backbones, softmin, cap z<=2", "backbones", replace(SOFTMIN, shape="cap", cap_high=2.0)),
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


def runs_of(
    data: SeedData, variants: Sequence[RewardVariant], steps: int, *, group_advantages: bool = False
) -> dict[str, GymRun]:
    """Every row for one seed, by name. All rows share the sampling noise of the seed."""
    model_sets = {name: REWARD_MODELS[name](data) for name in {variant.reward_models or "one" for variant in variants}}
    runs = {}
    for variant in variants:
        reward_models = model_sets[variant.reward_models or "one"]
        reward = gold_reward if variant.reward_models is None else reward_of(variant, reward_models)
        trained = train(
            data.base, reward_models.models, reward, steps, seed=data.seed, kl_coefficient=variant.kl,
            group_advantages=group_advantages,
        )  # fmt: skip
        runs[variant.name] = record_run(trained)
    return runs


def summary(runs: dict[str, list[GymRun]], against: str = RAW.name) -> dict[str, dict[str, Any]]:
    """The table as numbers, with every seed. `against`: row from which the difference is taken."""
    table = {}
    for name, of_variant in runs.items():
        difference, error = paired_difference(of_variant, runs[against])
        table[name] = {
            "peak": fmean(run.peak for run in of_variant),
            "final": fmean(run.final for run in of_variant),
            "worst": min(run.final for run in of_variant),
            "kl": fmean(run.kl for run in of_variant),
            "length": fmean(run.length for run in of_variant),
            "difference": difference,
            "difference_error": error,
            "final_by_seed": [run.final for run in of_variant],
        }
    return table


def render_table(table: dict[str, dict[str, Any]], against: str = RAW.name) -> str:
    """Render the table as text."""
    lines = [f"{'':35}{'peak':>6}{'final':>7}{'worst':>7}{'KL':>7}{'length':>8}   final - {against} (se)"]
    lines += [
        f"{name:35}{r['peak']:6.2f}{r['final']:7.2f}{r['worst']:7.2f}{r['kl']:7.1f}{r['length']:8.0f}"
        f"   {r['difference']:+.2f} ({r['difference_error']:.2f})"
        for name, r in table.items()
    ]
    return "\n".join(lines)


def render_scaling(scaling: Scaling) -> str:
    """Render the curve of `raw` as one line."""
    return (
        f"raw as d (alpha - beta log d), d = sqrt(KL): alpha {scaling.alpha:.3f}, beta {scaling.beta:.3f}, peak at d "
        f"{scaling.peak_d:.1f} (KL {scaling.peak_d**2:.0f}); explains {scaling.explained:.0%} of the variance of gold"
    )


def main() -> None:
    """Run every row for every seed and print the table."""
    given = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    variants = [v for v in VARIANTS if v.name in given.rows] if given.rows else list(VARIANTS)
    one_seed = partial(
        _one_seed,
        variants=variants,
        bias=given.bias,
        weight=given.weight,
        steps=given.steps,
        group_advantages=given.group_advantages,
    )
    with ProcessPoolExecutor(given.processes) as pool:
        by_seed = list(pool.map(one_seed, range(*given.seeds)))
    runs = {variant.name: [of_seed[variant.name] for of_seed in by_seed] for variant in variants}
    table = summary(runs, given.against)
    print(render_table(table, given.against))
    found = {name: value for name, value in vars(given).items() if name not in ("json", "processes")} | {"rows": table}
    if RAW.name in runs:
        start = fmean(float(run.gold_T[0]) for run in runs[RAW.name])
        scaling = scaling_of(runs[RAW.name], start)
        print(render_scaling(scaling))
        found |= {"start": start, "scaling": asdict(scaling) | {"peak_d": scaling.peak_d}}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(20, 26), metavar=("FIRST", "END"), help="END is not run")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rows", nargs="+", choices=[v.name for v in VARIANTS], metavar="ROW", help="default: all")
    parser.add_argument("--against", default=RAW.name, metavar="ROW", help="row that the others are compared with")
    parser.add_argument("--bias", choices=sorted(PLANTED), default="human", help="bias of the labels")
    parser.add_argument("--weight", type=float, default=WEIGHT, help="weight of an audited label")
    parser.add_argument(
        "--group-advantages",
        action="store_true",
        help="normalise advantages over the responses to a prompt, as GRPO does",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for the table as JSON")
    given = parser.parse_args()
    if given.rows and given.against not in given.rows:
        parser.error(f"--against {given.against!r} is not among --rows")
    return given


def _one_seed(
    seed: int, *, variants: Sequence[RewardVariant], bias: str, weight: float, steps: int, group_advantages: bool
) -> dict[str, GymRun]:
    base = base_policy()
    against = calibration_data(base, PLANTED[bias])
    data = SeedData(base, against, seed, PLANTED[bias], weight=weight)
    return runs_of(data, variants, steps, group_advantages=group_advantages)


if __name__ == "__main__":
    main()
