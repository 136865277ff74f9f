"""A loaded model is independent of its files: later changes of them alter no score, and changes during a read end no process.

The library that reads safetensors hands out views of the mapped file. A trainer that saves into the same folder writes over those
pages, or cuts them off, which ends a process that reads them (SIGBUS): files are cut off here only while nothing is mapped, so that
a failure is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rewardserve.model.checkpoint import (
    CheckpointError,
    ReadOptions,
    load_weights,
    read,
    read_without_weights,
    reading,
    weights,
)
from rewardserve.model.checkpoint.writing import score_single_row
from tests.support.checkpoints import hidden_reference, language_model, reward_model, sequence_classifier, value_head

ROWS = [[5, 9, 77, 2], [1, 200, 2, 33, 8, 8, 2], [7, 2]]
ALLOWED = ReadOptions(allow_pickle=True, dtype="float32")


def write_over(folder: Path) -> list[Path]:
    """Change every byte of every file of tensors, in place: the same file with other content."""
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    for path in files:
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.write(bytes(byte ^ 0x15 for byte in content))
    return files


def mapped(folder: Path) -> list[str]:
    """The files below a folder that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def own_layout(folder):
    reward_model(folder, heads={"helpful": 1.0, "harmless": 0.5})
    hidden_reference(folder)


def pickle(folder):
    sequence_classifier(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def adapter(folder):
    base = language_model(folder.parent / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"], base_model_name_or_path=str(base))
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), lora)
    model.save_pretrained(folder)


LAYOUTS = {
    "own": own_layout,
    "sequence classifier": sequence_classifier,
    "pickle": pickle,
    "value head of its own": lambda folder: value_head(folder, separate=True),
    "value head among the weights": lambda folder: value_head(folder, separate=False),
    "adapter": adapter,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_are_written_over_change_no_score(tmp_path, layout):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    LAYOUTS[layout](folder)
    checkpoint = read(str(folder), ALLOWED)
    network, reference = checkpoint.network, checkpoint.hidden
    before = [score_single_row(network, row) for row in ROWS]
    states = torch.linspace(-1, 1, 32).repeat(2, 1)
    distances = None if reference is None else reference.log_distance(states).tolist()
    assert write_over(tmp_path)
    assert [score_single_row(network, row) for row in ROWS] == before
    assert distances is None or reference.log_distance(states).tolist() == distances
    assert mapped(tmp_path) == [], "a file that is cut off would end the process"


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "pickle"])
def test_no_file_of_tensors_is_mapped_once_the_tensors_are_there(tmp_path, layout, monkeypatch):
    """Before they are copied, which takes the longest: a process that maps them would end (SIGBUS) where one is cut off."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    LAYOUTS[layout](folder)
    expected = [score_single_row(read(str(folder), ALLOWED).network, row) for row in ROWS]
    copy, seen = reading._copy_out_of_files, []

    def cut_first(network):
        seen.append(mapped(tmp_path))
        if not seen[-1]:
            for path in tmp_path.rglob("*.safetensors"):
                os.truncate(path, 4096)
        copy(network)

    monkeypatch.setattr(reading, "_copy_out_of_files", cut_first)
    network = read(str(folder), ReadOptions(dtype="float32")).network
    assert seen == [[]]
    assert [score_single_row(network, row) for row in ROWS] == expected


def test_a_file_that_is_cut_off_while_it_is_read_is_refused_by_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    own_layout(folder)
    file, pages, asked = folder / "model.safetensors", weights.allocate_pages, []

    def cut_at_the_third(n_bytes):
        asked.append(n_bytes)
        if len(asked) == 3:
            os.truncate(file, 4096)
        return pages(n_bytes)

    outlined = read_without_weights(str(folder), ReadOptions(dtype="float32"))
    monkeypatch.setattr(weights, "allocate_pages", cut_at_the_third)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was truncated while it was read"):
        load_weights(outlined)


def test_every_type_of_tensor_is_read_as_the_library_reads_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    types = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.complex64,
    ]  # fmt: skip
    shapes = [(), (0, 3), (5,), (3, 1, 2), (300, 200)]
    tensors = {
        f"{kind}.{i}": (torch.rand(shape, generator=generator) * 9).to(kind)
        for kind in types
        for i, shape in enumerate(shapes)
    }
    save_file(tensors, tmp_path / "t.safetensors", metadata={"a": "b"})
    ours, theirs = weights.read_all([tmp_path / "t.safetensors"]), load_file(tmp_path / "t.safetensors")
    assert set(ours) == set(tensors)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name
    some = weights.read_tensors(tmp_path / "t.safetensors", ["torch.int8.2"])
    assert {name: tensor.tolist() for name, tensor in some.items()} == {
        "torch.int8.2": tensors["torch.int8.2"].tolist()
    }
    assert weights.metadata(tmp_path / "t.safetensors") == {"a": "b"}
