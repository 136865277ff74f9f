"""The output layer of a language model, which training keeps beside the value heads where its loss reads tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rewardserve.model.checkpoint import weights
from rewardserve.model.checkpoint.record import Checkpoint, CheckpointError
from rewardserve.model.network import RewardNetwork

_N_IDS = 6
_ROUNDING, _ROUNDING_HALF = 1e-4, 0.05
"""Largest difference between logits of the layer and of transformers' language model, relative to the largest logit."""


def read_lm_head(checkpoint: Checkpoint) -> nn.Linear:
    """Output layer over the hidden states of the backbone, not trained by itself. Raise `CheckpointError` where there is none.

    Where it is tied to the embeddings it has their parameter, which full training changes. Call it before adapters are added.
    """
    from transformers import AutoModelForCausalLM

    backbone, folder = checkpoint.network.backbone, checkpoint.folder
    embeddings = backbone.get_input_embeddings()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(backbone.config)
        outline = model.get_output_embeddings()
        (name,) = [name for name, module in model.named_modules() if module is outline]
    except Exception as error:  # an architecture without a language model, or whose output layer is something else
        raise CheckpointError(f"{type(backbone).__name__} has no language model with one output layer") from error
    head = nn.Linear(outline.in_features, outline.out_features, bias=outline.bias is not None, device="meta")
    files = weights.weight_files(folder)
    found = weights.find_tensors(files, [f"{name}.weight", f"{name}.bias"])
    if backbone.config.get_text_config().tie_word_embeddings:
        head.weight = embeddings.weight
    elif f"{name}.weight" in found:
        head.weight = _frozen(found[f"{name}.weight"], embeddings.weight)
    else:
        raise CheckpointError(f"{folder} has no {name}.weight, the output layer of its language model")
    if head.bias is not None:
        head.bias = _frozen(found[f"{name}.bias"], embeddings.weight)
    setattr(model, model.base_model_prefix, backbone)
    model.set_output_embeddings(head)
    _refuse_other_logits(checkpoint.network, model, head)
    return head


def _frozen(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.to(like), requires_grad=False)


@torch.no_grad()
def _refuse_other_logits(network: RewardNetwork, model: nn.Module, head: nn.Linear) -> None:
    """Raise `CheckpointError` where the language model scales or caps its logits, or has another path to them."""
    was_training = network.training
    network.eval()
    ids_BT = torch.arange(1, 1 + _N_IDS, device=network.device)[None]
    wanted = model.eval()(input_ids=ids_BT, use_cache=False).logits.float()
    hidden_BTD, _ = network.hidden(ids_BT, None)
    found = head(hidden_BTD).float()
    network.train(was_training)
    allowed = _ROUNDING if head.weight.dtype == torch.float32 else _ROUNDING_HALF
    if not float((found - wanted).abs().max()) <= allowed * float(wanted.abs().max()):
        raise CheckpointError(
            f"{type(model).__name__} computes its logits otherwise than by its output layer alone, such as scaled or capped"
        )
