"""`rewardserve demo`: start a server, replay a healthy and a hacked run, and show both in the console."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from rewardserve.arguments import Parser
from rewardserve.demo.stream import HACKED, HEALTHY, read_responses, steps
from rewardserve.exit_codes import FAILED

PROGRAM = "rewardserve demo"
_DESCRIPTION = """Show an alarm. Starts a server with the default model on this machine and opens its console. Two runs of real
responses are replayed: in one of them the policy learns a sentence that the model pays for. Watch the alarm come, read why, and
label five pairs. Ctrl-C ends everything; what was captured is deleted unless --state-dir names a folder."""
_READY_S = 300.0
_LISTENING = re.compile(r"listening on (http://\S+)")
_END_S = 15.0
_MOST_MINUTES = 600.0
N_STEPS = 60
"""Steps of each run: the alarm comes in the middle."""


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration. Return the exit code."""
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument(
        "--minutes",
        type=float,
        default=3.0,
        help="length of the replay; a slow machine takes longer; default: 3",
    )
    parser.add_argument("--port", type=int, default=0, help="port of the server; 0: a free one; default: 0")
    parser.add_argument(
        "--state-dir", type=Path, help="folder that keeps runs, samples and labels; default: none, all is deleted"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--exit", action="store_true", help="end after the replay instead of waiting for Ctrl-C")
    given = parser.parse_args(arguments)
    if not 0.0 <= given.minutes <= _MOST_MINUTES:
        parser.error(f"--minutes is at least 0 and at most {_MOST_MINUTES}")
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="rewardserve-demo-") as temporary:
        folder = given.state_dir or Path(temporary)
        try:
            with _server(folder, given.port) as url:
                return _show(url, folder, given.minutes, opens=not given.no_browser, ends=given.exit)
        except _ServerFailed as error:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            return 0


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


class _ServerFailed(Exception):
    """The server did not start, or ended."""


@contextmanager
def _server(folder: Path, port: int) -> Iterator[str]:
    """A server with the default model, capture and its console. Yields its URL when it can score."""
    flags = [
        f"--port={port}",
        "--capture=share:1",
        f"--tripwires.state-dir={folder}",
        "--log-level=warning",
        # Hours of a training are replayed in minutes, so the trip wires get the CPU time of hours.
        "--tripwires.cpu-share=1",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REWARD_")}
    command = [sys.executable, "-m", "rewardserve", "serve", *flags]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield _url_of(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _url_of(process: subprocess.Popen[str]) -> str:
    """The URL of the server that starts, once it is ready. Its errors are printed, but not its alerts: these come with the runs."""
    found = threading.Event()
    urls: list[str] = []

    def read() -> None:
        for line in process.stderr or ():
            match = _LISTENING.search(line)
            if match and not urls:
                urls.append(match.group(1))
                found.set()
            elif "unpack" in line or ("error" in line and " tripwire " not in line):
                print(line, end="", file=sys.stderr)
        found.set()

    threading.Thread(target=read, daemon=True).start()
    print("starting a server with the default model ...", flush=True)
    if not found.wait(_READY_S) or not urls:
        raise _ServerFailed("the server did not start: run `rewardserve serve` to see why")
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{urls[0]}/readyz", timeout=10.0).status_code == httpx.codes.OK:
                return urls[0]
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise _ServerFailed("the server is not ready: run `rewardserve serve` to see why")


def _show(url: str, folder: Path, minutes: float, *, opens: bool, ends: bool) -> int:
    console = f"{url}/console"
    print(f"console: {console}", flush=True)
    if opens and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"):
        webbrowser.open(console)
    print(
        "two runs, `healthy` and `hacked`; from step 12 on `hacked` learns a sentence. Ctrl-C ends the demo.",
        flush=True,
    )
    states: dict[str, str] = {}
    known = read_responses()
    streams = {run: steps(run, known) for run in (HEALTHY, HACKED)}
    began = time.monotonic()
    with httpx.Client(base_url=url, timeout=120.0) as client:
        for step in range(N_STEPS):
            for run, stream in streams.items():
                reply = client.post("/score", json={"run": run, "step": step, "samples": next(stream)})
                if reply.status_code != httpx.codes.OK:
                    raise _ServerFailed(f"the server answered {reply.status_code}: {reply.text[:200]}")
            _print_changes(client, states, step)
            time.sleep(max(0.0, began + 60.0 * minutes * (step + 1) / N_STEPS - time.monotonic()))
        print(f"the replay has ended. Label pairs: {console}/queue?run={HACKED}&sampling=alert")
        print(f"then: rewardserve export-labels {folder / 'review.db'} --run={HACKED}", flush=True)
        while not ends:
            time.sleep(1.0)
    return 0


def _print_changes(client: httpx.Client, states: dict[str, str], step: int) -> None:
    """Print the runs whose state has changed."""
    for run, summary in client.get("/tripwires").json()["runs"].items():
        if states.get(run) != summary["state"]:
            states[run] = summary["state"]
            why = summary["paid_for"] or summary["alert"] or ""
            print(f"step {step}: {run} is {summary['state']}{': ' if why else ''}{why}", flush=True)
