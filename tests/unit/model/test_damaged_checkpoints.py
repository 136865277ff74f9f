"""Checkpoints that were half copied, half written or changed by a bit: refused in words that name the file or the clause."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.checkpoint.weights import digest, weight_files
from rewardserve.model.contract import ScoringContract
from rewardserve.model.scorer import TokenBatch
from tests.support.checkpoints import reward_model
from tests.support.service_server import drill, run_to_end

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "rm"
    reward_model(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "rm")


def served(folder, **spec):
    return load("torch", ModelSpec(str(folder), device="cpu", **spec))


def refused(folder, **spec):
    with pytest.raises(LoadError) as error:
        served(folder, **spec)
    return str(error.value)


NOT_WHOLE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "other bytes": lambda data: b"\xff\x00\xfe" * 50,
    "a list": lambda data: b"[]",
    "a number": lambda data: b"5",
    "null": lambda data: b"null",
    "deep": lambda data: b"[" * 200_000,
}
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "calibration.json", "scoring_contract.json",
         "model.safetensors.index.json", "model.safetensors", "reward_heads.safetensors"]  # fmt: skip


@pytest.mark.parametrize("how", NOT_WHOLE)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_whole_is_named(folder, name, how):
    path = folder / name
    path.write_bytes(NOT_WHOLE[how](path.read_bytes()))
    output = refused(folder)
    assert output.startswith(f"{path} is unreadable: ")
    assert "copy it again" in output


def test_a_configuration_that_says_nothing_is_told_so(folder):
    (folder / "config.json").write_text("{}")
    assert "config.json has no model_type: it does not say what the model is" in refused(folder)


@pytest.mark.parametrize("cut", [1, 7, 8, 100, 5000])
def test_weights_that_lack_their_last_bytes_are_told_by_their_size(folder, cut):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert f"{len(data) - cut} bytes, but its header names {len(data)}" in refused(folder)


def test_a_header_that_cannot_be_one_is_not_read(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**31)
    assert "its header would have 1073741824 bytes" in refused(folder)


def test_a_shard_that_is_missing_is_named(folder):
    (folder / "model.safetensors").unlink()
    assert "it names model.safetensors, which does not exist" in refused(folder)


def test_one_of_several_shards_that_is_missing_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, mine in shards.items():
        save_file({name: weights[name] for name in mine}, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: shard for shard, mine in shards.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert served(folder).report.holds, "whole, it is served"
    (folder / "model-2.safetensors").unlink()
    assert "it names model-2.safetensors, which does not exist" in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_pickle_that_is_cut_off_is_named(folder, name):
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert f"{name} is unreadable: it is truncated" in refused(folder)


def test_a_template_that_is_cut_off_is_said_so(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text()[:70])
    assert "chat template is broken" in refused(folder)


@pytest.mark.parametrize("at", [0.4, 0.8])
def test_one_bit_of_the_weights_breaks_the_contract_by_the_name_of_its_clause(folder, at):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) + 2] ^= 0x10
    path.write_bytes(data)
    assert "contract clause 'weights' is broken" in refused(folder)


# -- NaN --------------------------------------------------------------------------------------------------------


def poison(folder, name="model.norm.weight"):
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_nan_break_the_contract(folder):
    poison(folder)
    assert "contract clause 'weights' is broken" in refused(folder)


def test_weights_that_were_nan_when_the_contract_was_written_break_its_probes(folder):
    poison(folder)
    contract = ScoringContract.load(folder)
    now = digest(weight_files(folder), without=("score.weight",))
    replace(contract, weights_digest=now).save(folder)
    assert "contract clause 'scores' is broken" in refused(folder)


def test_weights_that_are_nan_are_refused_where_there_is_no_contract_either(folder):
    (folder / "scoring_contract.json").unlink()
    assert served(folder).report.origin == "inferred"
    poison(folder)
    assert "gives no finite score" in refused(folder)


def test_who_serves_nan_knowingly_gets_nan_from_the_scorer_and_no_other_number(folder):
    poison(folder)
    (heads,) = served(folder, contract_mode="warn").scorer.score(TokenBatch(((1, 2, 3),))).rows
    assert all(value != value for value in heads.values())


def test_weights_that_turn_nan_while_they_are_served_give_each_row_its_error_and_never_a_number():
    with drill("nan:") as server:
        reply = server.score({"text": "a"}, {"text": "b"}).json()
        assert reply["rewards"] == [None, None]
        assert [result["error"]["code"] for result in reply["results"]] == ["score_not_finite"] * 2
        assert server.metric("rewardserve_samples_total", outcome="score_not_finite") == 2


# -- the process ------------------------------------------------------------------------------------------------


def test_the_server_says_it_in_words_with_exit_code_1(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    exit_code, output = run_to_end(f"{folder}", "--port=0", "--device=cpu")
    assert exit_code == 1
    assert "its header names" in output
    assert "Traceback" not in output


def test_a_tokenizer_without_a_part_is_refused_by_that_part(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert "has no tokenizer that loads: added_tokens is missing" in refused(folder)


def test_a_tokenizer_that_is_gone_is_named_instead_of_packages(folder):
    (folder / "tokenizer.json").unlink()
    said = refused(folder)
    assert f"{folder} has no tokenizer.json" in said
    assert "sentencepiece" not in said
