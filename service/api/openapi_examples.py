"""Examples of the fields in the OpenAPI document, for the format of this server and for other wire formats.

A field has the same example in every record, unless the table has it as `Record.field`.
"""

from __future__ import annotations

from typing import Any

_PROMPT, _RESPONSE = "How do I boil an egg?", "Eight minutes in boiling water."
_RENDERED = f"<|im_start|>user\n{_PROMPT}<|im_end|>\n<|im_start|>assistant\n{_RESPONSE}<|im_end|>\n"
_MESSAGES = [{"role": "user", "content": _PROMPT}, {"role": "assistant", "content": _RESPONSE}]
_DIGEST = "sha256:6f1d0c5e2b7a49d38c11f0e4a7b2956d0e8c3a51f4d27b69e0a1c85d3f4b2e70"
_ERROR = {
    "code": "input_too_long",
    "message": "the sample has 5012 tokens; the limit is 4096",
    "n": 5012,
    "limit": 4096,
}
_SAMPLE = {"id": "a", "prompt": _PROMPT, "response": _RESPONSE}
_RESULT = {
    "id": "a", "reward": 0.41, "raw": 1.93, "normalized": 0.52, "notes": ["softcapped_high"], "flags": [], "tokens": 213,
    "truncated": False, "missing_end": False, "cached": False, "error": None,
}  # fmt: skip
_COMPARED = {
    "id": "q", "ranking": [1, 0], "winner": 1, "raw": [-0.4, 1.93], "probabilities": [[0.5, 0.09], [0.91, 0.5]],
    "margin": 2.33, "error": None,
}  # fmt: skip

EXAMPLES: dict[str, Any] = {
    # Requests in the format of this server.
    "run": "ppo-7",
    "step": 120,
    "kl": 3.4,
    "samples": [_SAMPLE],
    "comparisons": [{"id": "q", "prompt": _PROMPT, "responses": ["Look it up.", _RESPONSE]}],
    "tie_margin": 0.05,
    "id": "a",
    "prompt": _PROMPT,
    "response": _RESPONSE,
    "responses": ["Look it up.", _RESPONSE],
    "messages": _MESSAGES,
    "text": _RENDERED,
    "input_ids": [1, 4093, 338, 2],
    "finish_reason": "stop",
    "reference_rewards": [0.3, 0.8],
    "score_empty": False,
    "role": "user",
    "content": _PROMPT,
    # Replies.
    "model": "/models/step-1200",
    "model_version": 2,
    "contract": _DIGEST,
    "calibration": _DIGEST,
    "pipeline": _DIGEST,
    "rewards": [0.41, None],
    "ScoreReply.results": [_RESULT],
    "CompareReply.results": [_COMPARED],
    "usage": {"samples": 2, "tokens": 213, "tokens_computed": 120},
    "timing_ms": {"encode": 1.2, "queue": 2.0, "forward": 9.7},
    "reward": 0.41,
    "raw": 1.93,
    "normalized": 0.52,
    "heads": {"convincing": 0.7, "harmless": 1.2},
    "stages": {"combined": 0.52, "shape": -0.11},
    "notes": ["softcapped_high"],
    "flags": ["repetition"],
    "tokens": 213,
    "truncated": False,
    "missing_end": False,
    "cached": False,
    "error": _ERROR,
    "code": _ERROR["code"],
    "message": _ERROR["message"],
    "ranking": [1, 0],
    "winner": 1,
    "ComparisonOut.raw": [-0.4, 1.93],
    "probabilities": [[0.5, 0.09], [0.91, 0.5]],
    "margin": 2.33,
    "UsageOut.samples": 2,
    "tokens_computed": 120,
    "encode": 1.2,
    "queue": 2.0,
    "forward": 9.7,
    # Operators.
    "ensemble": "a=/models/step-1200,b=/models/step-900",
    "shadow": 0.1,
    "pin": ["ppo-7"],
    "version": 2,
    # OpenRLHF, align-anything, slime, LLaMA-Factory
    "QueryRequest.query": [_RENDERED],
    "prompts": [_PROMPT],
    "ResponsesRequest.responses": [_RESPONSE],
    "ScoreEvaluationRequest.messages": [_RENDERED],
    "max_length": 2048,
    # vLLM, SGLang, text-embeddings-inference
    "request_id": "step-120-a",
    "use_activation": False,
    "activation": False,
    "softmax": False,
    "truncate_prompt_tokens": 2048,
    "input": [_RENDERED],
    "continue_final_message": False,
    "rid": "step-120-a",
    "task": "reward",
    "encoding_format": "float",
    "text_1": _PROMPT,
    "text_2": [_RESPONSE],
    "data_1": _PROMPT,
    "data_2": [_RESPONSE],
    "queries": _PROMPT,
    "documents": [_RESPONSE],
    "items": [_RESPONSE],
    "query": _PROMPT,
    "item_first": False,
    "top_n": 1,
    "return_documents": True,
    "texts": [_RESPONSE],
    "raw_scores": True,
    "truncate": True,
    "return_text": False,
    "PredictRequest.inputs": [[_PROMPT, _RESPONSE]],
    # KServe
    "InferRequest.inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": [_RENDERED]}],
    "outputs": [{"name": "rewards"}],
    "Tensor.name": "sentences",
    "OutputTensor.name": "rewards",
    "shape": [1, 1],
    "data": [_RENDERED],
    "datatype": "BYTES",
    "parameters": {"content_type": "str"},
    # NeMo-Gym
    "verify.responses_create_params": {"input": [{"role": "user", "content": _PROMPT}]},
    "verify.response": {
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": _RESPONSE}]}]
    },
    "verify.mask_sample": False,
    "verify.instance_config": {"mask_sample": False},
}  # fmt: skip


def add_examples(part: Any) -> None:
    """Add examples to the fields of all records in this part of the document, in place."""
    if isinstance(part, list):
        for each in part:
            add_examples(each)
    elif isinstance(part, dict):
        record = part.get("title", "verify")
        for name, field in (part.get("properties") or {}).items():
            example = EXAMPLES.get(f"{record}.{name}", EXAMPLES.get(name))
            if example is not None:
                field.setdefault("examples", [example])
        for name, each in part.items():
            if name not in ("example", "examples"):
                add_examples(each)
