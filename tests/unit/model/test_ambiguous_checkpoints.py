"""Checkpoints with two sets of one thing, or with tensors that their class leaves out: the number of transformers, or none.

The reference is a plain float32 forward of transformers (or PEFT), which loads the same folder.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewardserve.model.checkpoint import CheckpointError, ReadOptions, read, read_backbone, read_without_weights
from rewardserve.model.checkpoint.writing import score_single_row, write_labels
from rewardserve.model.templates.chat_template import EncodingPolicyError
from tests.support.checkpoints import (
    edit_json,
    edit_tensor,
    language_model,
    openrlhf,
    sequence_classifier,
    value_head,
)
from tests.support.tiny import CHATML, randomize, tiny_config, tiny_tokenizer

ROWS = [[5, 9, 77, 2], [1, 200, 2, 33, 8, 8, 2], [7, 2]]


def plain_scores(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0, 0].item() for row in ROWS]


def served(folder, options=ReadOptions()):  # noqa: B008  (frozen)
    checkpoint = read(str(folder), options)
    return [score_single_row(checkpoint.network, row) for row in ROWS], checkpoint


def refused(folder, options=ReadOptions()):  # noqa: B008  (frozen)
    with pytest.raises((CheckpointError, EncodingPolicyError)) as error:
        read_without_weights(str(folder), options)
    return str(error.value)


def add_tensors(folder, **tensors):
    path = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({**load_file(path), **named}, path, metadata={"format": "pt"})


def another_classifier(seed=9):
    model = AutoModelForSequenceClassification.from_config(tiny_config("llama", len(tiny_tokenizer()), num_labels=1))
    torch.manual_seed(seed)
    return randomize(model) or model


# -- two sets of weights ----------------------------------------------------------------------------------------------


def test_shards_saved_over_a_single_file_are_refused_by_name(tmp_path):
    sequence_classifier(tmp_path)
    another_classifier().save_pretrained(tmp_path, max_shard_size="20KB")
    output = refused(tmp_path)
    assert "model.safetensors.index.json" in output
    assert "model.safetensors " in output
    with pytest.raises(CheckpointError, match="two sets of weights"):
        read_backbone(str(tmp_path))


def test_a_single_pickle_beside_an_index_of_pickles_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    torch.save(tensors, tmp_path / "pytorch_model-00001-of-00001.bin")
    names = dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert "two sets of weights" in refused(tmp_path, ReadOptions(allow_pickle=True))


def test_pickles_beside_safetensors_are_left_out_with_a_note(tmp_path):
    model = sequence_classifier(tmp_path)
    torch.save({"score.weight": torch.ones(1, 32)}, tmp_path / "pytorch_model.bin")
    scores, checkpoint = served(tmp_path)
    with torch.no_grad():
        assert scores == pytest.approx([model(torch.tensor([row])).logits.item() for row in ROWS], abs=1e-5)
    assert any("pytorch_model.bin" in note for note in checkpoint.notes)


def test_a_tensor_that_two_shards_hold_with_other_numbers_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    another_classifier().save_pretrained(tmp_path, max_shard_size="20KB")
    first, *_, last = sorted(tmp_path.glob("model-*.safetensors"))
    save_file({**load_file(last), "score.weight": torch.ones(1, 32)}, last, metadata={"format": "pt"})
    save_file({**load_file(first), "score.weight": torch.zeros(1, 32)}, first, metadata={"format": "pt"})
    output = refused(tmp_path)
    assert "score.weight" in output
    assert first.name in output
    assert last.name in output


def test_a_file_of_weights_that_config_json_names_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    edit_json(tmp_path / "config.json", transformers_weights="other.safetensors")
    assert "transformers_weights" in refused(tmp_path)


def test_weights_written_over_other_weights_leave_one_set(tmp_path):
    sequence_classifier(tmp_path)
    network = read(str(tmp_path)).network
    another_classifier().save_pretrained(tmp_path, max_shard_size="20KB")
    write_labels(tmp_path, network)
    scores, _ = served(tmp_path)
    assert scores == pytest.approx([score_single_row(network, row) for row in ROWS], abs=1e-5)


# -- two heads --------------------------------------------------------------------------------------------------------


def test_a_value_head_file_beside_another_head_among_the_weights_is_refused(tmp_path):
    value_head(tmp_path, separate=True)
    add_tensors(tmp_path, v_head__summary__weight=torch.ones(1, 32), v_head__summary__bias=torch.zeros(1))
    output = refused(tmp_path)
    assert "value_head.safetensors" in output
    assert "v_head.summary" in output


def test_a_value_head_file_beside_the_same_head_among_the_weights_is_read(tmp_path):
    _, weight, bias = value_head(tmp_path, separate=True)
    expected, _ = served(tmp_path)
    add_tensors(tmp_path, v_head__summary__weight=weight, v_head__summary__bias=bias)
    assert served(tmp_path)[0] == expected


def test_a_value_head_file_beside_a_classifiers_head_is_refused(tmp_path):
    sequence_classifier(tmp_path)
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, tmp_path / "value_head.safetensors")
    output = refused(tmp_path)
    assert "value_head.safetensors" in output
    assert "score.weight" in output


def test_two_value_head_files_are_refused(tmp_path):
    value_head(tmp_path, separate=True)
    torch.save({"v_head.summary.weight": torch.ones(1, 32)}, tmp_path / "value_head.bin")
    assert "value_head.bin" in refused(tmp_path, ReadOptions(allow_pickle=True))


def test_a_value_head_that_a_classifier_does_not_load_is_left_out_with_a_note(tmp_path):
    sequence_classifier(tmp_path)
    add_tensors(tmp_path, v_head__summary__weight=torch.ones(1, 32))
    scores, checkpoint = served(tmp_path)
    assert scores == pytest.approx(plain_scores(tmp_path), abs=1e-5)
    assert any("v_head.summary.weight" in note for note in checkpoint.notes)


def test_a_bias_that_the_class_of_transformers_has_not_changes_no_score(tmp_path):
    sequence_classifier(tmp_path)
    add_tensors(tmp_path, score__bias=torch.tensor([3.0]))
    scores, checkpoint = served(tmp_path)
    assert scores == pytest.approx(plain_scores(tmp_path), abs=1e-5)
    assert any("score.bias" in note for note in checkpoint.notes)


@pytest.mark.parametrize("prefix", ["score", "value_head"])
def test_a_bias_that_openrlhfs_class_has_not_changes_no_score(tmp_path, prefix):
    openrlhf(tmp_path, prefix)
    expected, _ = served(tmp_path)
    add_tensors(tmp_path, **{f"{prefix}__bias": torch.tensor([3.0])})
    scores, checkpoint = served(tmp_path)
    assert scores == expected
    assert any(f"{prefix}.bias" in note for note in checkpoint.notes)


# -- adapters ---------------------------------------------------------------------------------------------------------


def adapter(folder, base, **lora):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "target_modules": ["q_proj"], **lora})
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


@pytest.fixture
def base(tmp_path):
    sequence_classifier(tmp_path / "base")
    return tmp_path / "base"


def test_an_adapter_that_repeats_layers_is_refused_by_its_setting(tmp_path, base):
    adapter(tmp_path / "adapter", base, layer_replication=[[0, 2], [1, 2]])
    assert "layer_replication" in refused(tmp_path / "adapter")


def test_a_merge_that_computes_something_else_than_the_adapter_is_refused_with_the_difference(
    tmp_path, base, monkeypatch
):
    from peft.tuners.lora.layer import Linear

    adapter(tmp_path / "adapter", base)
    assert served(tmp_path / "adapter")
    exact = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 1.5 * exact(self, name))
    with pytest.raises(CheckpointError, match=r"merged.*differ.*%"):
        read(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    "lora", [{}, {"target_modules": ["q_proj", "embed_tokens"]}, {"trainable_token_indices": [4, 5, 6]}, {"use_dora": True}],
    ids=["projections", "embeddings", "tokens", "dora"],
)  # fmt: skip
def test_an_adapter_scores_merged_as_in_peft(tmp_path, base, lora):
    model = adapter(tmp_path / "adapter", base, **lora)
    with torch.no_grad():
        expected = [model(torch.tensor([row])).logits[0, 0].item() for row in ROWS]
    assert served(tmp_path / "adapter")[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_of_a_merge_in_half_precision_is_no_difference(tmp_path, base, dtype):
    adapter(tmp_path / "adapter", base)
    assert read(str(tmp_path / "adapter"), ReadOptions(dtype=dtype)).network is not None


def test_an_adapter_beside_a_whole_model_is_refused(tmp_path, base):
    adapter(tmp_path / "adapter", base)
    shutil.copy(base / "model.safetensors", tmp_path / "adapter")
    output = refused(tmp_path / "adapter")
    assert "model.safetensors" in output
    assert "adapter_model.safetensors" in output


def test_an_adapter_over_an_adapter_is_refused(tmp_path, base):
    adapter(tmp_path / "inner", base)
    shutil.copy(base / "config.json", tmp_path / "inner")
    adapter(tmp_path / "outer", base)
    edit_json(tmp_path / "outer" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "inner"))
    assert "adapter_config.json" in refused(tmp_path / "outer")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_backbone(str(tmp_path / "inner"))


def test_two_files_of_an_adapter_are_read_as_peft_reads_them_with_a_note(tmp_path, base):
    adapter(tmp_path / "adapter", base)
    expected, _ = served(tmp_path / "adapter")
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    scores, checkpoint = served(tmp_path / "adapter")
    assert scores == expected
    assert any("adapter_model.bin" in note for note in checkpoint.notes)


# -- tensors that transformers ignores --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "gpt_neo"])
def test_causal_masks_that_older_versions_saved_are_left_out(tmp_path, architecture):
    sizes = {
        "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
                    "attention_types": [[["global", "local"], 1]]},
    }  # fmt: skip
    from transformers import AutoConfig

    fast = tiny_tokenizer()
    config = AutoConfig.for_model(architecture, vocab_size=len(fast), num_labels=1, **sizes[architecture])
    model = AutoModelForSequenceClassification.from_config(config)
    randomize(model)
    model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    inner = "attn__attention" if architecture == "gpt_neo" else "attn"
    mask, value = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril(), torch.tensor(-1e4)
    for i in range(2):
        masks = {f"transformer__h__{i}__{inner}__bias": mask, f"transformer__h__{i}__{inner}__masked_bias": value}
        add_tensors(tmp_path, **masks)
    assert served(tmp_path)[0] == pytest.approx(plain_scores(tmp_path), abs=1e-5)


def test_buffers_that_the_class_computes_by_itself_are_left_out(tmp_path):
    from transformers import XGLMConfig, XGLMForCausalLM

    fast = tiny_tokenizer()
    config = XGLMConfig(vocab_size=len(fast), d_model=32, ffn_dim=64, num_layers=2, attention_heads=4,
                        max_position_embeddings=64)  # fmt: skip
    model = XGLMForCausalLM(config)
    model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    row = torch.tensor([ROWS[1]])
    with torch.no_grad():
        expected = model.eval().model(row).last_hidden_state
    add_tensors(tmp_path, model__embed_positions__weights=torch.zeros(66, 32))
    backbone = read_backbone(str(tmp_path)).network.backbone.eval()
    with torch.no_grad():
        assert torch.equal(backbone(row).last_hidden_state, expected)


def test_a_merge_of_a_model_that_overflows_is_left_to_the_check_of_its_scores(tmp_path, base):
    adapter(tmp_path / "adapter", base)
    edit_tensor(base / "model.safetensors", "model.norm.weight", lambda weight: weight * float("nan"))
    assert read(str(tmp_path / "adapter")).network is not None


def test_a_bias_of_attention_that_is_no_mask_is_still_refused(tmp_path):
    language_model(tmp_path, "gpt2")
    add_tensors(tmp_path, transformer__h__0__attn__c_attn__gate__bias=torch.ones(32))
    with pytest.raises(CheckpointError, match="have no place in this architecture"):
        read_backbone(str(tmp_path))


# -- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_splits_control_tokens_is_refused_by_its_setting(tmp_path):
    sequence_classifier(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", split_special_tokens=True)
    output = refused(tmp_path)
    assert "split_special_tokens" in output
    assert "tokenizer_config.json" in output


@pytest.mark.parametrize("where", ["one file", "a folder", "beside a template of tokenizer_config.json"])
def test_named_templates_without_a_default_are_refused_with_their_names(tmp_path, where):
    sequence_classifier(tmp_path)
    templates = {"rlhf": CHATML, "tool_use": CHATML}
    (tmp_path / "chat_template.jinja").unlink()
    if where == "one file":
        listed = [{"name": name, "template": template} for name, template in templates.items()]
        edit_json(tmp_path / "tokenizer_config.json", chat_template=listed)
    else:
        (tmp_path / "additional_chat_templates").mkdir()
        for name, template in templates.items():
            (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    if where.startswith("beside"):
        edit_json(tmp_path / "tokenizer_config.json", chat_template=CHATML)
    with pytest.raises(ValueError, match="no default"):
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template([{"role": "user", "content": "a"}])
    output = refused(tmp_path)
    assert "rlhf, tool_use" in output
    assert "chat_template.jinja" in output


def test_the_default_of_several_templates_is_taken(tmp_path):
    sequence_classifier(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rlhf.jinja").write_text("{{ 'other' }}")
    assert read_without_weights(str(tmp_path)).policy.template == CHATML


def test_a_second_template_in_tokenizer_config_is_left_out_with_a_note(tmp_path):
    sequence_classifier(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    checkpoint = read_without_weights(str(tmp_path))
    assert checkpoint.policy.template == AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML
    assert any("tokenizer_config.json" in note for note in checkpoint.notes)


def test_the_same_template_twice_needs_no_note(tmp_path):
    sequence_classifier(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", chat_template=CHATML)
    assert read_without_weights(str(tmp_path)).notes == ()


def test_half_a_tokenizer_beside_an_adapter_is_refused(tmp_path, base):
    adapter(tmp_path / "adapter", base)
    (tmp_path / "adapter" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 'other' }}"}))
    output = refused(tmp_path / "adapter")
    assert "tokenizer_config.json" in output
    assert "tokenizer.json" in output


def test_a_causal_model_is_read_as_before(tmp_path):
    language_model(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path) is not None
    assert read_backbone(str(tmp_path)).notes == ()
