"""`rewardserve bench [MODEL]` or `rewardserve bench --url URL`: measure a server over HTTP, as a trainer would use it.

Without a URL the command starts `rewardserve serve` with the same model and settings as a process of its own: a server in the
process of the clients would share the interpreter with them.

Exit codes: 0 every sample has a score, 1 the server cannot be started or reached, or no sample has a score, 2 invalid arguments or
file, 3 some requests or samples have no score, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import urlsplit

import httpx
import uvloop

from rewardserve.arguments import Parser, end_with_usage, is_option, show
from rewardserve.bench import machine
from rewardserve.bench.closed_loop import closed_loop, http_client
from rewardserve.bench.contention import contention, read_cpu_times
from rewardserve.bench.figures import Counts, figures
from rewardserve.bench.report import text_of
from rewardserve.bench.server_process import NotReady, ServerProcess, interrupt_at_sigterm
from rewardserve.bench.workload import NoSamples, Workload, of_file, synthetic
from rewardserve.exit_codes import FAILED, INTERRUPTED, SOME_FAILED, USAGE_ERROR
from rewardserve.model.text.nearest_word import CUTOFF_OF_NAMES, did_you_mean
from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import error_reason
from rewardserve.service.cli.options import complain, from_command_line, options_of, section_flags
from rewardserve.service.offline.input_file import NotContinuable
from rewardserve.service.settings import ServeSettings

PROGRAM = "rewardserve bench"
CONCURRENCY, PER_REQUEST, SECONDS = 4, 16, 30.0
NOT_SERVED = (
    "host", "port", "shared_port", "keys_file", "tls_cert_file", "tls_key_file", "tls_client_ca_file", "webhook_url",
    "webhook_secret_file", "tripwires.state_dir", "tripwires.evidence_dir",
)  # fmt: skip
"""Settings that the server under measurement does not get: a production server on this machine may have the port, the folder and
the webhook."""

_DESCRIPTION = """Measure a reward model on this machine, or a running server: throughput, latency, and failures by code.
Without --url a server is started with MODEL and SETTINGS, which are those of rewardserve serve, on a port of the loopback,
without keys, TLS, webhook and folders of state. Each client sends its next request as soon as it has a reply; a failed
request is not sent again."""
_LOG_LINES = 20
_MODEL_TIMEOUT_S = 30.0
_LIBRARIES = ("rewardserve", "torch", "transformers", "tokenizers", "vllm")


class Unreachable(Exception):
    """The server does not answer, or not with a model."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure. `process` is None for one that was running before."""

    url: str
    key: str
    process: ServerProcess | None

    def client(self, n_clients: int) -> httpx.AsyncClient:
        """Connections to it."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return http_client(n_clients, headers=headers, use_proxy=self.process is None)


def main(arguments: Sequence[str]) -> int:
    """Measure a server and print the figures. Return the exit code."""
    parser = _parser()
    given, of_server = parser.parse_known_args(arguments)
    _check_server_arguments(parser, given, of_server)
    interrupt_at_sigterm()  # also while the server starts, which must not outlive this process
    try:
        workload = _workload(given)
        key = given.key_file.read_text().strip() if given.key_file else ""
        with (
            _target(given.url or "", key, of_server) as target,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_measure(target, workload, given))
    except (NotReady, Unreachable) as error:
        complain(PROGRAM, str(error).splitlines())
        return FAILED
    except (NoSamples, NotContinuable) as error:
        complain(PROGRAM, [str(error)])
        return USAGE_ERROR
    except (OSError, UnicodeDecodeError) as error:
        name = getattr(error, "filename", None) or given.key_file
        reason = error_reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        complain(PROGRAM, [f"{name}: {reason}"])
        return USAGE_ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain(PROGRAM, ["interrupted before the measurement."])
        return INTERRUPTED


def _parser() -> Parser:
    usage = f"{PROGRAM} [MODEL] [SETTINGS] [OPTIONS]\n       {PROGRAM} --url URL [--key-file FILE] [OPTIONS]"
    parser = Parser(PROGRAM, _DESCRIPTION, usage=usage)
    parser.add_argument("--url", type=_url, help="measure the server with this URL; default: start one")
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="file with the API key for --url; default: no key"
    )
    parser.add_argument(
        "--file", type=Path, help="samples, one a line, as for rewardserve score; default: synthetic ones"
    )
    parser.add_argument(
        "--group", type=_count, metavar="G", help="synthetic responses to one prompt, as in GRPO; default: 1"
    )
    parser.add_argument(
        "--run", default="", metavar="NAME", help="name of a run, so that the trip wires watch it; default: none"
    )
    parser.add_argument("--concurrency", type=_count, default=CONCURRENCY, metavar="C", help="clients")
    parser.add_argument("--per-request", type=_count, default=PER_REQUEST, metavar="B", help="samples a request")
    parser.add_argument("--samples", type=_count, metavar="N", help="end after N samples; default: no such limit")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help="begin no request after this time; default: 30 for synthetic samples, none for --file and --samples",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures into a file as well; default: none")
    return parser


def _check_server_arguments(parser: Parser, given: argparse.Namespace, of_server: Sequence[str]) -> None:
    """Validate the arguments of the server to start, without the variables that it does not get. End the process on errors."""
    if given.group is not None and given.file:
        parser.error("--group is for synthetic samples, not for --file")
    own = [f"--{name.replace('_', '-')}" for name in vars(given)]
    of_settings = {option.name for option in options_of(ServeSettings)}
    if given.url:
        for name in (each.partition("=")[0] for each in of_server if is_option(each)):
            if name.replace("_", "-") not in of_settings:
                parser.error(f"unrecognized arguments: {name}")
        if of_server:
            parser.error(f"--url names a running server, so there is nothing to start with {' '.join(of_server)}")
        return
    if given.key_file:
        parser.error("--key-file is for --url: the server that is started here asks for no key")
    for option in options_of(ServeSettings):
        if ".".join(option.path) in NOT_SERVED:
            os.environ.pop(option.variable, None)
    known = [option.name for option in options_of(ServeSettings) if ".".join(option.path) not in NOT_SERVED]
    sections = section_flags(options_of(ServeSettings))
    known += ["--help-all", *own]
    for name in (argument.partition("=")[0].replace("_", "-") for argument in of_server if argument.startswith("--")):
        if name not in known and name not in sections:  # a section is refused below, in words
            end_with_usage(PROGRAM, f"unrecognized arguments: {name}{did_you_mean(name, known, CUTOFF_OF_NAMES)}")
    from_command_line(ServeSettings, PROGRAM, of_server, without=NOT_SERVED)


def _workload(given: argparse.Namespace) -> Workload:
    """The samples to send. Raise `NoSamples`, `NotContinuable` or `OSError`."""
    if given.json:
        given.json.open("a").close()  # a file that cannot be written must not cost the measurement
    if given.file is None:
        return synthetic(given.samples, given.group or 1)
    return of_file(given.file, given.samples, is_timed=given.seconds is not None)


def _time_limit_s(given: argparse.Namespace) -> float:
    if given.seconds is not None:
        return float(given.seconds)
    return math.inf if given.file or given.samples else SECONDS


@contextmanager
def _target(url: str, key: str, flags: Sequence[str]) -> Iterator[Target]:
    """The server to measure; one that is started here ends with the block. Raise `NotReady` with the end of its log."""
    if url:
        yield Target(url, key, None)
        return
    with TemporaryFile() as log:
        try:
            _print_status(f"starting {' '.join(('rewardserve serve', *flags))}")
            with ServerProcess(*flags, log=log, timeout_s=math.inf) as server:
                yield Target(server.url, "", server)
                if (code := server.process.poll()) is not None:
                    complain(PROGRAM, [*_last_lines(log), f"the server ended in the measurement (exit code {code})"])
        except NotReady as error:
            raise NotReady("\n".join([*_last_lines(log), str(error)])) from None


def _print_status(status: str) -> None:
    print(printable(f"{PROGRAM}: {status}"), file=sys.stderr, flush=True)


def _last_lines(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return log.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:]


async def _measure(target: Target, workload: Workload, given: argparse.Namespace) -> int:
    """Measure, and print the figures. Return the exit code. Raise `Unreachable`."""
    main_task = asyncio.current_task()
    assert main_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
    url, n_clients, counts, is_interrupted = f"{target.url}/score", given.concurrency, Counts(), False
    load = os.getloadavg()[0]
    async with target.client(n_clients) as http:
        model = await _model(http, target.url)
        first = synthetic(None, given.group or 1).bodies(given.per_request)
        await closed_loop(http, url, islice(first, n_clients), n_clients, lambda *_: None)
        _print_status("measuring; Ctrl-C ends it and prints the figures so far")
        client_cpu_s, server_cpu_s, began = time.process_time(), _cpu_s(target), time.perf_counter()
        cpu_before = read_cpu_times()
        try:
            bodies = workload.bodies(given.per_request, given.run)
            until = began + _time_limit_s(given)
            await closed_loop(http, url, bodies, n_clients, lambda _, outcome: counts.add(outcome), until=until)
        except asyncio.CancelledError:
            main_task.uncancel()
            is_interrupted = True
        wall_s = time.perf_counter() - began
        client_cpu_s, server_cpu_s = time.process_time() - client_cpu_s, _cpu_s(target) - server_cpu_s
        lost = contention(cpu_before, read_cpu_times(), client_cpu_s + server_cpu_s, wall_s)
    record = {
        "server": {"url": target.url, "started_here": target.process is not None, "model": model},
        "workload": {
            "samples": workload.description,
            "left_out": dict(workload.left_out),
            "clients": n_clients,
            "samples_per_request": given.per_request,
            "run": given.run,
        },
        **figures(counts, wall_s),
        "interrupted": is_interrupted,
        "warnings": lost.warnings(),
        "cpu": {"clients_s": client_cpu_s, "server_s": None if math.isnan(server_cpu_s) else server_cpu_s},
        "machine": {
            "cpu": machine.cpu_name(),
            "instructions": machine.instruction_set(),
            "cores": machine.usable_cores(),
            "load": load,
            **asdict(lost),
            "gpus": machine.gpu_names(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: machine.library_version(name) for name in _LIBRARIES},
        },
    }
    show(text_of(record))
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return _exit_code(counts, workload, is_interrupted)


def _exit_code(counts: Counts, workload: Workload, is_interrupted: bool) -> int:
    if is_interrupted:
        return INTERRUPTED
    if not counts.n_scored:
        return FAILED
    return 0 if counts.is_complete and not workload.left_out else SOME_FAILED


async def _model(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """What `GET /model` says about the model in service. Raise `Unreachable`."""
    try:
        reply = await http.get(f"{url}/model", timeout=_MODEL_TIMEOUT_S)
    except httpx.HTTPError as error:
        reason = f"{type(error).__name__} {error}".rstrip()
        raise Unreachable(
            f"{url} does not answer ({reason}). Start a server there with rewardserve serve, or leave --url out: bench then starts "
            "one."
        ) from None
    try:
        said = reply.json()
        if reply.is_success:
            return {name: said[name] for name in ("model", "model_version", "contract", "backend", "limits")}
        raise Unreachable(f"GET {url}/model: {reply.status_code} {said['error']['code']}: {said['error']['message']}")
    except (ValueError, KeyError, TypeError):
        raise Unreachable(f"GET {url}/model: {reply.status_code}, which is no reply of RewardServe") from None


def _cpu_s(target: Target) -> float:
    """CPU time of a server that was started here; NaN for another one, and for one that has ended."""
    try:
        return math.nan if target.process is None else target.process.cpu_s()
    except OSError:
        return math.nan


# -- types of arguments -------------------------------------------------------------------------------------------------


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/score")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above zero")
    return seconds
