"""The language-model loss on preferred responses, against the loss of transformers' own language model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rewardserve.model.checkpoint import CheckpointError, read_backbone
from rewardserve.model.checkpoint.lm_head import read_lm_head
from rewardserve.model.network import RewardNetwork
from rewardserve.training.batches.packed_attention import packs
from rewardserve.training.batches.pair_batches import Collator, packed_rows, token_rows
from rewardserve.training.loop.trainer import RewardTrainer
from rewardserve.training.objective import text_loss as module
from rewardserve.training.objective.text_loss import text_loss
from tests.support import planted_pairs as world
from tests.support.tiny import randomize, tiny_config
from tests.unit.training.batches.test_batches import outputs_of, table_of
from tests.unit.training.batches.test_packed_rows import PAD, PAIRS, ROWS, VOCAB
from tests.unit.training.loop.test_trainer import config, with_pairs

N_RESPONSE = (3, 32, 34, 7, 3, 45)  # of the rows; the fifth and the sixth have no prompt
WEIGHT = [1.0, 2.0, 1.0, 0.5, 1.0, 3.0, 1.0]
TIE = [False, False, True, False, False, False, False]


def language_model(architecture="llama", **overrides):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, VOCAB, **overrides))
    randomize(model)
    return model


def network_of(model):
    torch.manual_seed(1)
    return RewardNetwork.create(model.model)


def table():
    made = with_pairs(table_of(PAIRS, n=len(ROWS)), weight=WEIGHT, tie=TIE)
    sequences = zip(made.sequences, ROWS, N_RESPONSE, strict=True)
    return replace(made, sequences=tuple(replace(s, ids=ids, n_response=n) for s, ids, n in sequences))


def rows_of(kind):
    made = table()
    return {"padded": token_rows(made, PAD), "packed": packed_rows(made, shares_prefixes=True)}[kind]


def expected_loss(model):
    """By the labels of transformers: -100 before the response; the mean over its tokens, one row at a time."""
    total = 0.0
    for (chosen, _), weight, tie in zip(PAIRS, WEIGHT, TIE, strict=True):
        if not tie:
            ids = torch.tensor([ROWS[chosen]])
            labels = ids.clone()
            labels[0, : len(ROWS[chosen]) - N_RESPONSE[chosen]] = -100
            total = total + weight * model(input_ids=ids, labels=labels).loss
    return total


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_loss_and_gradients_are_those_of_the_language_model(kind, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    model = language_model()
    expected = expected_loss(model)
    expected.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    network, made = network_of(model), table()
    batch = Collator(made, outputs_of(made), rows_of(kind), reads_tokens=True)(range(len(PAIRS)))
    with packs(network) if kind == "packed" else torch.enable_grad():
        out = network(batch["input_ids"], batch.get("attention_mask"), batch.get("packed"), batch["token_at"])
    loss = text_loss(out.hidden_KD, model.lm_head, batch["token"], batch["token_row"], batch["token_weight"])
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, p in model.named_parameters():
        assert (p.grad - wanted[name]).abs().max() < 1e-5 * largest, name


def test_a_text_that_wins_two_pairs_is_read_once_with_both_weights():
    made = table()
    batch = Collator(made, outputs_of(made), rows_of("padded"), reads_tokens=True)([1, 5, 2])  # the last is a tie
    assert batch["token_weight"].tolist() == [WEIGHT[1] + WEIGHT[5]]


def test_a_batch_of_ties_has_no_language_model_loss():
    made = table()
    batch = Collator(made, outputs_of(made), rows_of("padded"), reads_tokens=True)([2])
    head = torch.nn.Linear(8, VOCAB)
    loss = text_loss(torch.zeros(0, 8), head, batch["token"], batch["token_row"], batch["token_weight"])
    assert loss.item() == 0.0


def test_a_step_with_packed_rows_moves_the_weights_as_one_with_padded_rows(tmp_path):
    after = {}
    for name, kind, weight in (("packed", "packed", 0.5), ("padded", "padded", 0.5), ("without", "padded", 0.0)):
        network, made = network_of(language_model(tie_word_embeddings=True)), table()
        head = torch.nn.Linear(1, 1, bias=False, device="meta")
        head.weight = network.backbone.get_input_embeddings().weight
        collator = Collator(made, outputs_of(made), rows_of(kind), reads_tokens=weight > 0)
        cfg = config("optim.optimizer=sgd", "optim.lr=0.1", f"loss.sft={weight}")
        trainer = RewardTrainer(
            network,
            made,
            collator,
            cfg,
            evaluate_held_out=None,
            steps=tmp_path / name,
            lm_head=head if weight else None,
        )
        trainer.args.save_strategy = "no"
        trainer.train()
        after[name] = {n: p.detach().clone() for n, p in network.named_parameters()}
    for name, p in after["packed"].items():
        assert torch.allclose(p, after["padded"][name], atol=2e-6), name
    moved = "backbone.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(after["padded"][moved], after["without"][moved], atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_that_of_the_language_model(tmp_path, tied):
    folder = world.language_model(tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(folder)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(folder)
    start = read_backbone(str(folder))
    head = read_lm_head(start)
    assert torch.equal(head.weight, model.lm_head.weight)
    assert (head.weight is start.network.backbone.get_input_embeddings().weight) == tied
    assert head.weight.requires_grad == tied


def test_capped_logits_are_refused(tmp_path):
    folder = world.language_model(tmp_path / "llama")
    start = read_backbone(str(folder))
    capped = language_model("gemma2", final_logit_softcapping=0.5)
    start.network.backbone = capped.model
    with pytest.raises(CheckpointError, match="otherwise"):
        read_lm_head(start)


def test_a_checkpoint_without_an_output_layer_is_refused(tmp_path):
    folder = world.language_model(tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.model.config.tie_word_embeddings = False
    model.model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        read_lm_head(read_backbone(str(folder)))
