"""`output.push_to_hub` against the endpoints of the hub that `huggingface_hub` calls, on the loopback."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load

from rewardserve.cli import main
from rewardserve.training.results.model_card import card
from rewardserve.training.workflow import run
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

TOKEN = "hf_" + "s" * 34


class Hub:
    """A hub of one account: it accepts every file inside the commit, and keeps requests and files."""

    def __init__(self):
        self.requests, self.files, self.refuses = [], {}, ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.reply(200, {})

            def do_POST(self):
                hub.answer(self)

            do_GET = do_POST

            def reply(self, status, value):
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        path = handler.path.partition("?")[0]
        self.requests.append((path, handler.headers.get("authorization"), body))
        if self.refuses and self.refuses in path:
            return handler.reply(403, {"error": "You don't have the rights"})
        if path == "/api/repos/create":
            return handler.reply(200, {"url": f"{self.url}/team/judge", "name": "team/judge"})
        if path == "/api/validate-yaml":  # of the model card
            return handler.reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return handler.reply(200, {"files": files})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return handler.reply(
                200, {"commitUrl": f"{self.url}/team/judge/commit/1", "commitOid": "1", "pullRequestUrl": None}
            )
        return handler.reply(404, {"error": "no such page"})


@pytest.fixture
def hub(monkeypatch):
    running = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"), layers=1)


def recipe_in(folder, sft, **output):
    pairs = world.write_jsonl(folder / "pairs.jsonl", world.planted_rows(60))
    path = world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(sft)}, data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
        encoding={"max_tokens": 64}, optim={"max_steps": 2}, eval={"bootstrap": 10, "invariance_pairs": 0},
        output={"folder": str(folder / "out"), "push_to_hub": "team/judge", **output},
    )  # fmt: skip
    return str(path)


def test_the_finished_checkpoint_is_uploaded_whole_with_its_card(tmp_path, sft, hub, capfd):
    assert main(["train", "--config", recipe_in(tmp_path, sft)]) == 0
    said = capfd.readouterr()
    assert f"uploaded: {hub.url}/team/judge" in said.out
    assert TOKEN not in said.out + said.err
    checkpoint = tmp_path / "out" / "checkpoint"
    written = {p.relative_to(checkpoint).as_posix(): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    assert hub.files == written
    assert {"README.md", "scoring_contract.json", "calibration.json", "model.safetensors"} <= set(written)
    assert "rewardserve serve team/judge" in written["README.md"].decode()
    assert load(hub.files["model.safetensors"])
    first = next(json.loads(body) for path, _, body in hub.requests if path == "/api/repos/create")
    assert (first["name"], first["organization"]) == ("judge", "team")
    assert first.get("private", first.get("visibility")) in (True, "private")
    assert {key for path, key, _ in hub.requests if "commit" in path or "create" in path} == {f"Bearer {TOKEN}"}
    assert not any(TOKEN.encode() in content for content in written.values())


def test_no_uploaded_file_names_a_folder_of_this_machine(tmp_path, sft, hub):
    """Sources without a name are called by their path, a bad row by its place, and the recipe has paths of everything."""
    rows = [{k: v for k, v in row.items() if k != "source"} for row in world.planted_rows(60)]
    recipe = Path(recipe_in(tmp_path, sft))
    world.write_jsonl(tmp_path / "pairs.jsonl", [*rows, {"prompt": "no response"}])
    probes = world.write_jsonl(tmp_path / "own" / "probes.jsonl", [{"prompt": "a", "response": "b"}])
    settings = ["data.on_bad_row=skip", f"export.probes={probes}", "audit_judge.n_layers=1"]
    assert main(["train", "--config", str(recipe), *(f"--set={each}" for each in settings)]) == 0
    assert hub.files["training_report.json"].count(b"pairs.jsonl") == 3, "recipe, figures, bad row"
    assert hub.files["README.md"].count(b"| pairs.jsonl |") == 1
    named = [str(tmp_path.parent).encode(), str(sft.parent).encode(), str(Path.cwd()).encode()]
    assert not [name for name, content in hub.files.items() if any(folder in content for folder in named)]
    assert str(tmp_path) in (tmp_path / "out" / "report.html").read_text(), "which stays here"


def test_a_card_of_a_folder_of_any_name_is_one_title_and_a_command():
    report = {"recipe": {"model": {"path": "x"}}, "metrics": []}
    assert "\n# two lines\n" in card("two\nlines", report)
    assert "    rewardserve serve 'two lines'\n" in card("two\nlines", report)


def test_a_repository_that_may_not_be_written_is_refused_before_the_data_are_read(tmp_path, sft, hub, capfd):
    hub.refuses = "repos/create"
    assert main(["train", "--config", recipe_in(tmp_path, sft)]) == 2
    said = capfd.readouterr()
    assert "output.push_to_hub: team/judge cannot be written" in said.err
    assert "rows read" not in said.out
    assert TOKEN not in said.err


def test_an_upload_that_fails_costs_no_checkpoint_and_names_the_command(tmp_path, sft, hub, capfd):
    hub.refuses = "commit"
    assert main(["train", "--config", recipe_in(tmp_path, sft)]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "rewardserve train" in line]
    assert line.endswith(f"Upload it with `hf upload team/judge {tmp_path / 'out' / 'checkpoint'}`.")
    assert (tmp_path / "out" / "checkpoint" / "scoring_contract.json").is_file()


def test_finish_uploads_too_and_offline_is_refused(tmp_path, sft, hub, capfd, monkeypatch):
    recipe = recipe_in(tmp_path, sft)
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", "--config", recipe])
    assert main(["finish", "--config", recipe]) == 0
    assert "README.md" in hub.files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["train", "--config", recipe, "--set", f"output.folder={tmp_path / 'other'}"]) == 2
    assert "cannot be written offline" in capfd.readouterr().err


def test_a_name_that_is_no_repository_is_refused(tmp_path, sft, capfd):
    assert main(["train", "--config", recipe_in(tmp_path, sft, push_to_hub="judge")]) == 2
    assert "it must be ORGANISATION/NAME" in capfd.readouterr().err
