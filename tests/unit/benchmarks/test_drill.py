"""The servers of a drill can be started."""

import subprocess
import sys

import pytest

from benchmarks.drill import SERVERS


@pytest.mark.parametrize("module", sorted(set(SERVERS.values())))
def test_every_server_is_a_command_that_takes_the_flags_of_serve(module):
    done = subprocess.run([sys.executable, "-m", *module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout
