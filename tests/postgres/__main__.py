"""`python -m tests.postgres`: the tests of the review store on a real Postgres, which is started for them and ended."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.postgres.cluster import Cluster, NoPostgres


def main() -> int:
    """The exit code of pytest; 1 where there is no Postgres."""
    try:
        with Cluster() as cluster:
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-n0",
                "-q",
                "-k",
                "postgres",
                "tests/unit/service/review",
                "tests/postgres",
            ]
            return subprocess.run(
                command, env={**os.environ, "REWARDSERVE_TEST_POSTGRES": cluster.url}, check=False
            ).returncode
    except NoPostgres as error:
        print(f"test-postgres: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
