"""Distance of a row's hidden state from those of the calibration: the engines' against that of a plain forward."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardserve.model import hidden_reference as hidden_module
from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.ensemble import EnsembleScorer
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.calibration import Calibration, CalibrationError
from rewardserve.model.checkpoint import CheckpointError, read
from rewardserve.model.hidden_reference import FILE_NAME, HiddenReference
from rewardserve.model.scorer import DISTANCE, BatchScores, TokenBatch
from tests.support.checkpoints import (
    CALIBRATION,
    edit_json,
    hidden_reference,
    reward_model,
    sequence_classifier,
)
from tests.support.service_fakes import FakeScorer
from tests.support.tiny import ARCHITECTURES, WIDTH
from tests.unit.model.packed.test_parity import rows_of_groups
from tests.unit.model.test_network import VOCAB, make, ragged_rows

ROWS = tuple(map(tuple, [*rows_of_groups(), *ragged_rows()]))
ENGINES = {
    "packed": {"engine": "packed"},
    "packed, one by one": {"engine": "packed", "deterministic": True},
    "packed, beginnings kept": {"engine": "packed", "prefix_cache_bytes": 2**30},
    "float32 as float32": {"engine": "packed", "matmul_precision": "highest"},
    "padded": {"engine": "padded"},
    "padded, one by one": {"engine": "padded", "deterministic": True},
}

WAYS = [(a, asked) for a in ARCHITECTURES for asked in ENGINES if a == "llama" or asked in ("packed", "padded")]


def states(network, rows):
    """Of the last layer at the last token, each row alone, as transformers gives them: `(rows, D)`."""
    with torch.no_grad():
        outs = [network.backbone(input_ids=torch.tensor([row]), output_hidden_states=True) for row in rows]
    return np.array([out.hidden_states[-1][0, -1].float().numpy() for out in outs], dtype=np.float64)


def mean_and_covariance(seed=5):
    """A reference of random hidden states, some directions much wider than others."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(WIDTH, WIDTH)) * np.geomspace(0.1, 2.0, WIDTH)
    return rng.normal(size=WIDTH), root @ root.T / WIDTH + 0.02 * np.eye(WIDTH)


def reference_of(mean, covariance):
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    return HiddenReference(torch.tensor(mean).float(), torch.tensor(root.T.copy()).float())


def log_mahalanobis(hidden_ND, mean, covariance):
    """Written out: log (h - mean)' covariance^-1 (h - mean)."""
    precision = np.linalg.inv(covariance)
    return np.array([math.log((h - mean) @ precision @ (h - mean)) for h in hidden_ND])


def distances(scorer, rows=ROWS):
    return np.array([row[DISTANCE] for row in scorer.score(TokenBatch(rows)).rows])


# -- what the engines say ---------------------------------------------------------------------------------------------


@pytest.mark.sweep(8)
@pytest.mark.parametrize(("architecture", "asked"), WAYS)
def test_every_engine_gives_the_distance_of_the_state_that_a_plain_forward_gives(architecture, asked):
    network, (mean, covariance) = make(architecture), mean_and_covariance()
    expected = log_mahalanobis(states(network, ROWS), mean, covariance)
    spec = ModelSpec(**ENGINES[asked])
    scorer, _ = choose_engine(network, spec, pad_id=4, max_tokens=256, hidden=reference_of(mean, covariance))
    assert isinstance(scorer, PaddedScorer if spec.engine == "padded" else PackedScorer)
    assert expected.std() > 0.1, "the reference tells rows apart, or the comparison means nothing"
    for _ in range(2):  # the second time, beginnings may come from the first
        np.testing.assert_allclose(distances(scorer), expected, atol=2e-3)


@pytest.mark.parametrize("asked", ENGINES)
def test_a_score_has_the_same_bits_whether_its_distance_is_told_or_not(asked):
    spec, reference = ModelSpec(**ENGINES[asked]), reference_of(*mean_and_covariance())
    # A packed engine lives inside its network: two of them.
    told, _ = choose_engine(make("llama"), spec, pad_id=4, max_tokens=256, hidden=reference)
    untold, _ = choose_engine(make("llama"), spec, pad_id=4, max_tokens=256)
    ids = st.lists(st.integers(5, VOCAB - 1), min_size=1, max_size=40).map(tuple)

    @settings(max_examples=20, deadline=None)
    @given(rows=st.lists(ids, min_size=1, max_size=6).map(tuple))
    def bits_are_the_same(rows):
        with_it, without = (scorer.score(TokenBatch(rows)) for scorer in (told, untold))
        assert [{"score": row["score"]} for row in with_it.rows] == list(without.rows)
        assert all(set(row) == {"score", DISTANCE} for row in with_it.rows)
        assert with_it.tokens_computed == without.tokens_computed

    bits_are_the_same()


def test_one_by_one_the_bits_of_a_distance_do_not_depend_on_the_others():
    reference = reference_of(*mean_and_covariance())
    scorer, _ = choose_engine(make("llama"), ModelSpec(deterministic=True), pad_id=4, max_tokens=256, hidden=reference)
    alone = [scorer.score(TokenBatch((row,))).rows[0] for row in reversed(ROWS)]
    assert list(scorer.score(TokenBatch(ROWS)).rows) == alone[::-1]


def test_a_state_in_half_precision_is_compared_in_single():
    """Far from zero bfloat16 has steps of a half: a difference that was taken in it would be one of them."""
    mean, covariance = np.full(WIDTH, 100.3), 0.01 * np.eye(WIDTH)
    states_ND = torch.full((3, WIDTH), 100.0, dtype=torch.bfloat16) + torch.tensor([[-1.0], [0.0], [1.0]]).bfloat16()
    expected = log_mahalanobis(states_ND.double().numpy(), np.float32(mean), covariance)
    got = reference_of(mean, covariance).log_distance(states_ND)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, 3e38, math.inf, -math.inf, math.nan])
def test_a_distance_is_a_finite_number_whatever_the_state(value):
    """A number that is not finite fails a row, so the distance, which is only a diagnostic, is always finite."""
    reference = HiddenReference(torch.zeros(WIDTH), torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)))
    got = reference.log_distance(torch.full((2, WIDTH), value))
    assert torch.isfinite(got).all()
    assert (got > 80).all() or abs(value) < 1


def test_an_ensemble_tells_the_mean_of_what_its_members_know():
    def knows(*distance):
        row = {"score": 1.0, **dict.fromkeys([DISTANCE][: len(distance)], *distance)}
        return FakeScorer(lambda batch: BatchScores((row,) * len(batch), batch.n_tokens))

    def merged(*members):
        named = [(f"m{i}", member) for i, member in enumerate(members)]
        return dict(EnsembleScorer(named).score(TokenBatch(((1, 2),))).rows[0])

    heads = {"m0/score": 1.0, "m1/score": 1.0}
    assert merged(knows(3.0), knows(-1.0)) == {**heads, DISTANCE: 1.0}
    assert merged(knows(), knows(-1.0)) == {**heads, DISTANCE: -1.0}
    assert merged(knows(), knows()) == heads


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A checkpoint whose calibration came with hidden states."""
    reward_model(tmp_path / "rm", heads={"good": 1.0, "kind": 0.5})
    hidden_reference(tmp_path / "rm")
    return tmp_path / "rm"


def test_a_checkpoint_with_the_file_keeps_its_contract_and_tells_distances(folder):
    loaded, before = load("torch", ModelSpec(str(folder), device="cpu")), read(str(folder))
    assert loaded.report.holds
    probes = [probe.ids for probe in loaded.contract.probes]
    rows = loaded.scorer.score(TokenBatch(tuple(probes))).rows
    reference = before.hidden
    whitened = (states(before.network, probes) - reference.mean_D.numpy()) @ reference.whitening_KD.numpy().T
    np.testing.assert_allclose([row[DISTANCE] for row in rows], np.log((whitened**2).sum(axis=1)), atol=2e-3)
    assert [name for name, _ in loaded.identity.heads] == ["good", "kind"]
    for row, probe in zip(rows, loaded.contract.probes, strict=True):
        assert loaded.identity.raw(row) == pytest.approx(probe.score, abs=probe.tolerance)


def test_without_the_file_there_is_no_distance_and_nothing_else_changes(folder):
    (with_it,) = load("torch", ModelSpec(str(folder), device="cpu")).scorer.score(TokenBatch((ROWS[0],))).rows
    (folder / FILE_NAME).unlink()
    loaded = load("torch", ModelSpec(str(folder), device="cpu"))
    assert loaded.report.holds
    assert dict(loaded.scorer.score(TokenBatch((ROWS[0],))).rows[0]) == {
        k: v for k, v in with_it.items() if k != DISTANCE
    }


def test_the_file_is_read_as_it_was_written(tmp_path):
    reference = reference_of(*mean_and_covariance())
    named = replace(CALIBRATION, hidden_reference=reference.digest)
    reference.save(tmp_path, named)
    found = hidden_module.load(tmp_path, named, WIDTH)
    assert torch.equal(found.mean_D, reference.mean_D)
    assert torch.equal(found.whitening_KD, reference.whitening_KD)
    assert found.digest == reference.digest
    assert hidden_module.load(tmp_path / "elsewhere", named, WIDTH) is None


def test_every_number_counts_for_the_digest():
    mean, covariance = mean_and_covariance()
    one = reference_of(mean, covariance)
    others = [
        replace(one, mean_D=one.mean_D * (torch.arange(WIDTH) != 3)),
        replace(one, whitening_KD=one.whitening_KD[:-1]),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 3


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / FILE_NAME).write_bytes(b"no"), "unreadable"),
        (lambda folder: edit_json(folder / "calibration.json", hidden_reference="sha256:0"), "is not the one"),
        (lambda folder: (folder / "calibration.json").unlink(), "is not the one"),
    ],
)
def test_a_file_that_does_not_belong_there_is_refused_in_words(folder, break_it, words):
    break_it(folder)
    with pytest.raises(LoadError, match=words):
        load("torch", ModelSpec(str(folder), device="cpu"))


def test_a_file_of_another_width_is_refused(tmp_path):
    reference = reference_of(*mean_and_covariance())
    named = replace(CALIBRATION, hidden_reference=reference.digest)
    reference.save(tmp_path, named)
    with pytest.raises(CalibrationError, match=r"is 64 wide"):
        hidden_module.load(tmp_path, named, 64)


def test_a_calibration_without_hidden_states_keeps_the_digest_that_it_had_before_there_were_any():
    import hashlib
    import json
    from dataclasses import asdict

    fields = {name: value for name, value in asdict(CALIBRATION).items() if name != "hidden_reference"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert CALIBRATION.digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert replace(CALIBRATION, hidden_reference="sha256:1").digest != CALIBRATION.digest


def test_a_calibration_remembers_the_reference_it_names(tmp_path):
    named = replace(CALIBRATION, hidden_reference="sha256:1")
    named.save(tmp_path)
    assert Calibration.load(tmp_path) == named


# -- the name is taken ------------------------------------------------------------------------------------------------


def test_a_head_of_that_name_is_refused_in_words(tmp_path):
    with pytest.raises(CheckpointError, match="a head is called 'distance'"):
        reward_model(tmp_path / "own", heads={"good": 1.0, DISTANCE: 0.5})
    sequence_classifier(tmp_path / "theirs", n_labels=2)
    edit_json(tmp_path / "theirs" / "config.json", id2label={"0": "good", "1": DISTANCE}, reward_head_weights=[1, 1])
    with pytest.raises(CheckpointError, match="a head is called 'distance'"):
        read(str(tmp_path / "theirs"))
