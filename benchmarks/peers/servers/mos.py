"""mosec: up to 16 requests that arrive within 5 ms form a batch."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]

from benchmarks.peers.servers.forward import BATCH, TransformersModel

FOLDER = "REWARD_MODEL_FOLDER"


class MosecReward(Worker):  # type: ignore[misc]
    """Worker with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.score = TransformersModel(os.environ[FOLDER])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
        """Score the requests of a batch together."""
        return self.score.many(data)


def main() -> None:
    """Serve. mosec parses the command line, so the arguments of this script come from the environment."""
    os.environ.setdefault(FOLDER, sys.argv[sys.argv.index("--model") + 1])
    port = sys.argv[sys.argv.index("--port") + 1]
    sys.argv = [sys.argv[0], "--port", port]
    server = Server()
    server.append_worker(MosecReward, num=1, max_batch_size=BATCH, max_wait_time=5, timeout=600)
    server.run()


if __name__ == "__main__":
    main()
