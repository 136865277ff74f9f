"""`rewardserve score` and `POST /score` are two ways to the same number, on a real checkpoint."""

from __future__ import annotations

import json
import random
import subprocess
from contextlib import suppress

import pytest

from tests.integration.test_server_bulk import command, rows, score_file
from tests.support.checkpoints import reward_model
from tests.support.server_in_process import serve_in_process
from tests.support.service_server import ROOT, TIMEOUT_S

N_LINES = 1100
SAME = 1e-4  # of the largest score: kernels differ a little with the shape of the batch
WORDS = ["question", "answer", "alpha", "beta", "the", "two", "plus", "yes"]


def sample(i):
    """Ragged samples in every form; now and then one that cannot be scored, or that must be cut."""
    rng = random.Random(i)

    def text(most):
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    forms = [
        {"prompt": text(12), "response": text(12)},
        {"messages": [{"role": "user", "content": text(9)}, {"role": "assistant", "content": text(9)}]},
        {"id": f"named {i}", "text": text(20)},
        {"input_ids": [rng.randrange(20) for _ in range(rng.randint(1, 30))]},
        {"prompt": text(5), "response": text(9), "finish_reason": "length"},
        {"prompt": text(400), "response": text(5)},
    ]
    bad = [
        {"prompt": text(3), "response": ""},
        {"prompt": text(3), "response": text(1) * 400},
        {"input_ids": [10**6]},
        {"text": "\ud800"},
    ]
    return rng.choice(bad if i % 10 == 7 else forms)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    reward_model(folder, heads={"convincing": 1.0, "harmless": 0.5})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    path.write_text("".join(json.dumps(sample(i)) + "\n" for i in range(N_LINES)))
    return path


@pytest.fixture(scope="module")
def served(checkpoint, source):
    """What a server answers for the same lines."""
    samples = [{"id": str(i)} | json.loads(line) for i, line in enumerate(source.read_text().splitlines())]
    with serve_in_process(f"{checkpoint}") as server:
        return [r for i in range(0, N_LINES, 300) for r in server.score(*samples[i : i + 300]).json()["results"]]


def check(out, served):
    """Same ids in the same order, same errors, same numbers."""
    assert [r["id"] for r in out] == [r["id"] for r in served]
    same = SAME * max(abs(score) for r in served if r["heads"] for score in r["heads"].values())
    for one, other in zip(out, served, strict=True):
        assert one["error"] == other["error"]
        for field in ("tokens", "truncated", "missing_end", "notes"):
            assert one[field] == other[field], field
        for field in ("reward", "raw", "normalized", "heads"):
            assert one[field] == pytest.approx(other[field], abs=same), field


def test_a_file_is_scored_as_the_server_would(checkpoint, source, served, tmp_path):
    exit_code, output = score_file(source, tmp_path / "out", f"--model={checkpoint}", backend="torch")
    assert exit_code == 3, output
    codes = {r["error"]["code"] for r in served if r["error"]}
    assert codes == {"empty_response", "input_too_long", "token_out_of_vocabulary", "invalid_text"}
    assert any(r["truncated"] for r in served)
    check(rows(tmp_path / "out"), served)


@pytest.mark.slow
def test_what_was_killed_in_the_middle_of_a_line_is_continued_to_the_same_rewards(checkpoint, source, served, tmp_path):
    target = tmp_path / "out"
    flags = f"--model={checkpoint}", "--batching.max-tokens=256"
    with subprocess.Popen(
        command(source, target, *flags, backend="torch"), cwd=ROOT, stderr=subprocess.DEVNULL
    ) as running:
        while not (target.exists() and target.stat().st_size):
            with suppress(subprocess.TimeoutExpired):
                running.wait(0.005)
                break
        running.kill()
        assert running.wait(TIMEOUT_S) == -9, "it was done before it could be killed: give it more lines"
    whole = target.read_bytes().splitlines(keepends=True)
    assert 0 < len(whole) < N_LINES
    target.write_bytes(b"".join(whole[:-1]) + whole[-1][: len(whole[-1]) // 2])
    exit_code, output = score_file(source, target, *flags, backend="torch")
    assert exit_code == 3, output
    assert target.read_bytes().startswith(b"".join(whole[:-1])), "what was there was kept"
    check(rows(target), served)
