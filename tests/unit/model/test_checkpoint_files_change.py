"""A model that has been read is its own: what becomes of its files afterwards changes no score.

The library that reads safetensors hands out views of the mapped file. A trainer that saves into the same folder writes over those
pages, or cuts them off, which ends a process that reads them (SIGBUS): here only bytes are changed, so that a failure is a failure.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rewardserve.model.checkpoint import ReadOptions, read
from rewardserve.model.checkpoint.writing import score_alone
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
    before = [score_alone(network, row) for row in ROWS]
    states = torch.linspace(-1, 1, 32).repeat(2, 1)
    distances = None if reference is None else reference.log_distance(states).tolist()
    assert write_over(tmp_path)
    assert [score_alone(network, row) for row in ROWS] == before
    assert distances is None or reference.log_distance(states).tolist() == distances
    assert mapped(tmp_path) == [], "a file that is cut off would end the process"
