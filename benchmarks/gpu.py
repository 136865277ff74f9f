"""Compare engines on a CUDA device: random-weight Llama shapes in bfloat16, tokens a second and FLOPs utilisation.

The weights are created on the device, so no download is needed. Tokens and FLOPs are those of the unshared rows without
padding: a utilisation above the device's limit shows how much computation sharing saved. `--device cpu --shapes tiny`
runs the same code on any machine, as a check.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import batch_forming, machine, models, tables, workloads
from benchmarks.batch_forming import Batch, Row
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import Scorer, TokenBatch

PAD_ID = 0
NAIVE_ROWS = 16
N_REFERENCE = 8
_GEMM = 8192
_LONGEST = 8192


@dataclass(frozen=True, slots=True)
class GpuShape:
    """Shape of a Llama without the output layer of its vocabulary, as in a reward model."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int

    def flops(self, n_tokens: int) -> float:
        """FLOPs of one unshared row: two per weight and token, and causal attention."""
        width = self.hidden // self.heads
        layer = self.hidden * (2 * self.hidden + 2 * self.key_heads * width + 3 * self.intermediate)
        return self.layers * (2.0 * layer * n_tokens + 2.0 * self.hidden * n_tokens**2)


SHAPES = {
    "8B": GpuShape(4096, 32, 32, 8, 14336, 128_256),
    "1B": GpuShape(2048, 16, 32, 8, 8192, 128_256),
    "tiny": GpuShape(64, 2, 4, 2, 128, 8_192),
}


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Figures of one engine on one workload. `utilisation` is of the measured GEMM peak, `max_error` against each row alone."""

    shape: str
    workload: str
    engine: str
    rows: int
    tokens: int
    computed: int
    wall_s: float
    tokens_per_s: float
    ratio: float
    utilisation: float
    max_error: float


@dataclass(frozen=True, slots=True)
class GpuEngine:
    """Engine: how it forms batches, which scorer it opens over a network, and how many batches it has in flight."""

    cut: Callable[[Sequence[Row], int], list[Batch]]
    open: Callable[[RewardNetwork], Scorer]
    in_flight: int = 1


def _padded(network: RewardNetwork) -> Scorer:
    return PaddedScorer(network, pad_id=PAD_ID, max_tokens=_LONGEST)


def _packed(network: RewardNetwork, *, share: bool) -> Scorer:
    return PackedScorer(network, max_tokens=_LONGEST, share=share)


ENGINES: dict[str, GpuEngine] = {
    "naive": GpuEngine(lambda rows, _: batch_forming.in_order_of_arrival(rows, NAIVE_ROWS), _padded),
    "sorted": GpuEngine(batch_forming.by_length, _padded),
    "packed": GpuEngine(batch_forming.by_tokens, partial(_packed, share=False)),
    "shared": GpuEngine(batch_forming.planned, partial(_packed, share=True)),
    "shared, two in flight": GpuEngine(batch_forming.planned, partial(_packed, share=True), in_flight=2),
}


def main() -> int:
    """Command-line entry."""
    given = _parser().parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no CUDA device here, so nothing was measured", file=sys.stderr)
        return 1
    device = torch.device(given.device)
    peak = gemm_peak(device)
    facts = {**machine.facts(), "device": _name(device), "cuda": torch.version.cuda or "none",
             "gemm_tflops": round(peak / 1e12, 1), "budget": given.budget}  # fmt: skip
    print(tables.facts(facts), flush=True)
    figures: list[GpuFigures] = []
    for name in given.shapes:
        network = build(SHAPES[name], device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        for kind in given.workloads:
            found = list(compare(name, kind, network, rows_of(kind, given), peak, given))
            print("\n" + tables.table([_shown(f) for f in found]), flush=True)
            figures += found
        del network
    if given.json:
        given.json.write_text(json.dumps({"facts": facts, "figures": [asdict(f) for f in figures]}, indent=1) + "\n")
    return 0


def build(shape: GpuShape, device: torch.device, dtype: torch.dtype) -> RewardNetwork:
    """Create a network with random weights on the device."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=_LONGEST,
    )
    torch.manual_seed(0)
    with device, _default_dtype(dtype):
        backbone = LlamaModel(config)
    network = RewardNetwork.create(backbone.eval().requires_grad_(False)).eval()
    network.heads.weight.requires_grad_(False)
    placed: RewardNetwork = network.to(device)
    return placed


def rows_of(kind: str, given: argparse.Namespace) -> list[Row]:
    """Token ids of a workload; the ids of the small benchmark vocabulary are valid in any larger one."""
    folder = models.folder("m30")
    encode = workloads.encoder_of(folder)
    work = workloads.make(kind, workloads.tokenizer_of(folder), given.scale, given.seed)
    return [encode(pair.sample()).ids for pair in work.pairs]


def compare(
    shape: str, kind: str, network: RewardNetwork, rows: list[Row], peak: float, given: argparse.Namespace
) -> Iterator[GpuFigures]:
    """Run every engine in every round, starting each round with another engine."""
    places = machine.spread(len(rows), N_REFERENCE)
    with torch.inference_mode():
        alone = [network(torch.tensor([rows[i]], device=network.device)).scores_BH[0, 0].item() for i in places]
    seconds: dict[str, list[float]] = {name: [] for name in given.engines}
    computed: dict[str, int] = {}
    errors: dict[str, float] = {}
    for n in range(given.rounds + 1):  # the first round warms up
        k = n % len(given.engines)
        for name in [*given.engines[k:], *given.engines[:k]]:
            scores, computed[name], wall_s = run(ENGINES[name], network, rows, given.budget)
            errors[name] = max(abs(scores[i] - score) for i, score in zip(places, alone, strict=True))
            if n:
                seconds[name].append(wall_s)
    n_tokens, flops = sum(map(len, rows)), sum(SHAPES[shape].flops(len(row)) for row in rows)
    base = statistics.median(seconds[given.engines[0]])
    for name, walls in seconds.items():
        wall_s = statistics.median(walls)
        yield GpuFigures(
            shape, kind, name, len(rows), n_tokens, computed[name], wall_s,
            n_tokens / wall_s, base / wall_s, flops / wall_s / peak, errors[name],
        )  # fmt: skip


def run(engine: GpuEngine, network: RewardNetwork, rows: list[Row], budget: int) -> tuple[list[float], int, float]:
    """Scores in order, tokens computed, seconds. Forming the batches is part of the work."""
    scorer = engine.open(network)
    scores, n_computed = [float("nan")] * len(rows), 0
    uninstall = getattr(scorer, "uninstall", lambda: None)  # the network is shared between engines: close would drop it
    _wait(network.device)
    started = time.perf_counter()
    try:
        with closing(_Pool(engine.in_flight)) as pool:
            batches = engine.cut(rows, budget)
            for batch, done in zip(batches, pool.map(partial(_score, scorer, rows), batches), strict=True):
                n_computed += done.tokens_computed + done.tokens_padding
                for i, heads in zip(batch, done.rows, strict=True):
                    scores[i] = heads["score"]
        _wait(network.device)
        return scores, n_computed, time.perf_counter() - started
    finally:
        uninstall()


class _Pool(ThreadPoolExecutor):
    """Thread pool for batches in flight."""

    def close(self) -> None:
        """Wait for all batches."""
        self.shutdown()


def _score(scorer: Scorer, rows: list[Row], batch: Batch) -> Any:
    return scorer.score(TokenBatch(tuple(rows[i] for i in batch)))


def gemm_peak(device: torch.device) -> float:
    """FLOP a second of one large matrix product, the best of several."""
    n, dtype = (_GEMM, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * n**3 / best


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _shown(f: GpuFigures) -> dict[str, str]:
    return {
        "shape": f.shape,
        "workload": f"{f.workload} ({f.rows} rows, {f.tokens} tokens)",
        "engine": f.engine,
        "positions computed": str(f.computed),
        "seconds": f"{f.wall_s:.3f}",
        "tokens/s": f"{f.tokens_per_s:.0f}",
        "ratio": f"{f.ratio:.2f}",
        "FLOPs utilisation": f"{100 * f.utilisation:.0f} %",
        "max error": f"{f.max_error:.1e}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Compare engines on a CUDA device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1B", "8B"])
    parser.add_argument(
        "--workloads", nargs="+", choices=("ragged", "grpo", "long"), default=["ragged", "grpo", "long"]
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of a workload's full size")
    parser.add_argument("--budget", type=int, default=16_384, help="tokens a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
