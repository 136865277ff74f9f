"""The audit judge of a model is the folder `audit_judge` of its checkpoint."""

from __future__ import annotations

import pytest

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.audit_judge import find_audit_judge
from rewardserve.model.checkpoint.heads import base_of_heads, layers_of_heads
from rewardserve.model.contract import ScoringContract
from rewardserve.model.default import FOLDER


def test_the_default_model_has_a_judge_over_fewer_layers_of_the_same_base():
    for name in ("", "default"):
        judge = find_audit_judge(name)
        assert judge == FOLDER / "audit_judge"
    assert base_of_heads(judge) == base_of_heads(FOLDER) == "smollm2-135m-instruct:14"
    assert layers_of_heads(judge) == 10
    assert layers_of_heads(FOLDER) is None
    assert ScoringContract.load(judge).probes


def test_a_folder_without_one_has_none(tmp_path):
    assert find_audit_judge(str(tmp_path)) is None
    (tmp_path / "audit_judge").mkdir()
    assert find_audit_judge(str(tmp_path)) == tmp_path / "audit_judge"


def test_a_model_that_does_not_exist_is_an_error_of_the_load(tmp_path):
    with pytest.raises(LoadError, match="is not a folder"):
        find_audit_judge(str(tmp_path / "none"))
