"""schemathesis over the whole OpenAPI document of a live server: no bug, and every answer is one that is declared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.install import PROGRAM
from tests.support.service_server import Server

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "response_headers_conformance", "unsupported_method", "allow_header_conformance")  # fmt: skip
EXAMPLES = os.environ.get("FUZZ_OPENAPI", "100")


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not PROGRAM.is_file(), reason="needs schemathesis: `make test-fuzz` has it")
def test_whatever_the_document_allows_is_answered_as_the_document_says(tmp_path):
    with Server("--backend=echo") as server:
        command = [
            PROGRAM, "--config-file", Path(__file__).with_name("schemathesis.toml"), "run", f"{server.url}/openapi.json",
            "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--checks", ",".join(CHECKS),
            "--continue-on-failure", "--generation-database", "none",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        print(done.stdout[-2000:])
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
        assert "request_bug" not in server.log
        server.signal()
        assert server.ended() == 0
