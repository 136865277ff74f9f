"""`rewardserve serve`: read the settings, bind the socket, serve, and end with an exit code.

`rewardserve.exit_codes` has the exit codes.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import signal

# The imports below take half a second, in which a signal would end the process by its default action, like a
# crash. No request is accepted yet, so there is nothing to finish; the event loop replaces these two handlers
# later.
for _number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(_number, lambda *_: os._exit(0))
# SIGHUP requests a load of the model, which is in progress anyway.
signal.signal(signal.SIGHUP, signal.SIG_IGN)

import asyncio
import errno
import resource
import sys
from collections.abc import Sequence

import uvloop
from pydantic_settings import SettingsError

from rewardserve.exit_codes import FAILED, USAGE_ERROR
from rewardserve.model.backends import LoadError
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.reward import PipelineError
from rewardserve.model.text.printable import printable
from rewardserve.service.api.http.sockets import bind, url
from rewardserve.service.app import serve
from rewardserve.service.cli.options import Wording, complain, complain_of_model, from_command_line
from rewardserve.service.models.audit_judge import AuditJudgeError
from rewardserve.service.observability import logs
from rewardserve.service.settings import ServeSettings

PROGRAM = "rewardserve serve"
FIRST = ("host", "port", "device", "dtype", "keys_file", "webhook_url")
"""The settings, besides the model, that `--help` shows."""


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal. Return the exit code."""
    settings = from_command_line(ServeSettings, PROGRAM, arguments, FIRST)
    wording = Wording(ServeSettings, arguments)
    raise_descriptor_limit()
    logs.configure(settings.log_level, settings.log_format)
    port, which = settings.port, "REWARD_PORT"
    try:
        keys, webhook_secrets = settings.read_keys(), settings.read_webhook_secrets()
        # Errors in these files are reported before a model is loaded.
        settings.read_lexicon()
        settings.read_honeypots()
        settings.read_canaries()
        settings.make_folders()
        settings.watched_folders()
        scheme = "http" if settings.tls_files() is None else "https"
        listening, shared = bind(settings.host, port), None
        if settings.shared_port is not None:
            port, which = settings.shared_port, "REWARD_SHARED_PORT"
            shared = bind(settings.host, port, shared=True)
    except SettingsError as error:
        complain(PROGRAM, [wording(str(error))])
        return USAGE_ERROR
    except OSError as error:
        remedy = f"Set {which} to a free port, or end the program that uses this one."
        if error.errno != errno.EADDRINUSE:
            remedy = f"Set REWARD_HOST to an address of this machine and {which} to a port that this user may bind."
        complain(PROGRAM, [wording(f"cannot listen on {settings.host}:{port}: {error.strerror}. {remedy}")])
        return FAILED
    print_status(f"RewardServe is listening on {url(listening, scheme)} while the model loads")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ready = f"on {url(listening, scheme)}"

            def on_ready(model: str) -> None:
                print_status(f"RewardServe is ready: {model} {ready}")

            runner.run(serve(settings, keys, listening, on_ready, webhook_secrets, shared))
    except SettingsError as error:  # the database of the review store
        complain(PROGRAM, [wording(str(error))])
        return USAGE_ERROR
    except AuditJudgeError as error:
        complain(PROGRAM, wording(str(error)).splitlines())
        return FAILED
    except (LoadError, PipelineError, CalibrationError) as error:
        complain_of_model(PROGRAM, error, wording)
        return FAILED
    except TimeoutError:
        lost = "accepted requests were not finished within REWARD_DRAIN_TIMEOUT_S="
        complain(PROGRAM, [wording(f"{lost}{settings.drain_timeout_s:g} and have got no answer. Raise it.")])
        return FAILED
    return 0


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit: a shell's soft limit is for programs that use select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def print_status(line: str) -> None:
    """Print a line to stderr, independent of the format and level of the log."""
    print(printable(line), file=sys.stderr, flush=True)
