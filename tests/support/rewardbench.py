"""Evaluate a reward model as RewardBench does: `python rewardbench.py CHECKPOINT PAIRS.jsonl`. Uses transformers, no code of ours.

Prints a JSON object: `accuracy`, the share of pairs whose chosen conversation scores higher, and `scores` of both, row by row.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Score every row alone, then all in padded batches of rendered text, and compare the two."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, path = sys.argv[1:]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    conversations = [[*row["prompt"], *row[side]] for row in rows for side in ("chosen", "rejected")]
    scores: list[float] = []
    batched: list[float] = []
    with torch.no_grad():
        for turns in conversations:
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
            scores.append(float(model(input_ids=ids["input_ids"]).logits[0, 0]))
        texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
        for start in range(0, len(texts), 8):
            batch = tokenizer(
                texts[start : start + 8],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            batched += logits[:, 0].tolist()
    worst = max(abs(a - b) for a, b in zip(scores, batched, strict=True))
    assert worst <= 1e-4, f"rows alone and in a padded batch differ by {worst}"
    ours = {"rewardserve", "rewardserve_client"}
    assert not ours & {name.partition(".")[0] for name in sys.modules}
    right = sum(chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True))
    print(json.dumps({"accuracy": right / len(rows), "scores": scores}))


if __name__ == "__main__":
    main()
