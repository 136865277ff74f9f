"""Training step: scores of a batch, one loss an item, reduced here and nowhere else. On `transformers.Trainer`.

Distributed training (DDP, FSDP, DeepSpeed) is handled by the Trainer through accelerate; there is no cluster code here.
Depends on batches and networks, not on text; writes no files but the step checkpoints. Shapes: P items, B rows, H
heads.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerControl, TrainingArguments, get_scheduler
from transformers.trainer_callback import PrinterCallback

from rewardserve.training.batches.packed_attention import packs
from rewardserve.training.batches.pair_batches import Batch, Collator, PairBatches, PairNumbers
from rewardserve.training.console import say
from rewardserve.training.dataset.feedback import kinds_of, noun
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.errors import NonFiniteLoss, Stopped
from rewardserve.training.loop.step_checkpoints import (
    WEIGHTS,
    EpochOrder,
    KeepBest,
    MarkComplete,
    SavedMoments,
    StepLogLines,
    StopAfterStep,
    WeightAverage,
)
from rewardserve.training.objective.feedback_loss import FeedbackLoss, fitted
from rewardserve.training.objective.regularisers import Regularisers
from rewardserve.training.objective.text_loss import text_loss
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.optim_config import OptimConfig
from rewardserve.training.settings.validation import ConfigError

_LOGGED = ("accuracy", "margin", "reward_chosen", "reward_rejected")

EvaluateHeldOut = Callable[[], dict[str, float]]


@dataclass
class LoggedMeans:
    """Sums since the last log line: each logged quantity times its pairs, and the number of pairs."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    n_pairs: int = 0

    def add(self, chosen_P: Tensor, rejected_P: Tensor) -> None:
        """Add one batch. Stays on the device, so that no synchronisation is needed."""
        won_P = (chosen_P > rejected_P).float() + 0.5 * (chosen_P == rejected_P).float()
        values = (won_P, chosen_P - rejected_P, chosen_P, rejected_P)
        for name, value_P in zip(_LOGGED, values, strict=True):
            self.sums[name] = self.sums.get(name, value_P.new_zeros(())) + value_P.detach().sum()
        self.n_pairs += len(chosen_P)

    def packed(self) -> Tensor | None:
        """Sums and count as one vector, for a sum over ranks; None before the first batch."""
        if not self.sums:
            return None
        sums = [self.sums[name].double() for name in _LOGGED]
        return torch.stack([*sums, sums[0].new_tensor(self.n_pairs)])


class RewardTrainer(Trainer):
    """`transformers.Trainer` for feedback. `evaluate_held_out` computes the held-out metrics at the steps of the recipe.

    `lm_head`: the output layer of the language model for `loss.sft`, whose collator reads tokens.
    """

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl
    # The loss is already divided by the weight of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        network: nn.Module,
        table: FeedbackTable,
        collator: Collator,
        config: Config,
        *,
        evaluate_held_out: EvaluateHeldOut | None,
        steps: Path,
        lm_head: nn.Linear | None = None,
    ) -> None:
        args = arguments(config, steps, evaluates=evaluate_held_out is not None)
        self.table, self.recipe, self.evaluate_held_out = table, config, evaluate_held_out
        kinds = kinds_of(table.items)
        self._loss = FeedbackLoss(fitted(config.loss, table.items), kinds)
        self._has_pairs, self._is_mixed = "pairs" in kinds, kinds != ("pairs",)
        self._watch = LoggedMeans()
        self._lm_head = lm_head
        # accelerate shards layer by layer where the model names its layers, and all weights at once where it does not.
        layers = getattr(getattr(network, "backbone", None), "_no_split_modules", None)
        network._no_split_modules = list(layers or ())
        super().__init__(
            model=network,
            args=args,
            data_collator=collator,
            train_dataset=PairNumbers(len(table)),
            eval_dataset=PairNumbers(0),
        )
        self.batches = PairBatches(table, config.optim, seed=config.seed, n_ranks=self.accelerator.num_processes)
        n_heads = network.heads.out_features // (2 if config.length_head.correlation else 1)
        self._regularisers = Regularisers(config, n_heads, self._sum_over_ranks)
        if self._regularisers.moments:
            self.add_callback(SavedMoments(self._regularisers.moments))
        self.add_callback(EpochOrder(self.batches))
        self._average: WeightAverage | None = None
        if config.optim.ema:
            self._average = WeightAverage(network, config.optim.ema)
            self.add_callback(self._average)
        # Wrappers of sharded training rename and flatten the parameters.
        self._learning = {name for name, p in network.named_parameters() if p.requires_grad}
        if config.eval.best_by and evaluate_held_out is not None:
            self.add_callback(KeepBest(config.eval, self._trained_state))
        if self.args.disable_tqdm:
            self.remove_callback(PrinterCallback)
            self.add_callback(StepLogLines())
        self.add_callback(MarkComplete(config.output.keep))

    # -- batches ------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Use `PairBatches`: `grouped` batches differ in size, which the stock sampler cannot express."""
        loader: DataLoader[Batch] = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )
        prepared: DataLoader[Batch] = self.accelerator.prepare(loader)
        return prepared

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """Weight of all items of this step: every micro-batch, every rank."""
        weight = torch.stack([b["weight"].sum() for b in batch_samples]).sum().to(device)
        total: Tensor = self.accelerator.gather(weight.reshape(1)).sum()
        return total

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Take no step after the last: the Trainer takes another when it resumes from the checkpoint of the last step."""
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    # -- loss ---------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward; checkpointed layers of a packed row run again in the backward, with its attention."""
        with packs(self.model) if "packed" in inputs else nullcontext():
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Weighted mean of the losses of the items over the whole step, plus a MoE's load-balancing loss."""
        packed = (inputs["packed"],) if "packed" in inputs else ()
        named = {"token_at_K": inputs["token_at"]} if "token_at" in inputs else {}
        out = model(inputs["input_ids"], inputs.get("attention_mask"), *packed, **named)
        loss_P = self._loss(self._regularisers.ranked(out.scores_BH), inputs)
        self._refuse_non_finite(loss_P, inputs)
        self._watch.add(*self._pair_scores(out.scores_BH.detach(), inputs))  # without length heads
        weight_P = inputs["weight"]
        total = weight_P.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (loss_P * weight_P).sum() / total
        loss = loss + self._regularisers.loss(out.scores_BH, inputs, total, self.model.heads.weight)
        if self._lm_head is not None:
            loss = loss + self.recipe.loss.sft * self._text_loss(self._lm_head, out.hidden_KD, inputs) / total
        if out.aux_loss is not None:
            loss = loss + out.aux_loss * weight_P.sum() / total
        # Ranks average their gradients; `total` is over all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def _text_loss(self, lm_head: nn.Linear, hidden_KD: Tensor, inputs: Batch) -> Tensor:
        weight_R = inputs["token_weight"]
        loss = text_loss(hidden_KD, lm_head, inputs["token"], inputs["token_row"], weight_R)
        self._regularisers.logged["sft"] = loss.detach() / weight_R.sum().clamp_min(1e-12)
        return loss

    def _pair_scores(self, scores_BH: Tensor, inputs: Batch) -> tuple[Tensor, Tensor]:
        """Scores of chosen and rejected of the pairs of a batch, which may have other items."""
        sides = [scores_BH[inputs[side], inputs["head"]] for side in ("chosen", "rejected")]
        if self._is_mixed:
            sides = [side[inputs["pairs"]] if self._has_pairs else side[:0] for side in sides]
        return sides[0], sides[1]

    def _refuse_non_finite(self, loss_P: Tensor, inputs: Batch) -> None:
        bad_P = ~torch.isfinite(loss_P.detach())
        if not bool(bad_P.any()):
            return
        rows = [self.table.items[int(n)].id for n in inputs["pair"][bad_P].tolist()]
        broken = [n for n, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
        cause = (
            f"weights are already not finite ({', '.join(broken[:3])}): the previous step corrupted them. "
            if broken
            else ""
        )
        raise NonFiniteLoss(
            f"step {self.state.global_step + 1}: the loss of {len(rows)} {noun(kinds_of(self.table.items))}s is not finite. {cause}"
            f"Rows: {', '.join(rows[:20])}. {self._remedy_for_overflow()}"
        )

    def _remedy_for_overflow(self) -> str:
        """Most likely cause under this recipe: float16 ends at 65,504; else the steps are too large."""
        if self.recipe.model.dtype == "float16":
            return "model.dtype is float16, which overflows: use bfloat16 or float32."
        if self.recipe.optim.precision == "fp16":
            return "optim.precision is fp16, which overflows: use bf16 or no."
        return "Lower optim.lr, or optim.head_lr."

    # -- optimizer ----------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create three groups: weights with decay, weights without (norms, biases), and the head with its learning rate."""
        if self.optimizer is None:
            module = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            self.optimizer = kind(self._groups(module), **options)
        return self.optimizer

    def _groups(self, module: nn.Module) -> list[dict[str, Any]]:
        decays = set(self.get_decay_parameter_names(module))
        learning = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        head = [p for n, p in learning if _is_head(n)]
        rest = [(n, p) for n, p in learning if not _is_head(n)]
        optim = self.recipe.optim
        groups = [
            {"params": [p for n, p in rest if n in decays], "weight_decay": optim.weight_decay},
            {"params": [p for n, p in rest if n not in decays], "weight_decay": 0.0},
            {"params": head, "weight_decay": optim.weight_decay, "lr": optim.head_lr or optim.lr},
        ]
        return [g for g in groups if g["params"]]

    # -- logs and evaluation ------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, margin and mean rewards since the last line, over all ranks."""
        packed = self._watch.packed() if "loss" in logs else None
        if packed is not None:
            *sums, n_pairs = self.accelerator.reduce(packed, reduction="sum").tolist()
            if n_pairs:
                logs = {**logs, **{name: s / n_pairs for name, s in zip(_LOGGED, sums, strict=True)}}
            logs |= {name: float(value) for name, value in self._regularisers.logged.items()}
            self._watch = LoggedMeans()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute the held-out metrics of the weights that would be exported.

        Every rank computes all of them, which is also right for sharded weights; those of the first count.
        """
        with self._average.applied() if self._average else nullcontext():
            found = self.evaluate_held_out() if self.evaluate_held_out else {}
            # Ranks that disagree in the last digit would disagree on the best step, and wait for each other for ever.
            metrics = {f"eval_{k}": v for k, v in broadcast_object_list([found])[0].items()}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def is_sharded(self) -> bool:
        """Whether no process has all weights: under FSDP or DeepSpeed."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def whole_state(self) -> dict[str, Tensor]:
        """All weights in one piece, on the first process; sharded ones are gathered, so all processes call it."""
        if not self.is_sharded:
            return dict(self.model.state_dict())
        return dict(self.accelerator.get_state_dict(self.model_wrapped))

    def _trained_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.whole_state().items() if name in self._learning}

    # -- step checkpoints ---------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save only trained weights: a LoRA run does not write its base model at every checkpoint."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict() if state_dict is None else state_dict
        save_file({n: t.contiguous() for n, t in state.items() if n in self._learning}, folder / WEIGHTS)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Print nothing: frozen weights are left out of a step checkpoint on purpose."""

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values, reduction="sum")
        return total


def check_optimizer(config: Config) -> None:
    """Take one step with the recipe's optimizer and schedule on a 2 x 2 matrix. Raise `ConfigError`.

    Some need a package, a device or arguments that are missing; without this check, that shows after hours of encoding.
    """
    if config.optim.epochs == 0:
        return
    args = arguments(config, Path(config.output.folder) / "steps", evaluates=False)
    probe = nn.Linear(2, 2)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, probe)
        optimizer = kind([{"params": list(probe.parameters())}], **options)
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        probe(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    except Exception as error:  # each of the libraries behind the names raises different errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"optim.optimizer {config.optim.optimizer!r} with optim.schedule {config.optim.schedule!r} cannot be used here: "
            f"{reason}"
        ) from error


def check_warmup(config: Config, table: FeedbackTable, n_ranks: int) -> None:
    """Raise `ConfigError` if the warm-up is as long as the run; print a note if rounding up a share makes it so."""
    optim, n = config.optim, n_steps(config, table, n_ranks)
    optim.refuse_long_warmup(n)
    if n and optim.warmup_steps(n) >= n:
        say(f"optim.warmup {optim.warmup:g} of {n} steps is all of them: the learning rate never reaches optim.lr")


def n_steps(config: Config, table: FeedbackTable, n_ranks: int) -> int:
    """Number of optimizer steps, counted as the Trainer does."""
    if config.optim.max_steps > 0:
        return config.optim.max_steps
    batches = len(PairBatches(table, config.optim, seed=config.seed, n_ranks=n_ranks)) // n_ranks
    return ceil(config.optim.epochs * ceil(batches / config.optim.accumulate))


@contextmanager
def stops_at_signals(trainer: RewardTrainer) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, finish the step, save it, and raise `Stopped`. A second signal ends at once.

    Several processes would receive the signal at different steps and wait for each other: there a signal ends at once.
    """
    if trainer.accelerator.num_processes > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = StopAfterStep()
    trainer.add_callback(stop)

    def on_signal(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        say("stopping after this step (again: at once)")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.requested:
        raise Stopped(f"stopped and saved at step {trainer.state.global_step} of {trainer.state.max_steps}")


def arguments(config: Config, steps: Path, *, evaluates: bool) -> TrainingArguments:
    """Convert the recipe to `transformers.TrainingArguments`."""
    try:
        args = _arguments(config, steps, evaluates=evaluates)
    except (ValueError, ImportError, RuntimeError) as error:
        # Unknown schedule, optimizer or precision; the library names it.
        raise ConfigError(f"optim: {' '.join(str(error).split())}") from error
    # Plain `python` on a machine of several GPUs would scatter rows that pairs share. Use accelerate launch.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _arguments(config: Config, steps: Path, *, evaluates: bool) -> TrainingArguments:
    optim, output = config.optim, config.output
    return TrainingArguments(
        output_dir=str(steps),
        per_device_train_batch_size=optim.batch_pairs,
        gradient_accumulation_steps=optim.accumulate,
        num_train_epochs=optim.epochs,
        max_steps=optim.max_steps,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        lr_scheduler_type=optim.schedule,
        warmup_steps=optim.warmup,
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_kwargs=_schedule_options(optim),
        optim=optim.optimizer,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.epsilon,
        bf16=optim.precision == "bf16",
        fp16=optim.precision == "fp16",
        seed=config.seed,
        logging_steps=output.log_steps,
        logging_first_step=True,
        # A NaN is never averaged away: `compute_loss` stops the run.
        logging_nan_inf_filter=False,
        save_steps=output.save_steps,
        eval_strategy="steps" if evaluates and config.eval.steps else "no",
        eval_steps=config.eval.steps or None,
        remove_unused_columns=False,
        accelerator_config={"even_batches": False},
        report_to=[],  # `reporting` adds the callbacks
        run_name=output.reported_name,
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=not torch.cuda.is_available(),
    )


def _schedule_options(optim: OptimConfig) -> dict[str, float]:
    """Last learning rate of the schedules that take one. transformers takes the absolute one as a share of `lr` in every group."""
    if not optim.ends_at_min_lr:
        return {}
    return {"min_lr": optim.min_lr} if optim.min_lr else {"min_lr_rate": optim.min_lr_rate}


def _is_head(name: str) -> bool:
    return "heads" in name.split(".")
