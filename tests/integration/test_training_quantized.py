"""QLoRA: 4-bit weights while the adapters learn, and an export over the weights as they were. The numbers need bitsandbytes."""

from __future__ import annotations

import json

import pytest

from rewardserve.cli import main
from rewardserve.model.checkpoint import ReadOptions, read
from rewardserve.model.contract import ScoringContract
from rewardserve.training.batches import scoring
from rewardserve.training.loop import methods
from rewardserve.training.loop.step_checkpoints import read_best
from rewardserve.training.workflow import fitting, run
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def recipe(tmp_path):
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(160))
    return str(
        world.recipe_file(
            tmp_path / "recipe.yaml",
            model={"path": str(world.language_model(tmp_path / "sft", width=64))},
            data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
            encoding={"max_tokens": 64},
            method={"name": "lora", "rank": 4, "quantize": "nf4"},
            optim={"lr": 0.01, "max_steps": 20, "batch_pairs": 16},
            eval={"bootstrap": 10, "invariance_pairs": 0, "steps": 10, "best_by": "nll"},
            output={"folder": str(tmp_path / "out")},
        )
    )


def test_4_bit_weights_are_refused_without_a_gpu_and_without_the_package(recipe, capsys, monkeypatch):
    monkeypatch.setattr(methods.torch.cuda, "is_available", lambda: False)
    assert main(["train", "--config", recipe]) == 2
    captured = capsys.readouterr()
    assert "method.quantize is 'nf4', which needs an NVIDIA GPU" in captured.err
    assert "rows read" not in captured.out
    monkeypatch.setattr(methods, "torch", type("", (), {"cuda": type("", (), {"is_available": lambda: True})}))
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    assert main(["train", "--config", recipe]) == 2
    assert "pip install 'rewardserve[qlora]'" in capsys.readouterr().err


def test_4_bit_weights_are_for_adapters_alone(recipe, capsys):
    assert main(["train", "--config", recipe, "--set", "method={name: full, quantize: nf4}"]) == 2
    assert "method.quantize is 'nf4', which has no effect with method.name other than lora" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_adapters_learn_over_4_bit_weights_and_are_exported_over_whole_ones(recipe, tmp_path, monkeypatch):
    """On the kernels of bitsandbytes for CPUs; the refusal without a GPU is switched off."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    seen = []

    def quantize(backbone, kind):
        methods.quantize(backbone, kind)
        seen.extend(type(module) for module in backbone.modules() if isinstance(module, methods.nn.Linear))

    monkeypatch.setattr(run, "check_quantization", lambda config: None)
    monkeypatch.setattr(fitting, "quantize", quantize)
    assert main(["train", "--config", recipe]) == 0
    assert set(seen) == {bitsandbytes.nn.Linear4bit}
    assert len(seen) == 2 * 7
    out = tmp_path / "out"
    report = json.loads((out / "checkpoint" / "training_report.json").read_text())
    best = read_best(out / "steps", "nll")
    assert report["metrics"][0]["nll"] == pytest.approx(best.value, abs=0.1), (
        "judged over whole weights, chosen over 4-bit ones"
    )
    assert report["metrics"][0]["accuracy"] > 0.8
    contract = ScoringContract.load(out / "checkpoint")
    over_base = read(str(out / "adapter"), ReadOptions(dtype="float32"))
    rows = [probe.ids for probe in contract.probes]
    scores = scoring.score(over_base.network, rows, pad_id=over_base.pad_id, batch_tokens=512)
    assert scores[:, 0].tolist() == pytest.approx([probe.score for probe in contract.probes], abs=1e-4)
