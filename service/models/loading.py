"""Load a model and measure it: numeric noise, canaries.

Runs on a separate thread, beside the model in service. Knows no event loop and no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rewardserve.model.backends import LoadedModel, LoadError, load
from rewardserve.model.backends.ensemble import ensemble
from rewardserve.model.reward import Pipeline, build_pipeline
from rewardserve.service.inference.numeric_noise import NumericNoise, numeric_noise, synthetic_rows
from rewardserve.service.models.audit_judge import LoadedJudge, load_own_judge
from rewardserve.service.settings import ModelSettings
from rewardserve.service.tripwires.io.canaries import SHIPPED, CanariesError, CanarySet
from rewardserve.service.tripwires.io.canaries import read as canary_pairs

_CANARY_STDS, _CANARY_NOISES = 0.01, 4.0


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A loaded model with its pipeline and measurements; no runtime yet. `audit`: the judge that lies beside it."""

    loaded: LoadedModel
    pipeline: Pipeline
    noise: NumericNoise | None = None
    canaries: CanarySet | None = None
    audit: LoadedJudge | None = None

    def close(self) -> None:
        """Free a model that gets no runtime."""
        self.loaded.scorer.close()
        if self.audit is not None:
            self.audit.loaded.scorer.close()


def prepare_model(settings: ModelSettings) -> PreparedModel:
    """Load a model and measure it. Raise `LoadError`, `PipelineError` or `CalibrationError`. May take minutes."""
    loaded, pipeline = load_model(settings)
    try:
        noise = measure_noise(settings, loaded)
        canaries = score_canaries(settings, loaded, noise)
        return PreparedModel(loaded, pipeline, noise, canaries, load_own_judge(settings))
    except BaseException:
        loaded.scorer.close()
        raise


def measure_noise(settings: ModelSettings, loaded: LoadedModel) -> NumericNoise | None:
    """Measure the numeric noise (`numeric_noise`) on the contract's probes, where it has some. Takes a few forwards, which warm the
    model up; a backend without weights has none.

    Raise `LoadError` where there is noise although the settings ask for determinism.
    """
    rows = [probe.ids for probe in loaded.contract.probes]
    if not rows and loaded.identity.n_parameters:
        rows = synthetic_rows(loaded.identity.max_tokens)
    noise = numeric_noise(loaded.scorer, loaded.identity, rows)
    if settings.deterministic and noise is not None and noise.max > 0.0:
        raise LoadError(
            f"REWARD_DETERMINISTIC=1, but a score depends on what else is in its batch, by up to {noise.max:.1e} "
            f"with the engine {loaded.identity.engine} in {loaded.identity.dtype} on {loaded.identity.device}. "
            f"Set another REWARD_ENGINE, or REWARD_DETERMINISTIC=0."
        )
    return noise


def load_model(settings: ModelSettings) -> tuple[LoadedModel, Pipeline]:
    """Load the model and build the pipeline for its scores. Raise `LoadError` or `PipelineError`. May take minutes."""
    named = settings.named_models()
    loaded = _load_ensemble(settings, named) if named else load(settings.backend, settings.model_spec())
    try:
        return loaded, build_pipeline(loaded.ensemble_members, settings.reward_settings())
    except BaseException:
        loaded.scorer.close()
        raise


def _load_ensemble(settings: ModelSettings, named: Mapping[str, str]) -> LoadedModel:
    """Load all members. Where one cannot be loaded, the others are closed."""
    members: list[tuple[str, LoadedModel]] = []
    try:
        for name, model in named.items():
            members.append((name, _load_member(settings, name, model)))
        return ensemble(members)
    except BaseException:
        for _, member in members:
            member.scorer.close()
        raise


def _load_member(settings: ModelSettings, name: str, model: str) -> LoadedModel:
    try:
        return load(settings.backend, settings.model_spec(model))
    except LoadError as error:
        raise LoadError(f"REWARD_ENSEMBLE: {name}={model} cannot be served: {error}") from error


def score_canaries(settings: ModelSettings, loaded: LoadedModel, noise: NumericNoise | None) -> CanarySet:
    """Score the canaries for the first time. Raise `LoadError`. Takes a forward; a backend without weights has no canaries.

    A score may change by a hundredth of a standard deviation, or by a few times the noise, which is larger in half precision.
    """
    try:
        known = canary_pairs(settings.tripwires.canaries_file or SHIPPED)
    except CanariesError as error:  # the file has changed since the server started
        raise LoadError(f"REWARD_TRIPWIRES__CANARIES_FILE={settings.tripwires.canaries_file} {error}") from None
    std = loaded.calibration.std if loaded.calibration else 1.0
    allowed = max(_CANARY_STDS * std, _CANARY_NOISES * noise.max if noise else 0.0)
    canaries = CanarySet(known if loaded.identity.n_parameters else [], loaded.encode, loaded.identity, allowed)
    canaries.score_first(loaded.scorer)
    return canaries
