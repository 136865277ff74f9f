"""LitServe: up to 16 requests that arrive within 5 ms form a batch."""

from __future__ import annotations

from typing import Any

import litserve  # type: ignore[import-not-found]

from benchmarks.peers.servers.forward import BATCH, TransformersModel, arguments


class LitReward(litserve.LitAPI):  # type: ignore[misc]
    """Worker with the model."""

    folder = ""

    def setup(self, device: str) -> None:
        """Load."""
        self.forward = TransformersModel(self.folder)

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Keep the requests as a list."""
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
        """Score the requests of a batch together."""
        return self.forward.many(x)

    def unbatch(self, output: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
        """Return one reply a request."""
        return output


def main() -> None:
    """Serve."""
    given = arguments()
    api = LitReward(max_batch_size=BATCH, batch_timeout=0.005)
    api.folder = given.model
    server = litserve.LitServer(api, accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
