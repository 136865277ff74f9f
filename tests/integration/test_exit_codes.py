"""The exit codes that the help and the reference list are those of the commands: every one is brought about."""

from __future__ import annotations

import importlib
import io
import signal
import socket
from pathlib import Path

import pytest

from rewardserve.cli import COMMANDS
from rewardserve.exit_codes import EXIT_CODES, SOME_FAILED
from rewardserve.training.errors import RunFailed
from tests.support.checkpoints import reward_model
from tests.support.command import run_command
from tests.support.service_server import Server

KEY = "k" * 32
SAMPLE = '{"prompt": "p", "response": "r"}\n'
PAIR = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
RECIPE = "model: {path: none}\ndata: {sources: [{path: pairs.jsonl}], eval_fraction: 0}\noutput: {folder: out}\n"
TRAINING = {
    "train": "train", "finish": "export_last_step", "evaluate": "evaluate_checkpoint", "calibrate": "calibrate_checkpoint",
    "average": "average_checkpoints",
}  # fmt: skip
"""Command -> the function of `training.workflow` that does its work."""
REQUIRED = {"average": ("--checkpoint=a", "--checkpoint=b"), "sweep": ("--space=optim.lr=1e-5..1e-3",)}
"""Options without which a command of training does not begin, besides its recipe."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "rm"
    reward_model(folder)
    return folder


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for name, text in {
        "rows.jsonl": SAMPLE, "bad.jsonl": SAMPLE + "{\n", "pairs.jsonl": PAIR, "key": KEY, "recipe.yaml": RECIPE,
        "no.jsonl": PAIR + "{\n", "two.jsonl": SAMPLE + SAMPLE.replace('"r"', '"s"'),
        "benchmark.jsonl": '{"prompt": "p", "chosen": "a", "rejected": "", "subset": "s"}\n',
        "two-bad.jsonl": SAMPLE + SAMPLE.replace('"r"', '"s"') + "{\n",
    }.items():  # fmt: skip
        Path(name).write_text(text)
    Path("empty.db").touch()
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)


ECHO = ("--backend=echo",)
RUNS: dict[tuple[str, int], tuple[str, ...]] = {
    ("serve", 2): ("--port=x",),
    ("check", 0): ("MODEL",),
    ("check", 1): ("none",),
    ("check", 2): ("MODEL", "--device=x"),
    ("compare", 0): ("echo", "echo:delay_ms=1", "pairs.jsonl", *ECHO),
    ("compare", 1): ("none", "default", "pairs.jsonl"),
    ("compare", 2): ("echo", "echo:delay_ms=1", "none.jsonl", *ECHO),
    ("compare", 3): ("echo", "echo:delay_ms=1", "no.jsonl", *ECHO),
    ("bench", 0): ("echo", *ECHO, "--samples=4"),
    ("bench", 2): ("--samples=0",),
    ("bench", 3): ("echo", *ECHO, "--file=bad.jsonl"),
    ("score", 0): ("rows.jsonl", "out.jsonl", *ECHO),
    ("score", 1): ("rows.jsonl", "out.jsonl", "--model=none"),
    ("score", 2): ("none.jsonl", "out.jsonl", *ECHO),
    ("score", 3): ("bad.jsonl", "out.jsonl", *ECHO),
    ("mine", 0): ("echo", "two.jsonl", "--out=queue.jsonl", "--judge=echo:delay_ms=1", *ECHO),
    ("mine", 1): ("none", "two.jsonl", "--out=queue.jsonl"),
    ("mine", 2): ("echo", "none.jsonl", "--out=queue.jsonl", "--judge=echo:delay_ms=1", *ECHO),
    ("mine", 3): ("echo", "two-bad.jsonl", "--out=queue.jsonl", "--judge=echo:delay_ms=1", *ECHO),
    ("demo", 1): ("--port=99999", "--no-browser"),
    ("demo", 2): ("--minutes=x",),
    ("export-labels", 0): ("empty.db",),
    ("export-labels", 1): (".",),
    ("export-labels", 2): ("none.db",),
    ("export", 0): ("MODEL", "exported"),
    ("export", 1): ("none", "exported"),
    ("export", 2): ("MODEL", "exported", "--probes=none.jsonl"),
    ("keys", 0): ("ppo", "keys"),
    ("keys", 2): ("ppo", "keys", "--scopes=x"),
    ("rules", 0): (),
    ("rules", 2): ("--windows", "x"),
    ("review", 0): ("upgrade", "review.db"),
    ("review", 1): ("upgrade", "none/review.db"),
    ("review", 2): ("export", "none.db"),
    ("honeypots", 0): ("key",),
    ("honeypots", 2): ("none",),
    ("version", 0): (),
    ("version", 2): ("--x",),
    ("evaluate", 3): ("--benchmark=benchmark.jsonl", "--checkpoint", "MODEL"),
    **{(verb, 2): ("--config=none.yaml", *REQUIRED.get(verb, ())) for verb in (*TRAINING, "crossvalidate", "sweep")},
}
"""Exit codes that arguments alone bring about. `MODEL` is a small checkpoint."""

BROKEN = {
    "check": "rewardserve.model.check:load",
    "compare": "rewardserve.compare.command:read_rows",
    "bench": "rewardserve.bench.command:synthetic",
    "score": "rewardserve.service.cli.score:count_lines",
    "mine": "rewardserve.mine.command:read_rows",
    "demo": "rewardserve.demo.command:_server",
    "export-labels": "rewardserve.mine.export_labels:is_missing",
    "export": "rewardserve.model.export:resolve",
    "review": "rewardserve.service.cli.review:ReviewStore",
    "honeypots": "rewardserve.service.cli.honeypots:hashed",
    **{verb: f"rewardserve.training.workflow:{function}" for verb, function in TRAINING.items()},
    "crossvalidate": "rewardserve.training.crossvalidate:crossvalidate",
    "sweep": "rewardserve.training.sweep:sweep",
}
"""Functions that are interrupted in place of a signal, whose moment cannot be chosen."""


def raising(error):
    def function(*_, **__):
        raise error

    return function


def replaced(monkeypatch, target, function):
    module, _, name = target.partition(":")
    monkeypatch.setattr(importlib.import_module(module), name, function)


def patched_run(monkeypatch, name, code):
    """Run a command whose work is replaced by one that returns, fails or is interrupted."""
    is_training = BROKEN[name].startswith("rewardserve.training")
    arguments = ("--config=recipe.yaml", *REQUIRED.get(name, ())) if is_training else RUNS[name, 0]
    if code == 130:
        replaced(monkeypatch, BROKEN[name], raising(KeyboardInterrupt()))
    elif code == 1:
        replaced(monkeypatch, BROKEN[name], raising(RunFailed("the loss is not finite.")))
    elif name == "crossvalidate":
        monkeypatch.setattr("rewardserve.training.cli._crossvalidate", lambda *_: None)
    else:
        results = {"evaluate": ([], None, "report.html"), "sweep": ([], "best.yaml")}
        replaced(monkeypatch, BROKEN[name], lambda *_, **__: results.get(name, "checkpoint"))
    return run_command(name, *arguments)


@pytest.mark.parametrize(
    ("name", "code"),
    [(name, code) for name, codes in EXIT_CODES.items() for code in codes if name != "serve" or code == 2],
)
def test_a_listed_exit_code_is_that_of_the_command(name, code, model, monkeypatch):
    prompts = b'{"prompt": "p", "answers": ["a"]}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompts)))
    if (name, code) == ("bench", 1):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        ended, _, error = run_command("bench", f"--url={url}")
    elif (name, code) == ("demo", 0):
        replaced(monkeypatch, BROKEN[name], raising(KeyboardInterrupt()))
        ended, _, error = run_command(name, "--no-browser")
    elif (name, code) in RUNS:
        arguments = [str(model) if each == "MODEL" else each for each in RUNS[name, code]]
        ended, _, error = run_command(name, *arguments)
    else:
        ended, _, error = patched_run(monkeypatch, name, code)
    assert ended == code, error
    assert "Traceback" not in error


def test_3_is_a_part_of_the_result_in_every_command():
    for name, codes in EXIT_CODES.items():
        assert codes.get(SOME_FAILED, "some").startswith("some"), name


def test_a_model_that_cannot_be_loaded_is_1_in_training_too(monkeypatch):
    for verb in ("evaluate", "calibrate"):
        code, _, error = run_command(verb, "--config=recipe.yaml", "--checkpoint=/nowhere")
        assert (code, "not a folder" in error) == (1, True), error


def test_an_export_into_a_folder_that_is_used_is_an_error_in_the_arguments(model):
    Path("used").mkdir()
    Path("used/file").touch()
    code, _, error = run_command("export", str(model), "used")
    assert (code, "choose another folder" in error) == (2, True)


def test_a_server_ends_with_0_after_a_signal_and_with_1_where_its_port_is_taken():
    with Server("--backend=echo", "echo") as running:
        port = int(running.url.rpartition(":")[2])
        code, _, error = run_command("serve", "echo", "--backend=echo", f"--port={port}")
        assert (code, "Set --port to a free port" in error) == (1, True)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0


def test_every_command_has_exit_codes_and_every_help_has_them():
    names = [command.name for group in COMMANDS.values() for command in group]
    assert list(EXIT_CODES) == sorted(EXIT_CODES, key=names.index)
    assert set(EXIT_CODES) == set(names)
    for name, codes in EXIT_CODES.items():
        code, out, _ = run_command(name, "--help")
        text = " ".join(out.split())
        assert (code, text.partition("Exit codes: ")[2].split()[:1]) == (0, ["0"])
        for number, meaning in codes.items():
            assert f"{number} {meaning}"[:40] in text, name
