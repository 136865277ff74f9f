"""FastAPI with a forward inside `async def`, as in OpenRLHF: one request at a time, and the event loop blocks meanwhile."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.peers.servers.forward import TransformersModel, arguments

app = FastAPI()
given = arguments()
forward = TransformersModel(given.model)


@app.get("/health")
async def health() -> dict[str, str]:
    """Report that the model is loaded."""
    return {"status": "ok"}


@app.post("/get_reward")
async def get_reward(request: Request) -> dict[str, Any]:
    """Score in the event loop: blocking on purpose, as in OpenRLHF."""
    rewards = forward((await request.json())["query"])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning")
