"""Every engine is compared with plain forwards of each row alone, and one with other scores is not used."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.backends.engine_check import ReferenceScores, check_rows
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.length_classes import special_lengths
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import TokenBatch
from tests.support.tiny import randomize, tiny_config, tiny_tokenizer
from tests.unit.model.test_network import VOCAB, alone, make

RECURRENT = {
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 256},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1,
               "chunk_size": 16},
}  # fmt: skip


def recurrent(architecture: str) -> RewardNetwork:
    config = AutoConfig.for_model(architecture, vocab_size=VOCAB, **RECURRENT[architecture])
    backbone = AutoModel.from_config(config).eval()
    randomize(backbone)
    torch.manual_seed(1)
    return RewardNetwork.create(backbone).eval()


def ragged(n_rows: int) -> list[tuple[int, ...]]:
    draw = random.Random(3)
    prompt = tuple(draw.randrange(VOCAB) for _ in range(40))
    rows = [tuple(draw.randrange(VOCAB) for _ in range(draw.randrange(1, 60))) for _ in range(n_rows)]
    return [prompt + row if i % 3 == 0 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize("engine", ["auto", "padded"])
@pytest.mark.parametrize("architecture", RECURRENT)
def test_rows_of_a_recurrent_model_score_as_alone(architecture: str, engine: str):
    network, rows = recurrent(architecture), ragged(32)
    expected = [float(alone(copy.deepcopy(network), list(row))) for row in rows]
    scorer, notes = choose_engine(network, ModelSpec(engine=engine, prefix_cache_bytes=2**26), pad_id=4, max_tokens=256)
    for _ in range(2):
        done = scorer.score(TokenBatch(tuple(rows))).rows
        assert [heads["score"] for heads in done] == pytest.approx(expected, abs=2e-5)
    if scorer.name == "one_by_one":
        assert notes[0] == "every row has a separate forward"
        assert any("rows are not padded" in note for note in notes)


@pytest.mark.parametrize("architecture", ["rwkv", "mamba2"])
def test_a_recurrent_checkpoint_with_a_value_head_is_served_and_says_how(architecture: str, tmp_path):
    words = tiny_tokenizer()
    config = AutoConfig.for_model(architecture, **{**RECURRENT[architecture], "vocab_size": len(words)})
    model = AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.7])}
    save_file(head, tmp_path / "value_head.safetensors")
    loaded = load("torch", ModelSpec(str(tmp_path), device="cpu", prefix_cache_bytes=2**26))
    rows = [tuple(i % 300 + 5 for i in row) for row in ragged(12)]
    with torch.no_grad():
        hidden = [
            copy.deepcopy(model).base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows
        ]
    expected = [float(each @ head["v_head.summary.weight"][0]) + 0.7 for each in hidden]
    done = loaded.scorer.score(TokenBatch(tuple(rows))).rows
    assert [heads["score"] for heads in done] == pytest.approx(expected, abs=1e-4)
    assert (loaded.identity.engine == "one_by_one") == (
        "every row has a separate forward" in loaded.identity.engine_notes
    )
    assert loaded.identity.engine == {"rwkv": "one_by_one", "mamba2": "padded"}[architecture]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_does_not_hide_that_padding_is_wrong(dtype):
    network = recurrent("rwkv")
    network.backbone.to(dtype)
    for engine in ("auto", "padded"):
        assert choose_engine(network, ModelSpec(engine=engine), pad_id=4, max_tokens=256)[0].name == "one_by_one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "mistral", "phi3", "gpt_neox"])
def test_rounding_of_half_precision_is_no_reason_not_to_pack(architecture: str, dtype):
    network = make(architecture)
    network.backbone.to(dtype)
    assert choose_engine(network, ModelSpec(prefix_cache_bytes=2**26), pad_id=4, max_tokens=256)[0].name == "packed"


def test_a_model_that_is_wrong_even_alone_is_refused_in_words(monkeypatch):
    network = make("llama")
    values_of = network.values_of
    monkeypatch.setattr(network, "values_of", lambda hidden: values_of(hidden) + (hidden.ndim - 1) * 1e-3)
    with pytest.raises(LoadError, match=r"with a separate forward for each row, scores differ by 1\.0e-03"):
        choose_engine(network, ModelSpec(), pad_id=4, max_tokens=256)


def test_a_model_whose_scores_depend_on_earlier_rows_is_refused_in_words():
    network = make("llama")
    longest = [0]

    def remembers(_module, arguments):
        longest[0] = max(longest[0], arguments[0].shape[1])
        return (arguments[0] * (1 + 1e-3 * longest[0]), *arguments[1:])

    network.backbone.layers[0].register_forward_pre_hook(remembers)
    with pytest.raises(LoadError, match=r"changes by .* with the rows that were scored before"):
        choose_engine(network, ModelSpec(), pad_id=4, max_tokens=256)


def test_an_engine_that_is_wrong_only_with_what_it_kept_is_objected_to():
    network = make("llama")
    rows = check_rows(network.config, 256)

    class Forgetful(PaddedScorer):
        kept: tuple[int, ...] = ()
        shares_prefixes = True

        def clear_cache(self) -> None:
            self.kept = ()

        def score(self, batch):
            done = super().score(batch)
            wrong = bool(self.kept) and len(self.kept) < 60  # only keys of short rows are wrong
            self.kept = self.kept or max(batch.rows, key=len)
            if not wrong:
                return done
            return type(done)(tuple({"score": h["score"] + 0.1} for h in done.rows), done.tokens_computed)

    engine = Forgetful(network, pad_id=4, max_tokens=256)
    assert "scores differ" in str(ReferenceScores(network, rows).objection(engine))


@pytest.mark.parametrize(
    ("architecture", "shape", "length"),
    [
        ("mistral", {"sliding_window": 100}, 100),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                   "max_position_embeddings": 120}, 120),
        ("gemma3_text", {"sliding_window": 70}, 70),
    ],
)  # fmt: skip
def test_rows_of_the_check_lie_on_both_sides_of_every_length(architecture: str, shape: dict, length: int):
    config = tiny_config(architecture, VOCAB, **shape)
    assert length in special_lengths(config)
    rows = check_rows(config, 512)
    lengths = {len(row) for row in rows.rows}
    assert {length, length + 1} <= lengths
    assert any(len(row) <= length for row in rows.short)
    assert sum(len(row) > length for row in rows.long) >= 2
    assert rows.unchecked == ()


def test_a_length_that_is_too_far_to_be_checked_is_told():
    far = {"sliding_window": 6_000, "max_position_embeddings": 8_000}
    _, notes = choose_engine(make("mistral", **far), ModelSpec(), pad_id=4, max_tokens=8_000)
    assert any("longer than 6,000 tokens" in note and "not checked" in note for note in notes)
    assert choose_engine(make("mistral", **far), ModelSpec(), pad_id=4, max_tokens=6_000)[1] == ()
