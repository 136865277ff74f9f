"""Descriptions of the fields of other wire formats, for the OpenAPI document. Their bodies are read by msgspec.

A name means the same in every format, unless it is here with the name of its record before it. A field may have its description
and its example in its own type instead: `Annotated[str, msgspec.Meta(description=..., examples=[...])]`.
"""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, str] = {
    "model": "name of the model; another one than the served, an alias or a digest is refused with 404; empty: any",
    "request_id": "comes back within the id of the reply",
    "use_activation": "true: the sigmoid of the raw score; default: the raw score",
    "activation": "older name of use_activation",
    "softmax": "oldest name of use_activation; of one score it means the sigmoid",
    "truncate_prompt_tokens": "a lower limit in tokens: the left of the prompt is cut, never the end; -1: the model's own limit",
    "encoding_format": "float: numbers; base64: little-endian float32",
    "truncate": "false: a text that is too long is refused; default: the left of the prompt is cut",
    "raw_scores": "true: raw scores; default: their sigmoid, unless the URL has ?value=",
    # OpenRLHF, align-anything
    "QueryRequest.query": "whole conversations, decoded with special tokens (OpenRLHF)",
    "QueryRequest.prompts": "the prompts of query, in the same order; null or empty: not known",
    "ResponsesRequest.prompts": "the prompts of responses, in the same order (align-anything)",
    "ResponsesRequest.responses": "responses to prompts (align-anything)",
    # slime
    "SlimeRequest.prompt": "a text, rendered or plain, or a list of messages",
    "SlimeRequest.response": "the response to score",
    # LLaMA-Factory
    "ScoreEvaluationRequest.messages": "whole conversations, decoded with special tokens",
    "ScoreEvaluationRequest.model": "the served model, an alias or a digest; `model`, which LLaMA-Factory always sends: any",
    "ScoreEvaluationRequest.max_length": "a lower limit in tokens: the left of the prompt is cut, never the end",
    # vLLM, SGLang
    "input": "a text, a list of texts, token ids, or a list of lists of token ids; rendered already",
    "MessagesRequest.messages": "a conversation; the last message is the assistant's and is scored (vLLM)",
    "PoolingMessagesRequest.messages": "a conversation; the last message is the assistant's and is scored (vLLM)",
    "TextRequest.text": "a text or a list of texts, rendered already (SGLang)",
    "IdsRequest.input_ids": "token ids, or lists of them (SGLang)",
    "rid": "comes back as the id of the text; for a list of texts a list (SGLang)",
    "continue_final_message": "true: the policy was cut off, so no end token is added",
    "task": "classify, reward or score, which are the same here; others are refused",
    "text_1": "prompts: one text, or a list (vLLM)",
    "text_2": "responses to text_1: one text, or a list (vLLM)",
    "queries": "as text_1",
    "DocumentsRequest.documents": "as text_2, with queries",
    "data_1": "as text_1",
    "data_2": "as text_2",
    "QueryItemsRequest.query": "the prompt of all items, as text or as token ids (SGLang)",
    "QueryItemsRequest.items": "responses to query, as texts or as lists of token ids (SGLang)",
    "ItemsRequest.items": "as text_2, with queries",
    "item_first": "true: an item is the prompt, and the query the response",
    "RerankRequest.query": "the prompt of all documents",
    "RerankRequest.documents": "responses to rank: texts, or objects with a text",
    "RerankTextsRequest.query": "the prompt of all texts",
    "texts": "responses to rank (text-embeddings-inference)",
    "top_n": "how many results to return; 0 or nothing: all",
    "return_documents": "false: results without their documents",
    "return_text": "true: results with their texts (text-embeddings-inference)",
    # text-embeddings-inference
    "PredictRequest.inputs": "a text, a pair of texts (prompt and response), or a list of such lists",
    # KServe
    "InferRequest.inputs": "the tensor sentences, or tokens and sequence_lengths",
    "InferRequest.id": "comes back in the reply",
    "InferRequest.outputs": "the tensors that the reply has: rewards",
    "OutputTensor.name": "rewards",
    "OutputTensor.parameters": "how bytes are sent",
    "Tensor.name": "sentences, tokens or sequence_lengths",
    "Tensor.shape": "of data",
    "Tensor.data": "flat, or nested as shape says",
    "Tensor.parameters": "how bytes are sent; binary_data_size is refused with the content type",
    "Tensor.datatype": "BYTES for sentences, INT64 for the others; not needed",
}

VERIFY: dict[str, Any] = {
    "type": "object",
    "required": ["responses_create_params", "response"],
    "additionalProperties": True,
    "properties": {
        "responses_create_params": {
            "type": "object",
            "description": "the request to the policy, as of OpenAI's Responses: `input`, `instructions`",
        },
        "response": {"type": "object", "description": "the policy's response, as of OpenAI's Responses: `output`"},
        "mask_sample": {"type": "boolean", "description": "true: the episode was masked before, and stays masked"},
        "instance_config": {
            "type": "object",
            "description": "comes back with `mask_sample` in it, where NeMo-RL reads it",
        },
    },
}
"""The body of `/verify`, which is read as it came because it is echoed."""


def describe_fields(name: str, schema: dict[str, Any]) -> None:
    """Give every field of a record its description, in place."""
    for field, of_field in schema.get("properties", {}).items():
        description = FIELDS.get(f"{name}.{field}", FIELDS.get(field))
        if description is not None:
            of_field.setdefault("description", description)
