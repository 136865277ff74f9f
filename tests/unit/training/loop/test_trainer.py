"""The step: what is summed, what is divided by, what learns, and what stops the run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from rewardserve.model.network import NetworkOutput, RewardNetwork
from rewardserve.training.batches import scoring
from rewardserve.training.batches.pair_batches import Collator, PairBatches, cached_rows, token_rows
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.errors import NonFiniteLoss
from rewardserve.training.loop.methods import CachedNetwork, adapt, check_targets, disable_dropout, fit_logistic, merge
from rewardserve.training.loop.step_checkpoints import EpochOrder, WeightAverage, damaged, last_complete, load_weights
from rewardserve.training.loop.trainer import RewardTrainer, check_optimizer, check_warmup, n_steps
from rewardserve.training.objective.losses import logsigmoid, pair_loss
from rewardserve.training.settings import recipe
from rewardserve.training.settings.loss_config import LossConfig
from rewardserve.training.settings.validation import ConfigError
from tests.unit.training.batches.test_batches import outputs_of, table_of

COMPARISONS = [(0, 1), (2, 1), (3, 0), (4, 5), (1, 5), (2, 4), (3, 5)]


def config(*overrides, folder="unused"):
    base = {"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "output": {"folder": folder, "log_steps": 1}}
    return recipe.parse(base, ["optim.batch_pairs=7", "optim.max_steps=1", "optim.schedule=constant", *overrides])


class Linear(torch.nn.Module):
    """A network whose score of a row is `heads(features[number])`: everything about it can be written by hand."""

    def __init__(self, n=6, width=3, heads=1, aux=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("features", torch.randn(n, width, generator=generator))
        self.heads = torch.nn.Linear(width, heads, bias=False)
        self.heads.weight.data = torch.randn(heads, width, generator=generator)
        self.trunk = torch.nn.Linear(width, width)
        self.trunk.weight.data = torch.randn(width, width, generator=generator)
        self.trunk.bias.data.zero_()
        self.aux = aux

    def forward(self, ids, mask):
        last = self.features[ids[:, 0]] + self.trunk(self.features[ids[:, 0]]) * 0.1
        aux = None if self.aux is None else self.aux * self.trunk.weight.sum()
        return NetworkOutput(self.heads(last), last, aux)


def with_pairs(table, **values):
    from dataclasses import replace

    changed = tuple(replace(p, **{k: v[i] for k, v in values.items()}) for i, p in enumerate(table.pairs))
    return FeedbackTable.of_pairs(changed, table.sequences, table.chosen, table.rejected, {})


def trainer_of(network, table, cfg, tmp_path, heads=("score",), evaluate_held_out=None):
    return RewardTrainer(
        network,
        table,
        Collator(table, outputs_of(table, heads), cached_rows),
        cfg,
        evaluate_held_out=evaluate_held_out,
        steps=tmp_path / "steps",
    )


def weights(network):
    return {n: p.detach().clone() for n, p in network.named_parameters()}


@pytest.mark.parametrize(("pairs", "accumulate"), [(7, 1), (1, 7), (3, 3), (2, 4)])
def test_one_step_is_the_same_however_the_batch_is_cut(pairs, accumulate, tmp_path):
    """7 pairs in micro-batches of 3, 3 and 1 must weigh each pair alike: the mean of means would not."""
    weight = [1.0, 2.0, 1.0, 0.5, 1.0, 3.0, 1.0]
    table = with_pairs(table_of(COMPARISONS), weight=weight, margin=[0.1 * i for i in range(7)])
    network = Linear()
    reference = Linear()
    cfg = config(f"optim.batch_pairs={pairs}", f"optim.accumulate={accumulate}", "optim.optimizer=sgd", "optim.lr=0.5",
                 "optim.max_grad_norm=0")  # fmt: skip
    trainer_of(network, table, cfg, tmp_path).train()

    scores = reference(torch.arange(6)[:, None], None).scores_BH[:, 0]
    loss = logsigmoid(
        scores[list(table.chosen)], scores[list(table.rejected)], torch.tensor([0.1 * i for i in range(7)])
    )
    w = torch.tensor(weight)
    ((loss * w).sum() / w.sum()).backward()
    for name, p in reference.named_parameters():
        assert torch.allclose(weights(network)[name], p.detach() - 0.5 * p.grad, atol=1e-6), name


@pytest.mark.parametrize("accumulate", [1, 7])
def test_the_load_balancing_loss_is_added_once(accumulate, tmp_path):
    network, plain = Linear(aux=0.3), Linear()
    for net in (network, plain):
        cfg = config(f"optim.batch_pairs={7 // accumulate}", f"optim.accumulate={accumulate}", "optim.optimizer=sgd",
                     "optim.lr=1", "optim.max_grad_norm=0")  # fmt: skip
        trainer_of(net, table_of(COMPARISONS), cfg, tmp_path / str(net.aux)).train()
    moved = plain.trunk.weight - network.trunk.weight
    assert torch.allclose(moved, torch.full_like(moved, 0.3), atol=1e-6)


def test_each_pair_trains_the_head_of_its_source(tmp_path):
    table = with_pairs(table_of(COMPARISONS), head=["a"] * 7)
    network = Linear(heads=2)
    before = weights(network)
    trainer_of(network, table, config("optim.weight_decay=0"), tmp_path, heads=("a", "b")).train()
    after = weights(network)
    assert not torch.equal(after["heads.weight"][0], before["heads.weight"][0])
    assert torch.equal(after["heads.weight"][1], before["heads.weight"][1])


def test_the_head_has_its_own_rate(tmp_path):
    trainer = trainer_of(Linear(), table_of(COMPARISONS), config("optim.lr=1e-4", "optim.head_lr=1e-2"), tmp_path)
    groups = trainer.create_optimizer().param_groups
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert {rate[id(p)] for n, p in trainer.model.named_parameters() if n.startswith("heads")} == {1e-2}
    assert {rate[id(p)] for n, p in trainer.model.named_parameters() if n.startswith("trunk")} == {1e-4}


def test_betas_and_epsilon_reach_adam(tmp_path):
    network, reference = Linear(), Linear()
    numbers = {"betas": (0.6, 0.9), "eps": 0.1}
    cfg = config(
        "optim.betas=[0.6, 0.9]", "optim.epsilon=0.1", "optim.lr=0.1", "optim.max_steps=3", "optim.max_grad_norm=0"
    )
    table = table_of(COMPARISONS)
    trainer_of(network, table, cfg, tmp_path).train()
    adam = torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0, **numbers)
    for _ in range(3):
        adam.zero_grad()
        scores = reference(torch.arange(6)[:, None], None).scores_BH[:, 0]
        logsigmoid(scores[list(table.chosen)], scores[list(table.rejected)], torch.zeros(7)).mean().backward()
        adam.step()
    for name, weight in weights(network).items():
        assert torch.allclose(weight, weights(reference)[name], atol=1e-6), name


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "cosine_warmup_with_min_lr"])
@pytest.mark.parametrize("end", ["optim.min_lr=1e-4", "optim.min_lr_rate=0.1"])
def test_the_rates_end_at_their_least_those_of_the_heads_in_proportion(tmp_path, schedule, end):
    cfg = config(f"optim.schedule={schedule}", end, "optim.lr=1e-3", "optim.head_lr=1e-2", "optim.max_steps=20")
    assert refusal_of(cfg) == ""
    trainer = trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path)
    trainer.train()
    rate = {group["lr"] for group in trainer.optimizer.param_groups}
    # The second schedule takes its last step one before the end of its cosine.
    assert sorted(rate) == pytest.approx([1e-4, 1e-3], rel=0.06)
    seen = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    assert seen[0] == pytest.approx(1e-3, rel=0.06)
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optim.betas=[0.9]"], "two numbers"),
        (["optim.betas=[0.9, 1.0]"], "below 1"),
        (["optim.epsilon=0"], "above 0"),
        (["optim.schedule=cosine", "optim.min_lr=1e-7"], "no effect with an optim.schedule other than"),
        (["optim.schedule=cosine_with_min_lr", "optim.min_lr=1e-2"], "at most optim.lr"),
        (["optim.schedule=cosine_with_min_lr", "optim.min_lr=1e-7", "optim.min_lr_rate=0.1"], "leave one out"),
        (["optim.optimizer=sgd", "optim.betas=[0.8, 0.9]"], "no Adam"),
        (["method.name=frozen", "optim.dropout=true"], "features are cached"),
    ],
)
def test_a_setting_of_the_optimizer_that_is_wrong_or_idle_is_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        config(*overrides)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_rows(tmp_path):
    network = Linear()
    network.features[5] = float("nan")
    cfg = config("optim.batch_pairs=1", "optim.max_steps=7")
    trainer = trainer_of(network, table_of(COMPARISONS), cfg, tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"step \d: the loss of 1 pairs is not finite. Rows: f:[457]\. "):
        trainer.train()


def test_weights_that_broke_before_are_told_from_rows_that_break_now(tmp_path):
    network = Linear()
    network.trunk.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteLoss, match=r"weights are already not finite \(trunk\.weight\)"):
        trainer_of(network, table_of(COMPARISONS), config(), tmp_path).train()


def test_logs_tell_accuracy_margin_and_mean_rewards_of_the_pairs(tmp_path):
    network, table = Linear(), table_of(COMPARISONS)
    scores = network(torch.arange(6)[:, None], None).scores_BH[:, 0].detach()
    c, r = scores[list(table.chosen)], scores[list(table.rejected)]
    trainer = trainer_of(network, table, config("optim.batch_pairs=2", "optim.accumulate=4"), tmp_path)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["accuracy"] == pytest.approx((c > r).float().mean().item())
    assert line["margin"] == pytest.approx((c - r).mean().item(), abs=1e-6)
    assert line["reward_chosen"] == pytest.approx(c.mean().item(), abs=1e-6)
    assert line["loss"] == pytest.approx(logsigmoid(c, r, torch.zeros(7)).mean().item(), abs=1e-6)


def test_the_weight_average_is_what_remains(tmp_path):
    network = Linear()
    cfg = config("optim.ema=0.5", "optim.max_steps=3", "optim.optimizer=sgd", "optim.lr=0.1")
    trainer = trainer_of(network, table_of(COMPARISONS), cfg, tmp_path)
    seen = [weights(network)]

    class Spy(type(trainer.callback_handler.callbacks[0]).__mro__[-2]):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(weights(network))

    trainer.add_callback(Spy())
    trainer.train()
    average = seen[0]["heads.weight"]
    for step, now in enumerate(seen[1:]):
        decay = min(0.5, (1 + step + 1) / (10 + step + 1))
        average = decay * average + (1 - decay) * now["heads.weight"]
    assert torch.allclose(network.heads.weight.detach(), average, atol=1e-6)


def test_a_half_written_step_checkpoint_is_not_resumed_from(tmp_path):
    cfg = config("optim.max_steps=12", "output.save_steps=5", "output.keep=9")
    trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train()
    steps = tmp_path / "steps"
    assert last_complete(steps).name == "checkpoint-12"
    (steps / "checkpoint-12" / "complete").unlink()
    assert last_complete(steps).name == "checkpoint-10"
    assert last_complete(tmp_path / "nothing") is None


def test_a_step_checkpoint_holds_only_what_learns_and_loads_back(tmp_path):
    network = Linear()
    network.trunk.requires_grad_(False)
    trainer_of(network, table_of(COMPARISONS), config(), tmp_path).train()
    fresh = Linear()
    load_weights(fresh, last_complete(tmp_path / "steps"))
    assert torch.equal(fresh.heads.weight, network.heads.weight)
    from safetensors.torch import load_file

    assert set(load_file(last_complete(tmp_path / "steps") / "model.safetensors")) == {"heads.weight"}
    with pytest.raises(ConfigError, match="another recipe"):
        load_weights(torch.nn.Linear(1, 1), last_complete(tmp_path / "steps"))


def test_a_resumed_epoch_has_its_own_order_however_the_loader_is_wrapped():
    """Across ranks, two wrappers of accelerate hide the batches from the Trainer's own `set_epoch`."""
    table = table_of([(i, i + 1) for i in range(30)])

    def order(epoch):
        batches = PairBatches(table, config("optim.batch_pairs=3").optim, seed=0)
        if epoch is not None:
            EpochOrder(batches).on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
        return list(batches)

    assert order(1.5) == order(1.0)
    assert order(1.5) != order(0)
    assert order(None) == order(0.3)


# -- methods ----------------------------------------------------------------------------------------------


def llama(layers=3):
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    cfg = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
                      num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2)  # fmt: skip
    return RewardNetwork.create(LlamaModel(cfg))


ROWS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12], [1, 2], [9, 9, 9, 9]]


@pytest.mark.parametrize("batch_tokens", [1, 7, 1000])
def test_scores_do_not_depend_on_who_shares_the_batch(batch_tokens):
    network = llama().train()
    alone = [network.eval()(torch.tensor([row])).scores_BH[0, 0].item() for row in ROWS]
    network.train()
    scores = scoring.score(network, ROWS, pad_id=0, batch_tokens=batch_tokens)
    assert scores[:, 0] == pytest.approx(alone, abs=1e-5)
    assert network.training


def test_cached_features_give_the_scores_of_the_network():
    network = llama()
    hidden = scoring.last_hidden(network, ROWS, pad_id=0, batch_tokens=8)
    cached = CachedNetwork(network, hidden)
    out = cached(*cached_rows([2, 0]).values())
    expected = scoring.score(network, ROWS, pad_id=0, batch_tokens=8)
    assert out.scores_BH[:, 0].tolist() == pytest.approx([expected[2, 0], expected[0, 0]], abs=1e-5)


WITH_DROPOUT = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50, "intermediate_size": 16,
              "attention_dropout": 0.4},
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
            "ffn_dim": 16, "dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50, "hidden_dropout": 0.3,
               "attention_dropout": 0.3, "alibi": False},
}  # fmt: skip


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_without_dropout_a_model_in_training_computes_what_it_computes_in_evaluation(kind):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **WITH_DROPOUT[kind]))
    ids = torch.arange(20)[None]

    def hidden(training):
        model.train(training)
        return model(ids).last_hidden_state

    judged = hidden(training=False)
    assert not all(torch.equal(hidden(training=True), judged) for _ in range(3)), "its dropout is on"
    (note,) = disable_dropout(model)
    assert "optim.dropout: true" in note
    assert all(torch.equal(hidden(training=True), judged) for _ in range(3))
    assert disable_dropout(model) == ()
    assert (
        AutoConfig.for_model(kind, **WITH_DROPOUT[kind]).to_dict().items()
        >= {k: v for k, v in model.config.to_dict().items() if "drop" in k}.items()
    ), "the exported configuration keeps its numbers"


def test_only_adapters_of_the_chosen_layers_and_the_head_learn():
    network = llama()
    adapt(network, config("method.name=lora", "method.layers=[1, 2]", "method.rank=2").method)
    learning = [n for n, p in network.named_parameters() if p.requires_grad]
    assert "heads.weight" in learning
    assert all("lora_" in n for n in learning if n != "heads.weight")
    assert {n.split("layers.")[1][0] for n in learning if "layers." in n} == {"1", "2"}


def test_merging_the_adapters_changes_no_score():
    network = llama()
    adapt(network, config("method.name=lora", "method.rank=2").method)
    for name, p in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    before = scoring.score(network, ROWS, pad_id=0, batch_tokens=8)
    merge(network)
    assert not any("lora" in n for n, _ in network.named_parameters())
    assert scoring.score(network, ROWS, pad_id=0, batch_tokens=8) == pytest.approx(before, abs=1e-4)


def test_the_logistic_head_is_where_the_gradient_of_its_objective_is_zero():
    torch.manual_seed(0)
    hidden = torch.randn(6, 4) * torch.tensor([1.0, 10.0, 0.1, 1.0])
    table = with_pairs(table_of(COMPARISONS), weight=[1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 4.0])
    w = fit_logistic(hidden, table, "score", l2=0.01).double().requires_grad_()
    diff = (hidden[list(table.chosen)] - hidden[list(table.rejected)]).double()
    weight = torch.tensor([p.weight for p in table.pairs], dtype=torch.float64)
    loss = (weight / weight.sum() * torch.nn.functional.softplus(-diff @ w)).sum()
    scale = diff.square().mean(0).sqrt()
    (loss + 0.005 * (w * scale).square().sum()).backward()
    assert w.grad.div(scale).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="no training pair"):
        fit_logistic(hidden, table, "other", l2=0.01)


def test_a_batch_of_tokens_gives_each_pair_what_two_single_rows_give():
    """Concatenated, de-duplicated and left-padded, or one at a time: the same loss, and the same gradient."""
    table = table_of([(0, 1), (2, 1), (3, 0), (3, 2)])
    batch = Collator(table, outputs_of(table), token_rows(table, 0))([0, 1, 2, 3])
    together, apart = llama(), llama()
    apart.load_state_dict(together.state_dict())
    out = together(batch["input_ids"], batch["attention_mask"]).scores_BH[:, 0]
    logsigmoid(out[batch["chosen"]], out[batch["rejected"]], batch["margin"]).sum().backward()
    total = torch.zeros(())
    for c, r in zip(table.chosen, table.rejected, strict=True):
        pair = [apart(torch.tensor([table.sequences[s].ids])).scores_BH[:, 0] for s in (c, r)]
        total = total + logsigmoid(pair[0], pair[1], torch.zeros(1)).sum()
    total.backward()
    for (name, p), q in zip(together.named_parameters(), apart.parameters(), strict=True):
        if p.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-5), name


def refusal(override):
    """Why a recipe's optimizer or schedule is refused; empty where it works."""
    return refusal_of(config(override))


def refusal_of(cfg):
    try:
        check_optimizer(cfg)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", [o.value for o in OptimizerNames])
def test_an_optimizer_works_here_or_is_refused_in_one_line(name):
    """Many need a package or a device; none of them is to fail after hours of encoding."""
    said = refusal(f"optim.optimizer={name}")
    assert (name in said and "\n" not in said) or name in (
        "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"
    ), said  # fmt: skip


@pytest.mark.parametrize("name", [s.value for s in SchedulerType])
def test_a_schedule_works_here_or_is_refused_in_one_line(name):
    said = refusal(f"optim.schedule={name}")
    needs_more = name in ("reduce_lr_on_plateau", "warmup_stable_decay")
    assert (name in said and "\n" not in said) if said else not needs_more, said


@pytest.mark.parametrize(
    ("overrides", "blames"),
    [
        (["model.dtype=float16", "method.name=lora"], "model.dtype is float16"),
        (["optim.precision=fp16"], "optim.precision is fp16"),
        (["model.dtype=bfloat16", "method.name=lora"], "Lower optim.lr"),
        ([], "Lower optim.lr"),
    ],
)
def test_a_loss_that_is_not_finite_blames_what_can_be_at_fault(overrides, blames, tmp_path):
    network = Linear()
    network.features[:] = float("inf")
    trainer = trainer_of(network, table_of(COMPARISONS), config(), tmp_path)
    trainer.recipe = config(*overrides)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.train()
    assert blames in str(caught.value)
    assert ("fp16" in str(caught.value)) == ("fp16" in blames)


def test_an_old_step_checkpoint_goes_only_when_the_new_one_is_complete(tmp_path, monkeypatch):
    cfg = config("optim.max_steps=10", "output.save_steps=5", "output.keep=1", "optim.ema=0.5")
    with monkeypatch.context() as patch:
        real = WeightAverage.on_save

        def fails_later(self, args, state, control, **kwargs):
            if state.global_step == 10:
                raise OSError("full")
            real(self, args, state, control, **kwargs)

        patch.setattr(WeightAverage, "on_save", fails_later)
        with pytest.raises(OSError, match="full"):
            trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train()
    assert last_complete(tmp_path / "steps").name == "checkpoint-5"
    trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train(
        resume_from_checkpoint=str(tmp_path / "steps/checkpoint-5")
    )
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["checkpoint-10"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("overrides", [["optim.max_steps=3"], ["optim.max_steps=-1", "optim.epochs=2.5"]])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_steps_of_a_run_are_counted_as_the_trainer_takes_them(tmp_path, overrides, accumulate):
    table = table_of(COMPARISONS)
    cfg = config("optim.batch_pairs=2", f"optim.accumulate={accumulate}", *overrides)
    trainer = trainer_of(Linear(), table, cfg, tmp_path)
    trainer.train()
    assert n_steps(cfg, table, 1) == trainer.state.max_steps == trainer.state.global_step


def test_a_share_that_is_the_whole_run_is_told(capsys):
    table = table_of(COMPARISONS)
    check_warmup(config("optim.schedule=linear", "optim.warmup=0.03"), table, 1)
    assert (
        "optim.warmup 0.03 of 1 steps is all of them: the learning rate never reaches optim.lr"
        in capsys.readouterr().err
    )
    check_warmup(config("optim.schedule=linear", "optim.warmup=0.03", "optim.max_steps=2"), table, 1)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"optim\.warmup is 2 steps, and the run has 2"):
        check_warmup(
            config("optim.schedule=linear", "optim.warmup=2", "optim.max_steps=-1", "optim.epochs=2"), table, 1
        )


# -- step checkpoints that are not whole any more -----------------------------------------------------------


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "ema.safetensors")


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", [None, 0, 20])
def test_a_step_checkpoint_that_has_lost_a_part_is_not_resumed_from(tmp_path, name, length):
    cfg = config("optim.max_steps=4", "output.save_steps=2", "optim.ema=0.5")
    trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train()
    steps = tmp_path / "steps"
    file = steps / "checkpoint-4" / name
    if length is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:length])
    assert last_complete(steps).name == "checkpoint-2"
    ((step, why),) = damaged(steps)
    assert step.name == "checkpoint-4"
    assert name in why


def test_a_mark_without_lengths_is_taken_at_its_word(tmp_path):
    """Several processes write none, and neither did the versions before."""
    cfg = config("optim.max_steps=4", "output.save_steps=2")
    trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train()
    (tmp_path / "steps/checkpoint-4/complete").write_text("")
    assert last_complete(tmp_path / "steps").name == "checkpoint-4"
    (tmp_path / "steps/checkpoint-4/complete").write_text("[1]")
    assert last_complete(tmp_path / "steps").name == "checkpoint-2"


def test_folders_of_a_user_beside_the_steps_are_left_alone(tmp_path):
    steps = tmp_path / "steps"
    for name in ("checkpoint-best", "checkpoint-2.bak", "checkpoint-"):
        (steps / name).mkdir(parents=True)
        (steps / name / "complete").write_text("")
    cfg = config("optim.max_steps=4", "output.save_steps=2", "output.keep=1")
    trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train()
    assert last_complete(steps).name == "checkpoint-4"
    assert {p.name for p in steps.iterdir()} == {"checkpoint-best", "checkpoint-2.bak", "checkpoint-", "checkpoint-4"}


def test_what_a_killed_run_left_further_on_costs_no_new_step_its_place(tmp_path):
    (tmp_path / "steps/checkpoint-9").mkdir(parents=True)
    cfg = config("optim.max_steps=4", "output.save_steps=2", "output.keep=1")
    trainer_of(Linear(), table_of(COMPARISONS), cfg, tmp_path).train()
    assert last_complete(tmp_path / "steps").name == "checkpoint-4"


@pytest.mark.parametrize(
    "length", [["optim.max_steps=3"], ["optim.max_steps=-1", "optim.epochs=0.6", "optim.batch_pairs=1"]]
)
def test_going_on_from_the_last_step_takes_no_further_one(tmp_path, length):
    cfg = config("output.save_steps=1", "optim.ema=0.5", *length)
    ended, resumed = Linear(), Linear()
    trainer_of(ended, table_of(COMPARISONS), cfg, tmp_path).train()
    last = last_complete(tmp_path / "steps")
    trainer = trainer_of(resumed, table_of(COMPARISONS), cfg, tmp_path)
    trainer.train(resume_from_checkpoint=str(last))
    assert f"checkpoint-{trainer.state.global_step}" == last.name == last_complete(tmp_path / "steps").name
    assert torch.equal(resumed.heads.weight, ended.heads.weight)
    assert torch.equal(resumed.trunk.weight, ended.trunk.weight)


# -- adapters -----------------------------------------------------------------------------------------------


def gpt2():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    return RewardNetwork(GPT2Model(config), torch.randn(1, 16), ("score",))


def lora(*overrides):
    return config("method.name=lora", "method.rank=2", *overrides).method


@pytest.mark.parametrize(("overrides", "n_adapted"), [((), 8), (("method.layers=[1]",), 4)])
def test_all_linear_means_the_conv1d_layers_of_gpt2_too(overrides, n_adapted, recwarn):
    network = gpt2()
    check_targets(network, lora(*overrides))
    adapt(network, lora(*overrides))
    assert sum("lora_A" in name for name, _ in network.backbone.named_parameters()) == n_adapted
    for name, parameter in network.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        before = network.eval()(ids, torch.ones_like(ids)).scores_BH
        merge(network)
        after = network(ids, torch.ones_like(ids)).scores_BH
    assert torch.allclose(before, after, atol=1e-5)
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.targets=[ln_1]"], "h.0.ln_1 is a LayerNorm, which supports no adapter; linear ones are c_attn, c_fc, c_proj"),
        (["method.targets=[mlp]"], "h.0.mlp is a GPT2MLP, which supports no adapter"),
        (["method.targets=[wte]", "method.layers=[0]"], "none of them has a linear module called wte"),
        (["method.layers=[7]"], r"layers \[7\] do not exist"),
    ],
)  # fmt: skip
def test_a_target_that_takes_no_adapter_is_refused_by_name(overrides, says):
    with pytest.raises(ConfigError, match=says):
        check_targets(gpt2(), lora(*overrides))


def test_a_misspelt_loss_suggests_the_nearest():
    with pytest.raises(ConfigError, match="it must be one of logsigmoid, logexp; did you mean logexp"):
        pair_loss(LossConfig("logxep"))
