"""`rewardserve export`: a failure keeps the existing files, and its options reach the files that it reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.checkpoint import CheckpointError, ReadOptions, read_backbone, read_without_weights, writing
from rewardserve.model.contract import FILE_NAME, ScoringContract
from rewardserve.model.export import main as export
from rewardserve.training.results import export as training_export
from tests.support.checkpoints import PROBES, language_model, reward_model, sequence_classifier


def pickled(folder: Path) -> Path:
    """The checkpoint with its weights as a torch pickle."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    return folder


@pytest.fixture
def bound(tmp_path):
    """A checkpoint with a written contract."""
    reward_model(tmp_path / "rm")
    return tmp_path / "rm"


def probes(path: Path, *responses: str) -> str:
    path.write_text("".join(json.dumps({"prompt": "Hi", "response": r}) + "\n" for r in responses))
    return str(path)


@pytest.mark.parametrize("wrong", ["probe", "weights", "memory", "disk"])
def test_an_export_that_fails_keeps_the_contract_that_is_there(bound, tmp_path, monkeypatch, wrong):
    before = (bound / FILE_NAME).read_bytes()
    arguments = [str(bound)]
    if wrong == "probe":
        arguments += ["--probes", probes(tmp_path / "p.jsonl", "fine", "")]
    elif wrong == "weights":
        (bound / "model.safetensors").write_bytes(b"cut off")
    elif wrong == "memory":
        monkeypatch.setattr(writing, "score_single_row", lambda *_: (_ for _ in ()).throw(MemoryError()))
    else:

        def full(path: Path, text: str, *_: object, **__: object) -> int:
            with path.open("w") as file:
                file.write(text[:100])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
    if wrong == "memory":
        with pytest.raises(MemoryError):
            export(arguments)
    else:
        assert export(arguments) == 1
    assert (bound / FILE_NAME).read_bytes() == before
    assert not list(bound.glob("*.new"))


def test_a_contract_that_a_newer_file_format_made_unreadable_is_written_again(bound):
    (bound / FILE_NAME).write_text(json.dumps({"format": 99, "ending": "template", "reads_at": "last"}))
    assert export([str(bound)]) == 0
    assert ScoringContract.load(bound) is not None


def test_an_export_into_a_folder_that_fails_leaves_no_half_of_a_checkpoint(bound, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise CheckpointError("a probe is off")

    monkeypatch.setattr("rewardserve.model.export.write_contract", fail)
    (tmp_path / "there").mkdir()
    for name in ("out", "there"):
        assert export([str(bound), str(tmp_path / name)]) == 1
        assert not (tmp_path / name).exists() or not list((tmp_path / name).iterdir())


def test_an_export_that_sigterm_ends_leaves_no_half_of_a_checkpoint(bound, tmp_path, monkeypatch):
    def terminate(*_: object, **__: object) -> None:
        assert (tmp_path / "out" / "config.json").is_file()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("rewardserve.model.export.write_contract", terminate)
    with pytest.raises(KeyboardInterrupt):
        export([str(bound), str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_pickles_are_read_where_they_are_allowed_also_for_a_contract_alone(tmp_path, capsys):
    sequence_classifier(tmp_path / "rm")
    pickled(tmp_path / "rm")
    assert export([str(tmp_path / "rm")]) == 1
    assert "safetensors" in capsys.readouterr().err
    assert export(["--allow-pickle", str(tmp_path / "rm")]) == 0
    assert ScoringContract.load(tmp_path / "rm") is not None


def test_the_contract_of_heads_over_a_pickled_base_is_written_where_training_was_allowed_to_read_it(tmp_path):
    base = pickled(language_model(tmp_path / "sft"))
    trained = read_backbone(str(base), ReadOptions(allow_pickle=True))
    training_export.export_heads(tmp_path / "heads", trained, str(base))
    training_export.export_contract(tmp_path / "heads", trained, PROBES[:2])
    assert read_without_weights(str(tmp_path / "heads"), ReadOptions(allow_pickle=True)).contract is not None


def test_a_contract_alone_is_written_under_the_clauses_that_the_operator_names(tmp_path):
    sequence_classifier(tmp_path / "rm")
    shutil.copytree(tmp_path / "rm", tmp_path / "plain")
    assert export([str(tmp_path / "rm"), "--ending", "end_token", "--reads-at", "last"]) == 0
    named = ScoringContract.load(tmp_path / "rm")
    inferred = load("torch", ModelSpec(str(tmp_path / "plain"))).contract
    assert (named.ending, named.reads_at) == ("end_token", "last")
    assert (inferred.ending, inferred.reads_at) == ("template", "last_non_pad")


def test_the_name_of_the_default_model_is_exported_as_its_folder(bound, tmp_path, monkeypatch):
    monkeypatch.setattr("rewardserve.model.export.DEFAULT_FOLDER", bound)
    assert export(["default", str(tmp_path / "out")]) == 0
    assert ScoringContract.load(tmp_path / "out").probes == ScoringContract.load(bound).probes
