"""infinity-emb `/classify`: batches over requests, sorted by length.

It refuses models of one label on that route, so it reads a copy of the model with a second label that is always zero;
`regression` in the configuration prevents a softmax. It strips every text, so the copy's tokenizer appends the final
newline of a conversation again: the ids equal those of the other servers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.record import Launch, Peer, Text

_WEIGHTS = "model.safetensors"
_NEWLINE = "Ċ"  # newline in byte-level vocabularies


def _command(launch: Launch) -> list[str | Path]:
    place = ["--host", "127.0.0.1", "--port", str(launch.port), "--url-prefix", ""]
    how = [
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--no-bettertransformer",
        "--log-level",
        "error",
    ]
    return [launch.scripts / "infinity_emb", "v2", "--model-id", _copy(launch), *place, *how]


def _copy(launch: Launch) -> Path:
    return launch.home / f"{launch.model.name}-two-labels"


def _prepare(launch: Launch) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    place = _copy(launch)
    if (place / _WEIGHTS).is_file():
        return
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(launch.model / "tokenizer_config.json", place)
    tokenizer = Tokenizer.from_file(str(launch.model / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {_NEWLINE}", special_tokens=[(_NEWLINE, tokenizer.token_to_id(_NEWLINE))]
    )
    tokenizer.save(str(place / "tokenizer.json"))
    labels = {"id2label": {"0": "score", "1": "zero"}, "label2id": {"score": 0, "zero": 1}}
    config = {**json.loads((launch.model / "config.json").read_text()), **labels}
    (place / "config.json").write_text(json.dumps(config))
    tensors = load_file(launch.model / _WEIGHTS)
    tensors["score.weight"] = torch.cat([tensors["score.weight"], torch.zeros_like(tensors["score.weight"])])
    save_file(tensors, place / _WEIGHTS, metadata={"format": "pt"})


def _quiet(launch: Launch) -> Mapping[str, str]:
    return {"INFINITY_ANONYMOUS_USAGE_STATS": "0"}


def _body(texts: Sequence[Text]) -> dict[str, Any]:
    return {"model": "default/not-specified", "input": list(texts), "raw_scores": True}


def _scores(reply: Any) -> list[float]:
    return [next(float(label["score"]) for label in labels if label["label"] == "score") for labels in reply["data"]]


PEER = Peer(
    name="infinity",
    # It needs transformers 4.x, and its command line older versions of typer and click.
    requirements=("torch", "infinity-emb[server,torch]==0.0.78", "click<8.2"),
    command=_command,
    path="/classify",
    body=_body,
    scores=_scores,
    takes_ids=False,
    prepare=_prepare,
    extras=_quiet,
)
