"""Breaking any clause of the contract is caught at load, named, and comes with its remedy."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import pstdev

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rewardserve.model.backends import ContractBroken, LoadError, ModelSpec, load
from rewardserve.model.checkpoint import write_contract
from rewardserve.model.contract import FORMAT, ContractUnreadable, ScoringContract
from rewardserve.model.conversation import InputTooLong, Sample
from tests.support.checkpoints import PROBES, edit_json, edit_tensor, reward_model, sequence_classifier
from tests.support.tiny import LLAMA3_LIKE


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "rm"
    reward_model(folder, heads={"a": 0.5, "b": 1.0}, template=LLAMA3_LIKE, bos="<s>")
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "rm"))


def breaches(folder: Path, **spec) -> dict[str, str]:
    with pytest.raises(ContractBroken) as error:
        load("torch", ModelSpec(str(folder), **spec))
    found = {b.clause: str(b) for b in error.value.report.breaches}
    for clause, text in found.items():
        assert clause in text
        assert "Remedy: " in text
        assert text in str(error.value)
    return found


def test_an_untouched_checkpoint_keeps_its_contract(folder):
    loaded = load("torch", ModelSpec(str(folder), matmul_precision="highest"))
    assert loaded.report.holds
    assert loaded.report.origin == "written"
    assert loaded.report.n_probes == 16
    assert loaded.report.max_probe_error < 1e-5


def test_products_of_high_precision_stay_far_within_what_the_contract_allows(folder):
    loaded = load("torch", ModelSpec(str(folder)))
    spread = pstdev(probe.score for probe in loaded.contract.probes)
    assert loaded.report.max_probe_error < 1e-3 * spread / 4


def test_the_probes_hold_what_a_plain_forward_gives(folder):
    from transformers import AutoModelForSequenceClassification

    contract = ScoringContract.load(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for probe in contract.probes:
        with torch.no_grad():
            assert plain(torch.tensor([probe.ids])).logits[0, 0].item() == pytest.approx(probe.score, abs=1e-5)


def test_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("[assistant]", "[bot]"))
    assert "scoring_contract.json" in breaches(folder)["template"]


def test_bos(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    assert "BOS is 0, training used 3" in breaches(folder)["bos"]


def test_bos_that_is_no_longer_written(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ bos_token }}", ""))
    assert "BOS is None, training used 3" in breaches(folder)["bos"]


def test_eos(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", "<|endoftext|>"))
    assert "'<|endoftext|>'" in breaches(folder)["eos"]


def test_eos_where_the_template_does_not_close_a_turn(tmp_path):
    folder = tmp_path / "rm"
    reward_model(folder, template=None, contract=False)
    (folder / "chat_template.jinja").unlink()  # ours writes the end token, whatever the tokenizer calls EOS
    write_contract(folder, probes=PROBES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    assert "training used '<|im_end|>'" in breaches(folder)["eos"]


def test_pad(folder):
    edit_json(folder / "config.json", pad_token_id=0)
    assert "pad_token_id to 4" in breaches(folder)["pad"]


def test_tokenizer(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    del state["model"]["merges"][10]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert "tokenizer" in breaches(folder)


def test_weights(folder):
    edit_tensor(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight", lambda w: w + 1e-3)
    found = breaches(folder)
    assert set(found) == {"weights"}


def test_head(folder):
    heads = load_file(folder / "reward_heads.safetensors")
    from safetensors import safe_open

    with safe_open(str(folder / "reward_heads.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    heads["a"] = heads["a"] + 0.01
    save_file(heads, folder / "reward_heads.safetensors", metadata=metadata)
    edit_tensor(folder / "model.safetensors", "score.weight", lambda w: w + 0.5 * 0.01)
    assert set(breaches(folder)) == {"head"}


def test_dtype_beyond_tolerance(folder):
    contract = ScoringContract.load(folder)
    replace(contract, dtype_tolerance=()).save(folder)
    assert "dtype=float32" in breaches(folder, dtype="bfloat16")["dtype"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_reduced_type_within_its_tolerance_is_served(folder, dtype):
    loaded = load("torch", ModelSpec(str(folder), dtype=dtype))
    assert loaded.identity.dtype == dtype
    assert loaded.report.max_probe_error > 1e-6, "it is another type, so it gives other numbers"


def test_scores_that_differ_for_no_known_reason(folder):
    contract = ScoringContract.load(folder)
    probes = (replace(contract.probes[0], score=contract.probes[0].score + 0.1), *contract.probes[1:])
    replace(contract, probes=probes).save(folder)
    assert (
        "1 of 16 golden probes are off, the worst (probe 0) by 0.1"
        in breaches(folder, matmul_precision="highest")["scores"]
    )


def test_a_score_that_is_not_a_number_never_passes(folder):
    contract = ScoringContract.load(folder)
    replace(contract, probes=(replace(contract.probes[0], score=float("nan")), *contract.probes[1:])).save(folder)
    assert "scores" in breaches(folder)


def test_ids_that_differ_for_no_known_reason(folder):
    contract = ScoringContract.load(folder)
    probe = contract.probes[2]
    replace(contract, probes=(*contract.probes[:2], replace(probe, ids=(*probe.ids[:4], 9, *probe.ids[5:])))).save(
        folder
    )
    assert "the first difference is at 4" in breaches(folder)["encoding"]


def test_the_contracts_truncation_is_the_one_that_is_served(folder):
    write_contract(folder, probes=PROBES[:2], max_tokens=90, truncation="error")
    loaded = load("torch", ModelSpec(str(folder)))
    assert loaded.contract.truncation == "error"
    with pytest.raises(InputTooLong):
        loaded.encode(Sample(prompt="a " * 200, response="b"))


def test_every_file_of_a_checkpoint_can_be_read_by_another_user(folder):
    assert {f.name for f in folder.iterdir() if f.stat().st_mode & 0o044 != 0o044} == set()


def test_warn_goes_on_knowingly(folder):
    edit_json(folder / "config.json", pad_token_id=0)
    loaded = load("torch", ModelSpec(str(folder), contract_mode="warn"))
    assert not loaded.report.holds
    assert [b.clause for b in loaded.report.breaches] == ["pad"]


def test_a_foreign_checkpoint_gets_an_inferred_contract_and_says_so(tmp_path):
    sequence_classifier(tmp_path)
    loaded = load("torch", ModelSpec(str(tmp_path)))
    assert loaded.contract.origin == "inferred"
    assert loaded.report.origin == "inferred"
    assert loaded.report.n_probes == 0
    assert loaded.contract.digest.startswith("sha256:")


@pytest.mark.parametrize("truncation", ["prompt_left", "error", None])
def test_the_serving_limit_may_be_lower_than_the_probes_are_long(folder, truncation):
    assert min(len(p.ids) for p in ScoringContract.load(folder).probes) > 12
    loaded = load("torch", ModelSpec(str(folder), max_input_tokens=12, truncation=truncation))
    assert loaded.report.holds
    assert loaded.identity.max_tokens == 12
    with pytest.raises(InputTooLong):
        loaded.encode(Sample(prompt="a", response="b " * 40))


def test_the_serving_limit_may_not_be_higher_than_the_contracts(folder):
    with pytest.raises(LoadError, match="max_input_tokens=999"):
        load("torch", ModelSpec(str(folder), max_input_tokens=999))


def test_a_probe_that_cannot_be_encoded_any_more_breaks_the_contract_by_name(folder):
    contract = ScoringContract.load(folder)
    refused = replace(contract.probes[0], sample={"prompt": "a", "response": ""})
    replace(contract, probes=(refused, *contract.probes[1:])).save(folder)
    assert "encodes to 0 ids" in breaches(folder)["encoding"]


def test_a_probe_that_cannot_be_scored_any_more_breaks_the_contract_by_name(folder):
    contract = ScoringContract.load(folder)
    probe = contract.probes[0]
    ids = (*probe.ids[:-1], 10**6)
    broken = replace(probe, sample={"input_ids": list(probe.ids)}, ids=ids)
    replace(contract, probes=(broken, *contract.probes[1:])).save(folder)
    with pytest.raises(ContractBroken) as error:
        load("torch", ModelSpec(str(folder), matmul_precision="highest"))
    assert "encoding" in {b.clause for b in error.value.report.breaches}
    assert error.value.report.max_probe_error < 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "unreadable"),
        ('{"format": 99}', "format 99"),
        (f'{{"format": {FORMAT}, "colour": 3}}', "colour"),
        ("{}", "names no format"),
    ],
)
def test_a_contract_that_cannot_be_read_is_no_contract_to_ignore(folder, text, message):
    (folder / "scoring_contract.json").write_text(text)
    with pytest.raises(ContractUnreadable, match=message):
        ScoringContract.load(folder)
    with pytest.raises(LoadError, match=message):
        load("torch", ModelSpec(str(folder)))


def test_a_cuda_device_that_is_not_there_is_said_so(folder):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(LoadError, match="no CUDA device"):
        load("torch", ModelSpec(str(folder), device="cuda"))
