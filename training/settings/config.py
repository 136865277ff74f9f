"""All settings of a training run as one frozen record, and the rules between its sections.

Independent of file formats and torch: `recipe` reads YAML and `--set`, the other modules receive their section.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from rewardserve.training.settings.data_config import AugmentConfig, CounterexamplesConfig, DataConfig, SourceConfig
from rewardserve.training.settings.loss_config import (
    ConsistencyConfig,
    IndifferenceConfig,
    LengthHeadConfig,
    LossConfig,
)
from rewardserve.training.settings.model_config import EncodingConfig, MethodConfig, ModelConfig
from rewardserve.training.settings.optim_config import OptimConfig, StageConfig
from rewardserve.training.settings.output_config import EvalConfig, ExportConfig, OutputConfig
from rewardserve.training.settings.validation import ConfigError, require, require_ranges, shown


@dataclass(frozen=True, slots=True)
class AuditJudgeConfig:
    """The audit judge that is trained beside the model, by the same method.

    It has other pairs than the model, another depth, another seed, and pairs whose lengths are balanced.
    """

    n_layers: int | None = None
    """Number of first layers of the backbone; null: two thirds of those of the model."""
    sources: tuple[SourceConfig, ...] = ()
    """Sources of its pairs, best from other labellers; empty: those that are held out from the model."""
    heads: tuple[str, ...] = ()
    """Heads of the model that the judge has, with the sources that train them; empty: all. Left out with `sources`."""
    balance_length: bool = True
    """`data.balance_length` of the judge's pairs; other feedback keeps its weights."""
    loss: LossConfig | None = None
    """Loss of the judge, where it learns from other kinds of feedback; null: that of the model."""
    counterexamples: CounterexamplesConfig | None = None
    """Labelled queue that the judge alone learns from, best one that another judge has mined; null: none."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming field and value."""
        require_ranges("audit_judge", self)
        require(
            not (self.heads and self.sources),
            "audit_judge.heads",
            self.heads,
            "left out with sources, which name heads",
        )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one run."""

    model: ModelConfig
    data: DataConfig
    output: OutputConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    indifference: IndifferenceConfig = field(default_factory=IndifferenceConfig)
    length_head: LengthHeadConfig = field(default_factory=LengthHeadConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    stages: tuple[StageConfig, ...] = ()
    """Stages of the training, such as ratings before pairs; empty: one, over all kinds of feedback."""
    audit_judge: AuditJudgeConfig | None = None
    """The audit judge that is trained before the model; null: none. It learns from no counterexamples of the model."""
    counterexamples: CounterexamplesConfig | None = None
    """Labelled pairs of an audit queue; null: none."""
    seed: int = 0
    """Seed of fresh heads, of the order of batches and of dropout."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` where two sections contradict each other."""
        require_ranges("", self)
        for stage in self.stages:
            replace(
                self, stages=(), loss=stage.loss, optim=stage.optim
            )  # raises for a stage that contradicts the recipe
        for idle in _UNUSED:
            idle.refuse(self)
        for source in (*self.data.sources, *self.data.eval_sources):
            missing = next((head for head in source.trained_heads if head not in self.model.heads), None)
            if missing is not None:
                raise ConfigError(
                    f"source {source.path!r} trains head {missing!r}; model.heads are {list(self.model.heads)}. Add it there, "
                    "or give the source one of these."
                )
        if not set(self.augment.heads) <= set(self.model.heads):
            raise ConfigError(f"augment.heads is {list(self.augment.heads)}; model.heads are {list(self.model.heads)}.")
        extra = self.counterexamples
        if extra is not None and extra.head and extra.head not in self.model.heads:
            raise ConfigError(
                f"counterexamples.head is {extra.head!r}; model.heads are {list(self.model.heads)}. Name one of these."
            )
        if extra is not None and extra.both_bad == "labels" and self.optim.epochs == 0:
            raise ConfigError(
                "counterexamples.both_bad: labels has no effect with optim.epochs: 0: the convex solution compares responses, and "
                "two bad ones do not differ. Take steps, or leave it out."
            )
        if self.encoding.chat_template is not None and self.model.start == "reward":
            raise ConfigError(
                "encoding.chat_template with model.start: reward: the scores of a reward model belong to the template that it was "
                "trained with; leave it out"
            )
        repeated = next((source for source in self.data.sources if source.repeat != 1), None)
        if repeated is not None and (self.optim.batching == "grouped" or self.optim.epochs == 0):
            why = "optim.epochs: 0" if self.optim.epochs == 0 else "optim.batching: grouped, which has each item once"
            raise ConfigError(
                f"source {repeated.path!r} has repeat {repeated.repeat:g}, which has no effect with {why}; leave it out"
            )
        if self.optim.epochs == 0 and self.model.head_init == "random":
            raise ConfigError(
                "optim.epochs is 0 and model.head_init is 'random': no weight would be trained. Set model.head_init: "
                "logistic with a backbone; for a reward model, use `rewardserve calibrate`, which takes no steps."
            )
        if self.method.name == "full" and self.model.dtype != "float32" and self.optim.epochs > 0:
            raise ConfigError(
                f"model.dtype is {self.model.dtype} with method.name: full: an update that is smaller than the last digit of a "
                "weight is lost, so most weights would never change. Set model.dtype: float32 (optim.precision: bf16 computes "
                "the forward in half precision), or method.name: lora, whose adapters are float32."
            )
        self._refuse_memory()
        if self.audit_judge is not None and not set(self.audit_judge.heads) <= set(self.model.heads):
            raise ConfigError(
                f"audit_judge.heads is {list(self.audit_judge.heads)}; the heads of the model are {list(self.model.heads)}."
            )
        if self.audit_judge is not None and self.model.start == "reward":
            raise ConfigError(
                "audit_judge with model.start: reward: a judge has fewer layers than the model, so its heads are fresh. Train it "
                "in a separate run, from a backbone, and serve it with REWARD_AUDIT_MODEL."
            )
        self._refuse_idle_regularisers()
        if self.method.name == "frozen" and self.optim.gradient_checkpointing:
            raise ConfigError("optim.gradient_checkpointing has no effect with method.name: frozen; leave it out")

    def _refuse_memory(self) -> None:
        """Raise `ConfigError` for settings that hold something of every training item in memory, with `data.on_disk`."""
        holds = {
            "method.name: frozen (its features)": self.method.name == "frozen",
            "model.head_init: logistic (its features)": self.model.head_init == "logistic",
            "model.members": self.model.members > 1,
            "augment": self.augment.is_on,
            "data.balance_length": self.data.balance_length is not False,
            "indifference": bool(self.indifference.variables),
            "length_head": bool(self.length_head.correlation),
            "consistency": bool(self.consistency.weight),
            "audit_judge": self.audit_judge is not None,
        }
        found = [name for name, is_set in holds.items() if is_set]
        if self.data.on_disk and found:
            raise ConfigError(
                f"data.on_disk with {found[0]}: this setting holds data of every item in memory. Leave one of them out."
            )

    def _refuse_idle_regularisers(self) -> None:
        """Raise `ConfigError` for terms of the loss that another one has already, and for paraphrases that no term reads."""
        if self.length_head.correlation and self.indifference.length:
            raise ConfigError(
                "indifference.length has the term of length_head.correlation on the quality head again; leave one of them out"
            )
        for source in self.data.eval_sources:
            if source.paraphrase_key is not None:
                raise ConfigError(
                    f"data.eval_sources ({source.path!r}) has a paraphrase_key: held-out pairs train nothing; leave it out"
                )
        named = next((source for source in self.data.sources if source.paraphrase_key is not None), None)
        if named is not None and not self.consistency.weight:
            raise ConfigError(
                f"data.sources ({named.path!r}) has paraphrase_key {named.paraphrase_key!r}, which has no effect with "
                "consistency.weight: 0; set a weight, or leave it out"
            )
        if self.consistency.weight and not self.consistency.transforms and named is None:
            raise ConfigError(
                "consistency.transforms is [] and no source has a paraphrase_key: no response would have a twin"
            )

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables of responses that the loss reads, length first where there is a length head."""
        length = ("length",) if self.length_head.correlation else ()
        return (*length, *self.indifference.variables)


@dataclass(frozen=True, slots=True)
class _UnusedSettings:
    """Settings without effect in some recipes, where any value but the default is a mistake."""

    settings: tuple[str, ...]
    where: Callable[[Config], bool]
    condition: str

    def refuse(self, config: Config) -> None:
        """Raise `ConfigError` if one of the settings is set without effect."""
        for name in self.settings:
            section, _, setting = name.partition(".")
            record = getattr(config, section)
            value, default = getattr(record, setting), type(record).__dataclass_fields__[setting].default
            if value != default and self.where(config):
                raise ConfigError(f"{name} is {shown(value)}, which has no effect with {self.condition}; leave it out")


_STEPS_ONLY = (
    "eval.best_by",
    "eval.patience",
    *(f"loss.{f.name}" for f in fields(LossConfig)),
    *(f"optim.{f.name}" for f in fields(OptimConfig) if f.name not in ("epochs", "max_steps")),
)

_REGULARISERS = (
    "indifference.length",
    "indifference.markup",
    "indifference.script",
    "length_head.correlation",
    "consistency.weight",
)

_UNUSED = (
    _UnusedSettings(("augment.weight", "augment.heads"), lambda c: not c.augment.is_on, "no rate of a kind in augment"),
    _UnusedSettings(
        (*_STEPS_ONLY, *_REGULARISERS), lambda c: c.optim.epochs == 0, "optim.epochs: 0, which takes no step"
    ),
    _UnusedSettings(
        ("method.rank", "method.alpha", "method.dropout", "method.targets", "method.layers", "method.quantize"),
        lambda c: c.method.name != "lora",
        "method.name other than lora",
    ),
    _UnusedSettings(
        ("model.n_layers",), lambda c: c.model.start == "reward", "model.start: reward, which is read whole"
    ),
    _UnusedSettings(
        ("loss.sft",), lambda c: c.method.name == "frozen", "method.name: frozen, whose hidden states do not change"
    ),
    _UnusedSettings(("model.member_data",), lambda c: c.model.members == 1, "model.members: 1"),
    _UnusedSettings(("model.head_l2",), lambda c: c.model.head_init == "random", "model.head_init: random"),
    _UnusedSettings(
        ("optim.warmup",),
        lambda c: c.optim.schedule == "constant",
        "optim.schedule: constant (constant_with_warmup has one)",
    ),
    _UnusedSettings(
        ("optim.min_lr", "optim.min_lr_rate"),
        lambda c: not c.optim.ends_at_min_lr,
        "an optim.schedule other than cosine_with_min_lr and cosine_warmup_with_min_lr",
    ),
    _UnusedSettings(
        ("optim.betas", "optim.epsilon"),
        lambda c: "adam" not in c.optim.optimizer,
        "an optim.optimizer that is no Adam",
    ),
    _UnusedSettings(
        ("optim.dropout",), lambda c: c.method.name == "frozen", "method.name: frozen, whose features are cached"
    ),
    _UnusedSettings(
        ("optim.batch_pairs",),
        lambda c: c.optim.batching == "grouped",
        "optim.batching: grouped (set optim.batch_sequences)",
    ),
    _UnusedSettings(
        ("optim.batch_sequences",),
        lambda c: c.optim.batching == "shuffled",
        "optim.batching: shuffled (set optim.batch_pairs)",
    ),
    _UnusedSettings(
        ("indifference.between", "indifference.memory"),
        lambda c: not c.indifference.variables,
        "no coefficient in indifference",
    ),
    _UnusedSettings(
        ("length_head.orthogonality", "length_head.memory"),
        lambda c: not c.length_head.correlation,
        "length_head.correlation: 0, which adds no length head",
    ),
    _UnusedSettings(
        ("consistency.transforms", "consistency.twins"), lambda c: not c.consistency.weight, "consistency.weight: 0"
    ),
    _UnusedSettings(("consistency.twins",), lambda c: not c.consistency.transforms, "consistency.transforms: []"),
    _UnusedSettings(
        ("optim.precision",), lambda c: c.method.name == "frozen", "method.name: frozen, whose heads learn in float32"
    ),
)
