"""`rewardserve score INPUT OUTPUT`: score a file without HTTP, by the same stages as the server.

`rewardserve.exit_codes` has the exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence

from pydantic_settings import SettingsError

from rewardserve.exit_codes import FAILED, INTERRUPTED, SOME_FAILED, USAGE_ERROR
from rewardserve.model.backends import LoadError
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.resource_errors import describe_resource_error
from rewardserve.model.reward import PipelineError
from rewardserve.service.cli.options import Wording, complain, complain_of_model, from_command_line
from rewardserve.service.errors import RequestRefused
from rewardserve.service.observability import logs
from rewardserve.service.offline.input_file import NotContinuable, count_lines
from rewardserve.service.offline.output_file import Marks, Output
from rewardserve.service.offline.score_file import load_model, score_file
from rewardserve.service.settings import ScoreSettings

PROGRAM = "rewardserve score"
FIRST = ("model", "device", "dtype", "max_input_tokens", "truncation")
"""The settings that `--help` shows."""


def main(arguments: Sequence[str]) -> int:
    """Score the file. Return the exit code."""
    settings = from_command_line(ScoreSettings, PROGRAM, arguments, FIRST)
    wording = Wording(ScoreSettings, arguments)
    logs.configure(settings.log_level, settings.log_format)
    try:
        n_lines = count_lines(settings.input, settings.output)
        out = Output(settings.output)
        with contextlib.closing(out):
            loaded, pipeline = load_model(settings)
            digest = out.resume(Marks.of(loaded, pipeline, settings), settings.input)
            asyncio.run(score_file(settings, loaded, pipeline, out, digest, n_lines))
        print_summary(out)
        return SOME_FAILED if out.failed else 0
    except (LoadError, PipelineError, CalibrationError) as error:
        complain_of_model(PROGRAM, error, wording)
        return FAILED
    except RequestRefused as error:
        complain(PROGRAM, [error.message, f"Run the same command again to continue {settings.output}."])
        return FAILED
    except (NotContinuable, SettingsError) as error:
        complain(PROGRAM, [wording(str(error))])
        return USAGE_ERROR
    except OSError as error:
        if error.filename is None:
            complain(PROGRAM, [f"{describe_resource_error(error) or error.strerror}."])
            return FAILED
        again = f" Complete lines are kept: run the same command again to continue {settings.output}."
        complain(
            PROGRAM, [f"{error.filename}: {error.strerror}." + again * (error.errno in (errno.ENOSPC, errno.EDQUOT))]
        )
        return USAGE_ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain(PROGRAM, [f"interrupted. Run the same command again to continue {settings.output}."])
        return INTERRUPTED


def print_summary(out: Output) -> None:
    """Print how many lines have a score, and the errors of the others."""
    n_failed = out.failed.total()
    reasons = ", ".join(f"{code} {n}" for code, n in sorted(out.failed.items()))
    complain(
        PROGRAM,
        [
            f"{out.n_done} line{'s' * (out.n_done != 1)}: {out.n_done - n_failed} scored, {n_failed} without a score"
            + f" ({reasons})" * bool(reasons)
        ],
    )
