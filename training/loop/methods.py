"""Training methods: the whole network, low-rank adapters with the head, or the head on cached features.

Shapes: N sequences, B rows, D width, H heads, P pairs.
"""

from __future__ import annotations

import copy
import re
import warnings
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rewardserve.model.network import NetworkOutput, RewardNetwork
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.settings.model_config import MethodConfig
from rewardserve.training.settings.validation import ConfigError

_LINEAR = (nn.Linear, Conv1D)
"""Modules selected by `all-linear`: the linear layers of GPT-2 are `Conv1D`."""
_ADAPTABLE = (*_LINEAR, nn.Embedding)
"""Modules that support an adapter here."""


_ALL_LINEAR = ("all-linear",)
_LAYER_NUMBER = re.compile(r"\.\d+\.")


class CachedNetwork(nn.Module):
    """Heads of a network over cached hidden states. A row of `input_ids` is the number of a sequence."""

    def __init__(self, network: RewardNetwork, hidden_ND: Tensor) -> None:
        super().__init__()
        self.heads = network.heads
        self.register_buffer("hidden_ND", hidden_ND, persistent=False)

    def forward(self, numbers_B1: Tensor, mask_B1: Tensor | None = None) -> NetworkOutput:
        """Values of the heads, as the network would compute them."""
        last_BD = self.hidden_ND[numbers_B1[:, 0]]
        with torch.autocast(last_BD.device.type, enabled=False):
            return NetworkOutput(self.heads(last_BD), last_BD, None)


def adapt(network: RewardNetwork, config: MethodConfig) -> None:
    """Wrap the backbone in low-rank adapters, in place; adapters and head are trained, the backbone is frozen."""
    import peft

    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(network.backbone, config),
        bias="none",
    )
    with warnings.catch_warnings():
        # peft uses a name that transformers has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # Its reaction to the warning is right for a Conv1D.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        try:
            network.backbone = peft.get_peft_model(network.backbone, lora)
        except ValueError as error:  # layers that peft knows to be wrong for an adapter, as of Mamba
            raise ConfigError(f"method.targets: {' '.join(str(error).split())}") from error
    network.heads.requires_grad_(True)


def check_quantization(config: MethodConfig) -> None:
    """Raise `ConfigError` before the model is loaded where 4-bit weights cannot be trained on."""
    if config.quantize is None:
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"method.quantize is {config.quantize!r}, which needs an NVIDIA GPU, and torch finds none here. Leave it "
            "out; model.dtype: bfloat16 halves the memory of the frozen weights."
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"method.quantize is {config.quantize!r}, which needs bitsandbytes, and this Python lacks it: "
            "pip install 'rewardserve[qlora]'."
        )


def quantize(backbone: nn.Module, kind: str) -> None:
    """Replace the linear layers of the base model by 4-bit ones, in place, before adapters are added."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = [(name, module) for name, module in backbone.named_modules() if type(module) is nn.Linear]
    for name, module in linear:
        weight, has_bias = module.weight, module.bias is not None
        new = Linear4bit(
            module.in_features,
            module.out_features,
            bias=has_bias,
            compute_dtype=weight.dtype,
            quant_type=kind,
            device="meta",
        )
        new.weight = Params4bit(weight.data, requires_grad=False, quant_type=kind).to(weight.device)
        new.bias = module.bias
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, new)
    backbone.is_loaded_in_4bit = True  # peft chooses its layers by it


def disable_dropout(backbone: nn.Module) -> tuple[str, ...]:
    """Set every dropout of the base model to 0, in place, and describe it; empty without dropout.

    transformers has dropout as modules, as numbers of attention layers, and (Falcon, GPT-J) as numbers of the configuration that
    layers read in each forward: those get a copy, so that the exported configuration keeps its numbers.
    """
    modules, configured = [m for m in backbone.modules() if m is not backbone], getattr(backbone, "config", None)
    quiet = copy.deepcopy(configured)
    places = [
        *((m, "p" if isinstance(m, nn.modules.dropout._DropoutNd) else "drop") for m in modules),
        (backbone, "drop"),
    ]
    found = [_zeroed(module, kind) for module, kind in places]
    if quiet is not None and _zeroed(quiet, "drop"):
        for module in modules:
            if getattr(module, "config", None) is configured:
                module.config = quiet
    values = [value for each in found for value in each]
    if not values:
        return ()
    return (
        f"dropout of the base model ({len(values)} places, up to {max(values):g}) is off in training; optim.dropout: true keeps it",
    )


def _zeroed(thing: Any, kind: str) -> list[float]:
    """Set the numbers of an object whose names contain `kind` to 0. Return those that were not."""
    before = {n: v for n, v in vars(thing).items() if kind in n and isinstance(v, float) and v > 0}
    for name in before:
        setattr(thing, name, 0.0)
    return list(before.values())


def check_targets(network: RewardNetwork, config: MethodConfig) -> None:
    """Raise `ConfigError` if no module has the name of a target, a target supports no adapter, or a layer does not exist."""
    if config.name != "lora":
        return
    modules = dict(network.backbone.named_modules())
    targets = _targets(network.backbone, config)
    linear = ", ".join(sorted({n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, _LINEAR)})) or "none"
    missing = [target for target in targets if not any(_is_called(name, target) for name in modules)]
    if missing or not targets:
        raise ConfigError(
            f"method.targets: no module is called {', '.join(missing or config.targets)}; linear ones are {linear}"
        )
    for name, module in modules.items():
        if any(_is_called(name, target) for target in targets) and not isinstance(module, _ADAPTABLE):
            raise ConfigError(
                f"method.targets: {name} is a {type(module).__name__}, which supports no adapter; linear ones are {linear}"
            )


def not_adapted(network: RewardNetwork, config: MethodConfig) -> tuple[str, ...]:
    """Note matrices that `all-linear` leaves without an adapter, such as experts in one packed parameter.

    Embeddings are lookups, not multiplications, so they do not count as matrices.
    """
    if config.name != "lora" or config.targets != _ALL_LINEAR:
        return ()
    left: dict[str, int] = {}
    n_all = 0
    for name, module in network.backbone.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            n_all += parameter.numel()
            if parameter.ndim > 1 and not isinstance(module, _ADAPTABLE) and _is_in(name, config):
                called = _LAYER_NUMBER.sub(".*.", f"{name}.{own}")
                left[called] = left.get(called, 0) + parameter.numel()
    if not left:
        return ()
    return (
        f"method.targets: all-linear leaves {100 * sum(left.values()) / n_all:.0f} % of the base model's parameters without an "
        f"adapter, since they are in no linear layer (packed experts, for instance): {', '.join(sorted(left))}. They stay "
        "frozen; method.name: full trains them.",
    )


def _is_in(name: str, config: MethodConfig) -> bool:
    return not config.layers or _layer_of(name) in config.layers


def _is_called(name: str, target: str) -> bool:
    """Match a name as peft matches a list of targets."""
    return name == target or name.endswith(f".{target}")


def _targets(backbone: nn.Module, config: MethodConfig) -> list[str]:
    """Modules that get an adapter, by their last name, or in full if only some layers do.

    peft's `layers_to_transform` looks for a name in front of `layers`, which a bare backbone does not have.
    """
    linear = [n for n, m in backbone.named_modules() if isinstance(m, _LINEAR)]
    wanted = {n.rpartition(".")[2] for n in linear} if config.targets == _ALL_LINEAR else set(config.targets)
    if not config.layers:
        return sorted(wanted)
    chosen = [n for n in linear if n.rpartition(".")[2] in wanted and _layer_of(n) in config.layers]
    missing = sorted(set(config.layers) - {_layer_of(n) for n in linear})
    if missing:
        raise ConfigError(
            f"method.layers {list(config.layers)} with targets {sorted(wanted)}: layers {missing} do not exist"
        )
    if not chosen:
        raise ConfigError(
            f"method.layers {list(config.layers)}: none of them has a linear module called {', '.join(sorted(wanted))}"
        )
    return chosen


def _layer_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def merge(network: RewardNetwork) -> None:
    """Merge the adapters into the backbone, in place and in float32. Does nothing without adapters.

    In half precision most of the update would be rounded away: it is small compared with the weights.
    """
    import peft

    if isinstance(network.backbone, peft.PeftModel):
        if any(p.dtype != torch.float32 for p in network.backbone.parameters()):
            # On the CPU: merging needs twice the memory, which a GPU may not have.
            network.backbone = network.backbone.cpu().float()
        network.backbone = network.backbone.merge_and_unload()


def fit_logistic(hidden_ND: Tensor, table: FeedbackTable, head: str, *, l2: float) -> Tensor:
    """Weights `(D,)` that minimise `mean(weight * softplus(-(h_c - h_r) @ w)) + l2/2 |w * scale|^2`.

    Other kinds of feedback are fitted by the pairs in them, ties left out. Convex with one solution: LBFGS in float64 from
    zero. `scale` is the standard deviation of each feature's difference: the penalty does not depend on the unit of a feature.
    """
    table = comparisons(table)
    numbers = [i for i, pair in enumerate(table.items) if pair.head == head]
    if not numbers:
        raise ConfigError(f"head {head!r} has no training pair, and model.head_init: logistic needs some")
    chosen, rejected = ([side[i] for i in numbers] for side in (table.chosen, table.rejected))
    diff_PD = (hidden_ND[chosen] - hidden_ND[rejected]).double()
    scale_D = diff_PD.square().mean(0).sqrt().clamp_min(1e-12)
    weight_P = diff_PD.new_tensor([table.items[i].weight for i in numbers])
    return _logistic(diff_PD / scale_D, weight_P / weight_P.sum(), l2).div(scale_D).float()


def _logistic(x_PD: Tensor, weight_P: Tensor, l2: float) -> Tensor:
    w_D = x_PD.new_zeros(x_PD.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([w_D], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = (weight_P * F.softplus(-(x_PD @ w_D))).sum() + l2 / 2 * w_D.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return w_D.detach()
