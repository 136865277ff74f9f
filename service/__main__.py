"""`reward-serve`: read the settings, bind the socket, serve, and end with a code that says how it went.

0 after a clean shutdown, 1 when the model cannot be served or the port cannot be had, 2 for bad settings.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import signal

# The imports below take half a second, in which a signal would end the process by its default action and look
# like a crash. Nothing has been accepted yet, so there is nothing to finish; the event loop's own handlers take
# these two places later.
for _number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(_number, lambda *_: os._exit(0))

import asyncio
import socket
import sys

import uvloop
from pydantic_settings import SettingsError

from model.backends import LoadError
from model.calibration import CalibrationError
from model.reward import PipelineError
from model.traits import LexiconError
from service.app import serve
from service.observability import logs
from service.settings import USAGE_ERROR, ServeSettings, complain, from_command_line, unknown_variables

PROGRAM = "reward-serve"
FAILED = 1


def main() -> None:
    """The console script."""
    settings = from_command_line(ServeSettings, PROGRAM, sys.argv[1:])
    code = run(settings)
    sys.stdout.flush()
    sys.stderr.flush()
    # A loader or a hanging forward cannot be interrupted, and Python would wait for its thread.
    os._exit(code)


def run(settings: ServeSettings) -> int:
    """Serve until told to stop. The exit code."""
    logs.configure(settings.log_level, settings.log_format)
    for name in unknown_variables(ServeSettings, os.environ):
        complain(PROGRAM, [f"{name} is no setting of {PROGRAM} and is ignored; see {PROGRAM} --help"])
    try:
        keys, webhook_secret = settings.read_keys(), settings.read_webhook_secret()
        # What cannot be read is said before a model is loaded.
        settings.wire_plan()
        settings.read_baits()
        settings.make_folders()
        scheme = "http" if settings.tls_files() is None else "https"
        listening = bind(settings.host, settings.port)
    except SettingsError as error:
        complain(PROGRAM, [str(error)])
        return USAGE_ERROR
    except OSError as error:
        complain(PROGRAM, [f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. Set REWARD_PORT."])
        return FAILED
    say(f"RewardServe is listening on {url(listening, scheme)} while the model loads")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ready = f"on {url(listening, scheme)}"
            runner.run(
                serve(
                    settings, keys, listening, lambda what: say(f"RewardServe is ready: {what} {ready}"), webhook_secret
                )
            )
    except (LoadError, PipelineError, CalibrationError, LexiconError) as error:
        complain(PROGRAM, ["this model cannot be served.", *str(error).splitlines()])
        return FAILED
    except TimeoutError:
        complain(PROGRAM, [f"accepted work was not finished within REWARD_DRAIN_TIMEOUT_S={settings.drain_timeout_s}"])
        return FAILED
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raise OSError when the address is taken or not ours."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)
    listening.listen(2048)
    return listening


def url(listening: socket.socket, scheme: str) -> str:
    """Where to find it, the port that was chosen included."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def say(line: str) -> None:
    """For whoever started the server, whatever the log's format and level."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
