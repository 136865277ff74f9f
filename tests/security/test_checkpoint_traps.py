"""A checkpoint is data. Whatever program is hidden in one, reading it runs none of it and says why it is refused."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rewardserve.model import check
from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.checkpoint import CheckpointError, ReadOptions, read, read_backbone, read_without_weights, write
from rewardserve.service.settings import ScoreSettings, ServeSettings
from tests.support.checkpoints import edit_json, language_model, reward_model, sequence_classifier, value_head

HELP = "or set allow_pickle"


class Program:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def sprung(tmp_path, monkeypatch):
    """The file that a trap leaves behind. Nobody is asked whether to run anything, and nobody could say yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("the library asked whether to run a program"))
    path = tmp_path / "sprung"
    yield path
    assert not path.exists(), "a program in the checkpoint was run"


def trap(path: Path, sprung: Path) -> None:
    """A file as torch.save writes one, and a bare pickle, alike: what is read first is the program."""
    torch.save({"score.weight": Program(sprung)}, path)


def bare_trap(path: Path, sprung: Path) -> None:
    path.write_bytes(pickle.dumps({"v_head.summary.weight": Program(sprung)}))


def lora_adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = language_model(folder.parent / "base")
    lora = LoraConfig(
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["score"],
        base_model_name_or_path=str(base),
        task_type="SEQ_CLS",
    )
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    whole.score.weight.data.normal_()
    get_peft_model(whole, lora).save_pretrained(folder)


def in_weights(folder, sprung, lay):
    sequence_classifier(folder)
    (folder / "model.safetensors").unlink()
    lay(folder / "pytorch_model.bin", sprung)


def in_a_shard(folder, sprung, lay):
    sequence_classifier(folder)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"score.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    lay(folder / "pytorch_model-00001-of-00001.bin", sprung)


def in_a_shard_that_says_it_is_safe(folder, sprung, lay):
    sequence_classifier(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"score.weight": "weights.bin"}}))
    lay(folder / "weights.bin", sprung)


def in_a_value_head(folder, sprung, lay):
    language_model(folder)
    lay(folder / "value_head.bin", sprung)


def in_an_adapter(folder, sprung, lay):
    lora_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    lay(folder / "adapter_model.bin", sprung)


PLACES = [in_weights, in_a_shard, in_a_shard_that_says_it_is_safe, in_a_value_head, in_an_adapter]


@pytest.mark.parametrize("lay", [trap, bare_trap])
@pytest.mark.parametrize("place", PLACES)
def test_a_program_in_a_pickle_is_never_run(tmp_path, sprung, place, lay):
    folder = tmp_path / "model"
    place(folder, sprung, lay)
    for reader in (read, read_without_weights):
        with pytest.raises(CheckpointError, match=HELP):
            reader(str(folder))
        with pytest.raises(CheckpointError, match="no code of it was run"):
            reader(str(folder), ReadOptions(allow_pickle=True))


def test_the_trap_is_one(tmp_path):
    path = tmp_path / "sprung"
    trap(tmp_path / "file.bin", path)
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert path.exists()


def test_a_language_model_to_train_from_is_held_to_the_same(tmp_path, sprung):
    folder = tmp_path / "model"
    language_model(folder)
    (folder / "model.safetensors").unlink()
    trap(folder / "pytorch_model.bin", sprung)
    with pytest.raises(CheckpointError, match=HELP):
        read_backbone(str(folder))
    with pytest.raises(CheckpointError):
        read_backbone(str(folder), ReadOptions(allow_pickle=True))


def test_an_honest_pickle_is_refused_with_the_remedy_and_read_where_it_is_allowed(tmp_path, capsys):
    sequence_classifier(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert check.main([str(tmp_path), "--device=cpu"]) == 1
    assert "or set --allow-pickle" in capsys.readouterr().err
    assert check.main([str(tmp_path), "--device=cpu", "--allow-pickle"]) == 0


def test_a_pickle_beside_safetensors_is_not_even_opened(tmp_path, sprung):
    sequence_classifier(tmp_path)
    bare_trap(tmp_path / "pytorch_model.bin", sprung)
    bare_trap(tmp_path / "training_args.bin", sprung)
    bare_trap(tmp_path / "optimizer.pt", sprung)
    read(str(tmp_path))


def test_the_setting_is_there_for_server_and_bulk_scoring(monkeypatch):
    monkeypatch.setenv("REWARD_ALLOW_PICKLE", "1")
    assert ServeSettings().model_spec().allow_pickle
    assert ScoreSettings(input="a", output="b").model_spec().allow_pickle
    monkeypatch.delenv("REWARD_ALLOW_PICKLE")
    assert not ServeSettings().model_spec().allow_pickle


# -- code that a checkpoint brings along ------------------------------------------------------------------------------


def with_code(folder: Path, sprung: Path) -> None:
    code = f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\nclass Mine: pass\n"
    (folder / "modeling_mine.py").write_text(code)
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    edit_json(folder / "config.json", auto_map=dict.fromkeys(names, "modeling_mine.Mine"))
    edit_json(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_mine.Mine", "modeling_mine.Mine"]}
    )


@pytest.mark.parametrize("reader", [read, read_without_weights, read_backbone])
def test_an_architecture_that_only_its_own_code_knows_is_refused(tmp_path, sprung, reader):
    folder = tmp_path / "model"
    sequence_classifier(folder)
    with_code(folder, sprung)
    edit_json(folder / "config.json", model_type="mine", architectures=["MineForSequenceClassification"])
    with pytest.raises(CheckpointError, match="never run"):
        reader(str(folder))
    with pytest.raises(CheckpointError, match="never run here"):
        reader(str(folder), ReadOptions(ignore_checkpoint_code=True))


def test_a_tokenizer_that_only_its_own_code_knows_is_refused(tmp_path, sprung):
    folder = tmp_path / "model"
    sequence_classifier(folder)
    with_code(folder, sprung)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="MineTokenizer")
    with pytest.raises(CheckpointError, match="never run"):
        read(str(folder))
    with pytest.raises(CheckpointError, match="never run here"):
        read(str(folder), ReadOptions(ignore_checkpoint_code=True))


NAMED = {
    "its classifier": ("config.json", {"auto_map": {"AutoModelForSequenceClassification": "modeling_mine.Mine"}}),
    "another class": ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}),
    "its configuration": ("config.json", {"auto_map": {"AutoConfig": "somebody/repo--configuration_mine.Mine"}}),
    "a part of it": ("config.json", {"text_config": {"auto_map": {"AutoModel": "modeling_mine.Mine"}}}),
    "a text": ("config.json", {"auto_map": "modeling_mine.Mine"}),
    "a pipeline": (
        "config.json",
        {"custom_pipelines": {"reward": {"impl": "modeling_mine.Mine", "pt": ["AutoModel"]}}},
    ),
    "its tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "modeling_mine.Mine"]}}),
}


@pytest.mark.parametrize("named", NAMED)
def test_code_that_a_checkpoint_names_is_not_replaced_in_silence(tmp_path, sprung, named):
    folder = tmp_path / "model"
    sequence_classifier(folder)
    with_code(folder, sprung)
    edit_json(folder / "config.json", auto_map=None)
    edit_json(folder / "tokenizer_config.json", auto_map=None)
    file, entry = NAMED[named]
    edit_json(folder / file, **entry)
    for reader in (read, read_without_weights, read_backbone):
        with pytest.raises(CheckpointError) as error:
            reader(str(folder))
        for word in ("mine.Mine", file, "never run", "set ignore_checkpoint_code"):
            assert word in str(error.value)


def test_by_setting_it_is_read_by_the_librarys_code_and_a_note_says_so(tmp_path, sprung, monkeypatch, capsys):
    folder = tmp_path / "model"
    sequence_classifier(folder)
    with_code(folder, sprung)
    assert check.main([str(folder)]) == 1
    assert "modeling_mine.Mine" in capsys.readouterr().err
    for reader in (read, read_without_weights):
        checkpoint = reader(str(folder), ReadOptions(ignore_checkpoint_code=True))
        assert type(checkpoint.network.backbone).__module__.startswith("transformers.")
        [note] = checkpoint.notes
        assert "AutoModelForSequenceClassification = modeling_mine.Mine" in note
        assert "ignored by setting" in note
    assert check.main([str(folder), "--ignore-checkpoint-code"]) == 0
    assert "ignored by setting" in capsys.readouterr().out
    assert read_backbone(str(folder), ReadOptions(ignore_checkpoint_code=True)).format == "language_model"
    monkeypatch.setenv("REWARD_IGNORE_CHECKPOINT_CODE", "1")
    assert ServeSettings().model_spec().ignore_checkpoint_code
    assert ScoreSettings(input="a", output="b").model_spec().ignore_checkpoint_code
    monkeypatch.delenv("REWARD_IGNORE_CHECKPOINT_CODE")
    assert not ServeSettings().model_spec().ignore_checkpoint_code


def test_an_adapter_over_a_base_with_code_of_its_own_is_refused(tmp_path, sprung):
    folder = tmp_path / "model"
    lora_adapter(folder)
    base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    edit_json(base / "config.json", auto_map={"AutoModel": "modeling_mine.Mine"})
    with pytest.raises(CheckpointError, match=r"modeling_mine\.Mine"):
        read(str(folder))
    assert read(str(folder), ReadOptions(ignore_checkpoint_code=True)).notes


def test_an_adapter_that_was_trained_around_code_of_its_own_is_refused(tmp_path):
    folder = tmp_path / "model"
    lora_adapter(folder)
    mapping = {"base_model_class": "Mine", "parent_library": "transformers_modules.repo.modeling_mine"}
    edit_json(folder / "adapter_config.json", auto_mapping=mapping)
    with pytest.raises(CheckpointError, match=r"modeling_mine"):
        read(str(folder))


def test_empty_names_and_modules_of_the_library_are_no_code(tmp_path):
    folder = tmp_path / "model"
    lora_adapter(folder)
    mapping = {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama.modeling_llama"}
    edit_json(folder / "adapter_config.json", auto_mapping=mapping)
    base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    edit_json(base / "tokenizer_config.json", auto_map={})
    edit_json(base / "config.json", auto_map={}, custom_pipelines={})
    assert read(str(folder)).notes == ()


def test_a_contract_with_probes_stands_for_the_code_that_is_ignored(tmp_path, sprung):
    """Its probes were scored without that code, and are scored again at load."""
    folder = tmp_path / "model"
    reward_model(folder)
    with_code(folder, sprung)
    loaded = load("torch", ModelSpec(str(folder)))
    assert loaded.report.holds
    assert any("modeling_mine.Mine" in note for note in loaded.identity.engine_notes)


def test_what_we_write_names_no_code(tmp_path, sprung):
    language_model(tmp_path / "sft")
    with_code(tmp_path / "sft", sprung)
    start = read_backbone(str(tmp_path / "sft"), ReadOptions(ignore_checkpoint_code=True))
    write(tmp_path / "rm", start.network, start.tokenizer, policy=start.policy)
    assert read(str(tmp_path / "rm")).notes == ()


def test_an_adapter_names_no_module_to_import(tmp_path, sprung, monkeypatch):
    folder = tmp_path / "model"
    lora_adapter(folder)
    (tmp_path / "trapped_module.py").write_text(f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit_json(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="trapped_module")
    read(str(folder))


def test_value_heads_as_llama_factory_writes_them_are_read_with_permission(tmp_path):
    value_head(tmp_path, separate=True)
    stored = load_file(tmp_path / "value_head.safetensors")
    torch.save(stored, tmp_path / "value_head.bin")
    (tmp_path / "value_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"value_head\.bin is a pickle"):
        read(str(tmp_path))
    assert read(str(tmp_path), ReadOptions(allow_pickle=True)).format == "llama_factory"
