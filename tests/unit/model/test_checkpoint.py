"""Every supported layout is read correctly, a missing trained head is an error, and our exports load unchanged elsewhere."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardserve.model.checkpoint import (
    CheckpointError,
    ReadOptions,
    read,
    read_backbone,
    read_without_weights,
    write,
    write_contract,
    write_heads,
)
from rewardserve.model.checkpoint.weights import digest, weight_files
from rewardserve.model.checkpoint.writing import score_single_row
from tests.support.checkpoints import (
    CALIBRATION,
    PROBES,
    edit_json,
    edit_tensor,
    hidden_reference,
    language_model,
    openrlhf,
    reward_model,
    sequence_classifier,
    value_head,
)
from tests.support.tiny import ARCHITECTURES, tiny_tokenizer

ROWS = [[5, 9, 77, 2], [1, 200, 2, 33, 8, 8, 2], [7, 2]]


def plain_scores(model, rows=ROWS):
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0].tolist() for row in rows]


# -- reading what others wrote ----------------------------------------------------------------------------------------


def test_a_sequence_classifier_scores_as_in_transformers(tmp_path):
    model = sequence_classifier(tmp_path)
    checkpoint = read(str(tmp_path))
    assert checkpoint.format == "sequence_classification"
    assert checkpoint.contract is None
    assert checkpoint.calibration is None
    for row, (expected,) in zip(ROWS, plain_scores(model), strict=True):
        assert score_single_row(checkpoint.network, row) == pytest.approx(expected, abs=1e-5)


def test_several_labels_are_heads_only_with_names_and_weights(tmp_path):
    model = sequence_classifier(tmp_path, n_labels=3)
    with pytest.raises(CheckpointError, match="reward_head_weights"):
        read(str(tmp_path))
    names = {"0": "helpful", "1": "harmless", "2": "verbose"}
    edit_json(
        tmp_path / "config.json", id2label=names, reward_head_weights={"helpful": 1, "harmless": 0.5, "verbose": -0.1}
    )
    network = read(str(tmp_path)).network
    assert network.head_names == ("helpful", "harmless", "verbose")
    for row, (a, b, c) in zip(ROWS, plain_scores(model), strict=True):
        assert score_single_row(network, row) == pytest.approx(a + 0.5 * b - 0.1 * c, abs=1e-5)


@pytest.mark.parametrize("prefix", ["score", "value_head", "r_head"])
def test_an_openrlhf_checkpoint_is_read_with_its_statistics(tmp_path, prefix):
    model = openrlhf(tmp_path, prefix)
    checkpoint = read(str(tmp_path))
    assert checkpoint.format == "openrlhf"
    assert checkpoint.calibration is not None
    assert (checkpoint.calibration.mean, checkpoint.calibration.std) == (0.3, 2.5)
    for row, (expected,) in zip(ROWS, plain_scores(model), strict=True):
        assert score_single_row(checkpoint.network, row) == pytest.approx(expected, abs=1e-5)


def test_openrlhfs_default_statistics_count_as_none(tmp_path):
    openrlhf(tmp_path)
    edit_json(tmp_path / "config.json", mean=0, std=1)
    assert read(str(tmp_path)).calibration is None


@pytest.mark.parametrize("separate", [True, False], ids=["llama_factory", "trl"])
def test_a_value_head_is_read_with_its_bias(tmp_path, separate):
    backbone, weight, bias = value_head(tmp_path, separate=separate)
    checkpoint = read(str(tmp_path))
    assert checkpoint.format == ("llama_factory" if separate else "trl_value_head")
    for row in ROWS:
        with torch.no_grad():
            expected = backbone(torch.tensor([row])).last_hidden_state[0, -1] @ weight[0] + bias[0]
        assert score_single_row(checkpoint.network, row) == pytest.approx(float(expected), abs=1e-5)


def test_pickled_weights_are_read_where_they_are_allowed(tmp_path):
    model = sequence_classifier(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    network = read(str(tmp_path), ReadOptions(allow_pickle=True)).network
    assert score_single_row(network, ROWS[1]) == pytest.approx(plain_scores(model)[1][0], abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("inside", ["backbone", "classifier"])
def test_a_lora_adapter_with_its_head_is_merged_into_its_base(tmp_path, inside, architecture):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base, folder = language_model(tmp_path / "base", architecture), tmp_path / "adapter"
    lora = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], base_model_name_or_path=str(base))
    if inside == "classifier":
        lora.modules_to_save = ["score"]
        whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    else:
        whole = AutoModel.from_pretrained(base)
    model = get_peft_model(whole, lora).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    head = torch.randn(1, 32, generator=generator)
    if inside == "backbone":
        save_file(
            {"score": head[0]}, folder / "reward_heads.safetensors",
            metadata={"reward_heads": json.dumps([{"name": "score", "weight": 1.0}])},
        )  # fmt: skip
    checkpoint = read(str(folder))
    assert checkpoint.format.startswith("adapter")
    for row in ROWS:
        with torch.no_grad():
            out = model(torch.tensor([row]))
        expected = out.logits[0, 0] if inside == "classifier" else out.last_hidden_state[0, -1] @ head[0]
        assert score_single_row(checkpoint.network, row) == pytest.approx(float(expected), abs=1e-4)


ADAPTED_HEADS = {
    "classifier task": {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "score"]},
    "LoRA of the head": {"target_modules": ["q_proj", "score"]},
    "LoRA of the head alone": {"target_modules": ["score"]},
    "all linear layers": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": ["q_proj", "score"], "use_dora": True},
    "ranks by layer": {"target_modules": ["q_proj", "score"], "use_rslora": True, "rank_pattern": {"score": 2},
                       "alpha_pattern": {"score": 7}},
    "some layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "the base model's head": {"target_modules": ["q_proj"]},
}  # fmt: skip


def adapted(folder, base, n_labels=1, **settings):
    from peft import LoraConfig, get_peft_model

    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=n_labels)
    model = get_peft_model(whole, LoraConfig(r=4, base_model_name_or_path=str(base), **settings)).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("n_labels", [1, 3])
@pytest.mark.parametrize("how", ADAPTED_HEADS)
def test_an_adapted_value_head_is_that_of_pefts_own_forward(tmp_path, how, n_labels):
    sequence_classifier(tmp_path / "base", n_labels=n_labels)
    counts = [1.0, 0.5, -0.1][:n_labels]
    edit_json(tmp_path / "base" / "config.json", reward_head_weights=counts)
    model = adapted(tmp_path / "adapter", tmp_path / "base", n_labels, **ADAPTED_HEADS[how])
    checkpoint = read(str(tmp_path / "adapter"))
    assert checkpoint.format == "adapter (adapter head)"
    assert checkpoint.policy.rule.ending == "template"
    for row in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0].tolist()
        expected = sum(count * logit for count, logit in zip(counts, logits, strict=True))
        assert score_single_row(checkpoint.network, row) == pytest.approx(expected, abs=1e-4)


def test_an_adapter_of_a_head_that_no_file_holds_is_refused_with_its_name_and_the_remedy(tmp_path):
    adapted(tmp_path / "adapter", language_model(tmp_path / "base"), target_modules=["q_proj", "score"])
    with pytest.raises(CheckpointError, match=r"score\.lora_A.*no score\.weight.*modules_to_save"):
        read(str(tmp_path / "adapter"))


def test_an_adapter_with_a_head_and_changes_of_one_is_refused(tmp_path):
    sequence_classifier(tmp_path / "base")
    adapted(tmp_path / "adapter", tmp_path / "base", target_modules=["q_proj", "score"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.score.weight": torch.ones(1, 32)}, file)
    with pytest.raises(CheckpointError, match=r"has a value head .* and changes of one"):
        read(str(tmp_path / "adapter"))


def test_bare_heads_over_a_base_model_are_a_reward_model(tmp_path):
    base = language_model(tmp_path / "base")
    start = read_backbone(str(base), head_names=("a", "b"), head_weights=(0.5, 2.0))
    write_heads(tmp_path / "heads", start.network, base=str(base))
    contract = write_contract(tmp_path / "heads", probes=PROBES)
    assert sum(f.stat().st_size for f in (tmp_path / "heads").glob("*.safetensors")) < 1000
    again = read(str(tmp_path / "heads"))
    assert again.network.head_names == ("a", "b")
    assert again.contract == contract
    for row in ROWS:
        assert score_single_row(again.network, row) == pytest.approx(
            score_single_row(start.network.eval(), row), abs=1e-6
        )


def test_bare_heads_over_the_first_layers_of_a_base_model_are_a_reward_model(tmp_path):
    base = language_model(tmp_path / "base")
    start = read_backbone(str(base), n_layers=1)
    write_heads(tmp_path / "heads", start.network, base=str(base), n_layers=1)
    contract = write_contract(tmp_path / "heads", probes=PROBES)
    again = read(str(tmp_path / "heads"))
    assert again.network.config.num_hidden_layers == 1 < read_backbone(str(base)).network.config.num_hidden_layers
    assert again.contract == contract
    for row in ROWS:
        assert score_single_row(again.network, row) == pytest.approx(
            score_single_row(start.network.eval(), row), abs=1e-6
        )


@pytest.mark.parametrize(
    ("layers", "message"), [("0", "n_layers=0"), ("99", "n_layers=99"), ("two", "no number of lay")]
)
def test_bare_heads_over_layers_that_do_not_exist_are_refused(tmp_path, layers, message):
    base = language_model(tmp_path / "base")
    write_heads(tmp_path / "heads", read_backbone(str(base)).network, base=str(base), n_layers=1)
    file = tmp_path / "heads" / "reward_heads.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata=metadata | {"base_model_layers": layers})
    with pytest.raises(CheckpointError, match=message):
        read(str(tmp_path / "heads"))


# -- refusing ---------------------------------------------------------------------------------------------------------


def test_a_language_model_without_a_head_is_refused_with_the_remedy(tmp_path):
    language_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"no value head.*rewardserve train"):
        read(str(tmp_path))


def test_a_classifier_whose_head_was_not_saved_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="freshly initialised"):
        read(str(tmp_path))


def test_an_adapter_without_its_head_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base = language_model(tmp_path / "base")
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no value head"):
        read(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.zeros_like, "never trained"),
        (lambda w: w * float("nan"), "NaN"),
        (lambda w: torch.randn(1, 31), "31"),
        (lambda w: torch.randn(32), "shape"),
    ],
)
def test_a_head_that_cannot_be_right_is_refused(tmp_path, change, message):
    sequence_classifier(tmp_path)
    edit_tensor(tmp_path / "model.safetensors", "score.weight", change)
    with pytest.raises(CheckpointError, match=message):
        read(str(tmp_path))


def test_a_backbone_with_a_missing_tensor_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        read(str(tmp_path))


def test_a_backbone_with_more_layers_than_its_config_says_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"layers\.1"):
        read(str(tmp_path))


def test_two_truths_in_one_folder_are_refused(tmp_path):
    reward_model(tmp_path / "rm", contract=False)
    edit_tensor(tmp_path / "rm" / "model.safetensors", "score.weight", lambda w: w + 1)
    with pytest.raises(CheckpointError, match="weighted sum"):
        read(str(tmp_path / "rm"))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "three/part/name", "no-such-folder"])
def test_what_is_no_folder_is_said_so(name):
    with pytest.raises(CheckpointError, match="not a folder"):
        read(name)


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read(str(tmp_path))


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.sweep(4)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_we_write_scores_the_same_in_plain_transformers(tmp_path, architecture):
    reward_model(tmp_path / "rm", architecture)
    ours = read(str(tmp_path / "rm"))
    assert ours.format == "rewardserve"
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    rows = [ours.encoder(sample).ids for sample in PROBES]
    for row, (expected,) in zip(rows, plain_scores(plain, [list(r) for r in rows]), strict=True):
        assert score_single_row(ours.network, row) == pytest.approx(expected, abs=1e-5)
    # And in a padded batch, where transformers looks for the last token that is not padding.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    batch = tokenizer.pad({"input_ids": [list(r) for r in rows]}, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**{k: v for k, v in batch.items() if k != "token_type_ids"}).logits[:, 0]
    expected = torch.tensor([score_single_row(ours.network, row) for row in rows])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_several_heads_are_written_as_one_score_for_others_and_by_name_for_us(tmp_path):
    reward_model(tmp_path / "rm", heads={"convincing": 0.7, "harmless": 1.3})
    network = read(str(tmp_path / "rm")).network
    assert dict(zip(network.head_names, network.head_weights, strict=True)) == {"convincing": 0.7, "harmless": 1.3}
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    for row, (expected,) in zip(ROWS, plain_scores(plain), strict=True):
        assert score_single_row(network, row) == pytest.approx(expected, abs=1e-5)


def test_the_written_config_says_what_other_engines_look_for(tmp_path):
    reward_model(tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"  # vLLM applies a sigmoid otherwise
    assert len(config["id2label"]) == 1
    assert config["value_head_prefix"] == "score"
    assert (config["mean"], config["std"]) == (CALIBRATION.mean, CALIBRATION.std)
    tensors = load_file(tmp_path / "rm" / "model.safetensors")
    assert tensors["score.weight"].shape == (1, 32)
    assert "score.bias" not in tensors


def test_who_takes_every_safetensors_file_for_weights_is_told_which_are_not(tmp_path):
    """vLLM's rule, and SGLang's: of all such files in the folder those that the index names, where there is one."""
    reward_model(tmp_path / "rm", heads={"good": 1.0, "kind": 0.5})
    hidden_reference(tmp_path / "rm")
    files = {path.name: set(load_file(path)) for path in (tmp_path / "rm").glob("*.safetensors")}
    assert set(files) == {"model.safetensors", "reward_heads.safetensors", "hidden_reference.safetensors"}
    named = json.loads((tmp_path / "rm" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(named.values()) == {"model.safetensors"}
    assert set(named) == files["model.safetensors"]


@pytest.mark.parametrize("pad", ["<|im_end|>", None], ids=["pad_is_end", "no_pad"])
def test_the_written_pad_token_never_ends_a_sequence(tmp_path, pad):
    reward_model(tmp_path / "rm", pad=pad)
    checkpoint = read(str(tmp_path / "rm"))
    assert checkpoint.pad_id not in checkpoint.policy.end_ids
    assert checkpoint.pad_id == checkpoint.tokenizer.pad_token_id


def test_where_no_special_token_is_free_a_pad_token_is_added(tmp_path):
    sft = language_model(tmp_path / "sft", pad=None)
    checkpoint = read_backbone(str(sft))
    tokenizer = tiny_tokenizer(pad=None)
    state = json.loads(tokenizer._tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in ("<|im_start|>", "<|im_end|>")]
    (sft / "tokenizer.json").write_text(json.dumps(state))
    checkpoint = read_backbone(str(sft))
    before = checkpoint.network.backbone.get_input_embeddings().num_embeddings
    pad_id = write(tmp_path / "rm", checkpoint.network, checkpoint.tokenizer, policy=checkpoint.policy)
    assert pad_id >= before - 1
    assert pad_id not in checkpoint.policy.end_ids
    again = read(str(tmp_path / "rm"))
    assert score_single_row(again.network, ROWS[0]) == pytest.approx(
        score_single_row(checkpoint.network.eval(), ROWS[0]), abs=1e-5
    )


def test_a_head_with_a_bias_is_not_written(tmp_path):
    value_head(tmp_path / "vh", separate=True)
    checkpoint = read(str(tmp_path / "vh"))
    with pytest.raises(CheckpointError, match="bias"):
        write(tmp_path / "rm", checkpoint.network, checkpoint.tokenizer, policy=checkpoint.policy)


def test_the_first_layers_of_a_trunk_can_be_kept(tmp_path):
    sft = language_model(tmp_path / "sft", "qwen3")
    checkpoint = read_backbone(str(sft), n_layers=1)
    assert len(checkpoint.network.backbone.layers) == 1
    write(tmp_path / "rm", checkpoint.network, checkpoint.tokenizer, policy=checkpoint.policy)
    assert len(read(str(tmp_path / "rm")).network.backbone.layers) == 1


# -- digests ----------------------------------------------------------------------------------------------------------


def test_the_weights_digest_does_not_depend_on_how_tensors_are_spread_over_files(tmp_path):
    model = sequence_classifier(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(weight_files(tmp_path / "many")) > 1
    assert digest(weight_files(tmp_path / "one")) == digest(weight_files(tmp_path / "many"))


def test_the_weights_digest_sees_one_bit_and_leaves_the_head_out(tmp_path):
    sequence_classifier(tmp_path)
    files = weight_files(tmp_path)
    before, without = digest(files), digest(files, without=["score.weight"])
    edit_tensor(files[0], "score.weight", lambda w: w * 2)
    assert digest(files, without=["score.weight"]) == without
    assert digest(files) != before

    def flip(w):
        w = w.clone()
        w.view(torch.int32)[3, 5] ^= 1
        return w

    edit_tensor(files[0], "model.layers.0.mlp.up_proj.weight", flip)
    assert digest(files, without=["score.weight"]) != without


# -- without the weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [reward_model, sequence_classifier, openrlhf])
def test_an_outline_says_all_that_reading_says_and_loads_no_backbone(tmp_path, make):
    make(tmp_path / "rm")
    outlined, whole = read_without_weights(str(tmp_path / "rm")), read(str(tmp_path / "rm"))
    assert {p.device.type for p in outlined.network.backbone.parameters()} == {"meta"}
    assert outlined.facts == whole.facts
    assert outlined.policy == whole.policy
    assert (outlined.format, outlined.pad_id) == (whole.format, whole.pad_id)
    assert (outlined.contract, outlined.calibration) == (whole.contract, whole.calibration)
    assert outlined.architecture == whole.architecture
    assert torch.equal(outlined.network.heads.weight, whole.network.heads.weight)
    shapes = [{n: p.shape for n, p in c.network.named_parameters()} for c in (outlined, whole)]
    assert shapes[0] == shapes[1]
