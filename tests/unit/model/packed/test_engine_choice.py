"""Choice of the engine: packed only where it gives the scores of a plain forward."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from rewardserve.model.backends import LoadError, ModelSpec, engine_check
from rewardserve.model.backends.engine_check import check_rows
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.length_classes import LengthClasses
from rewardserve.model.backends.native import KernelsUnavailable
from rewardserve.model.backends.packed import PackedScorer, weights
from rewardserve.model.backends.packed.attention import NAME
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.scorer import OutOfMemory, ScorerError, TokenBatch
from tests.support.machine import needs_amx
from tests.support.tiny import tiny_config
from tests.unit.model.packed.test_parity import packed
from tests.unit.model.test_network import TOLERANCE, VOCAB, alone, make


def chosen(network, **asked):
    return choose_engine(network, ModelSpec(**asked), pad_id=4, max_tokens=256)


def leaks_between_rows(network) -> None:
    """As a convolution or a recurrent layer would: every token gets something of the one before it."""
    layer = network.backbone.layers[0]
    layer.register_forward_pre_hook(lambda _, args: (args[0] + 0.5 * args[0].roll(1, dims=1), *args[1:]))


@pytest.mark.parametrize("engine", ["auto", "padded"])
def test_a_model_whose_tokens_meet_outside_of_attention_has_a_forward_for_every_row(engine):
    network = make("llama")
    leaks_between_rows(network)
    rows = [(5, 6, 7), tuple(range(5, 45)), (9,)]
    expected = [float(alone(network, list(row))) for row in rows]
    scorer, notes = chosen(network, engine=engine)
    assert (scorer.name, notes[0]) == ("one_by_one", "every row has a separate forward")
    assert any("rows are not padded: scores differ" in note for note in notes)
    done = scorer.score(TokenBatch(tuple(rows)))
    assert [heads["score"] for heads in done.rows] == pytest.approx(expected, abs=TOLERANCE)
    assert (done.tokens_padding, scorer.pads_rows) == (0, False)


def test_packed_that_was_asked_for_and_is_not_possible_is_refused_in_words():
    network = make("llama")
    leaks_between_rows(network)
    with pytest.raises(LoadError, match="engine=packed is not possible here: scores differ"):
        chosen(network, engine="packed")


def test_a_network_that_was_not_packed_is_as_it_was():
    network, row = make("llama"), [7, 8, 9, 10]
    before, attention = alone(network, row), network.config._attn_implementation
    leaks_between_rows(network)
    chosen(network)
    network.backbone.layers[0]._forward_pre_hooks.clear()
    assert network.config._attn_implementation == attention
    assert torch.equal(alone(network, row), before)


def test_a_layer_of_an_unknown_kind_is_padded():
    network = make("llama")
    network.config.layer_types = ["full_attention", "linear_attention"]
    scorer, notes = chosen(network)
    assert isinstance(scorer, PaddedScorer)
    assert "layers of linear_attention" in notes[0]


def test_a_window_that_the_layers_keep_to_themselves_is_padded():
    network = make("llama")  # its attention says nothing of a window
    network.config.sliding_window = 200
    scorer, notes = chosen(network)
    assert isinstance(scorer, PaddedScorer)
    assert "do not pass the size of their sliding window" in notes[0]


def test_a_weight_that_others_use_than_its_own_layer_is_not_let_go_of():
    # Routers of some mixtures of experts multiply with `classifier.weight` and never call the layer.
    network = make("llama")
    first, second = network.backbone.layers
    first.register_forward_hook(lambda _module, _arguments, out: out + 0.1 * second.mlp.gate_proj.weight.sum())
    rows = [(5, 6, 7), tuple(range(5, 45))]
    expected = [float(alone(network, list(row))) for row in rows]
    scorer, _ = chosen(network)
    assert scorer.name == "packed"
    done = scorer.score(TokenBatch(tuple(rows))).rows
    assert [heads["score"] for heads in done] == pytest.approx(expected, abs=2e-5)


def test_an_unknown_argument_of_attention_selects_the_padded_engine(monkeypatch):
    network = make("llama")
    attention = network.backbone.layers[0].self_attn
    forward = type(attention).forward
    monkeypatch.setattr(attention, "forward", partial(forward, attention, sink_of_ours=torch.zeros(1)))
    scorer, notes = chosen(network)
    assert isinstance(scorer, PaddedScorer)
    assert "needs sink_of_ours" in notes[0]


def test_whatever_a_foreign_model_raises_in_the_check_it_is_padded():
    class Theirs(Exception):
        pass

    def fails(*_args):
        if network.config._attn_implementation == NAME:
            raise Theirs("no")

    network = make("llama")
    network.backbone.layers[0].register_forward_pre_hook(fails)
    scorer, notes = chosen(network)
    assert isinstance(scorer, PaddedScorer)
    assert "Theirs: no" in notes[0]


@needs_amx
def test_products_that_put_scores_too_far_off_are_done_as_float32(monkeypatch):
    monkeypatch.setattr(engine_check, "_TOLERANCE_HIGH", 0.0)
    scorer, notes = chosen(make("llama"))
    assert isinstance(scorer, PackedScorer)
    assert scorer.matmul_precision == "highest"
    assert len(notes) == 1
    assert "float32 is multiplied as float32: scores differ" in notes[0]


@needs_amx
def test_how_matrices_are_multiplied_is_what_was_asked_for():
    for asked in ("high", "highest"):
        scorer, notes = chosen(make("llama"), matmul_precision=asked)
        assert (scorer.matmul_precision, notes) == (asked, ())


def test_kernels_that_were_not_compiled_are_named(monkeypatch):
    def not_compiled(instructions):
        raise KernelsUnavailable("not compiled", is_actionable=True)

    monkeypatch.setattr(weights, "load", not_compiled)
    scorer, notes = chosen(make("llama"))
    assert isinstance(scorer, PackedScorer)
    assert notes == ("the fastest kernels are not used: not compiled",)


def test_padded_is_what_one_gets_when_one_asks_for_it():
    scorer, notes = chosen(make("llama"), engine="padded")
    assert isinstance(scorer, PaddedScorer)
    assert notes == ()


def test_a_deterministic_padded_engine_scores_row_by_row():
    scorer, _ = chosen(make("llama"), engine="padded", deterministic=True)
    done = scorer.score(TokenBatch(((5, 6, 7), (8,) * 30)))
    assert done.tokens_padding == 0
    assert not scorer.shares_prefixes


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_the_rows_of_the_check_go_beyond_a_short_window_and_stay_within_the_limit(architecture):
    config = tiny_config(architecture, VOCAB)
    rows = check_rows(config, 64).rows
    assert max(map(len, rows)) <= 64
    assert min(map(len, rows)) == 1
    assert max(map(len, rows)) > (getattr(config, "sliding_window", None) or 0)
    assert check_rows(config, 64).rows == rows


def test_with_dynamic_rotary_scaling_a_long_row_does_not_change_its_neighbours():
    # The angles of a whole forward follow its longest row, so a long row goes alone.
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    network = make("llama", max_position_embeddings=32, rope_parameters=scaling)
    assert LengthClasses.of_config(network.config).limits == (32,)
    rows = [[9, 8, 7, 6] * 3, list(range(5, 105)), [3, 5, 8] * 8]
    expected = torch.stack([alone(network, row) for row in rows])
    with packed(network) as scorer:
        scores = torch.tensor([[r["score"]] for r in scorer.score(TokenBatch(tuple(map(tuple, rows)))).rows])
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


def test_an_id_beyond_the_vocabulary_is_an_error_of_the_batch_and_the_next_batch_is_fine():
    with packed(make("llama")) as scorer:
        with pytest.raises(ScorerError):
            scorer.score(TokenBatch(((5, VOCAB + 10),)))
        assert scorer.score(TokenBatch(((5, 6),))).rows


def test_what_the_cpu_allocator_says_is_out_of_memory(monkeypatch):
    network = make("llama")
    with packed(network) as scorer:

        def fail(*_args, **_kwargs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

        monkeypatch.setattr(network.backbone, "forward", fail)
        with pytest.raises(OutOfMemory):
            scorer.score(TokenBatch(((5, 6),)))
