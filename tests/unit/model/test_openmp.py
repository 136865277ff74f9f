"""The spin time of compute threads: set before the import of torch, and never against the operator's setting."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rewardserve.model.backends.openmp import limit_spinning


def test_without_settings_threads_spin_briefly(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    limit_spinning()
    assert os.environ == {"GOMP_SPINCOUNT": "5000"}


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_operator_has_set_stays(monkeypatch, name: str):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv(name, "ACTIVE")
    before = dict(os.environ)
    limit_spinning()
    assert dict(os.environ) == before


def test_a_server_does_not_import_torch_before_its_model_is_loaded():
    code = "import sys, rewardserve.service.app, rewardserve.service.cli.serve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
