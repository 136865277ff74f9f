"""Descriptions of the fields of other wire formats, for the OpenAPI document. Their bodies are msgspec structs.

A field has the same description in every format, unless the table has it as `Record.field`. The type of a field may have the
description and the example instead: `Annotated[str, msgspec.Meta(description=..., examples=[...])]`.
"""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, str] = {
    "model": "the name of the model in service, an alias or a digest; other names are refused with 404; empty: any model",
    "request_id": "returned as a part of the id of the reply",
    "use_activation": "true: return the sigmoid of the raw score; default: the raw score",
    "activation": "older name of use_activation",
    "softmax": "oldest name of use_activation; for one score it means the sigmoid",
    "truncate_prompt_tokens": "lower limit in tokens: the prompt is cut from the left, never the end; -1: the limit of the model",
    "encoding_format": "float: numbers; base64: little-endian float32",
    "truncate": "false: refuse a text that is too long; default: cut the prompt from the left",
    "raw_scores": "true: return raw scores; default: their sigmoid, unless the URL has ?value=",
    # OpenRLHF, align-anything
    "QueryRequest.query": "whole conversations, decoded with special tokens (OpenRLHF)",
    "QueryRequest.prompts": "the prompts of query, in the same order; null or empty: unknown",
    "ResponsesRequest.prompts": "the prompts of responses, in the same order (align-anything)",
    "ResponsesRequest.responses": "responses to prompts (align-anything)",
    # slime
    "SlimeRequest.prompt": "a text, rendered or plain, or a list of messages",
    "SlimeRequest.response": "the response to score",
    # LLaMA-Factory
    "ScoreEvaluationRequest.messages": "whole conversations, decoded with special tokens",
    "ScoreEvaluationRequest.model": "the name of the model in service, an alias or a digest; `model`, which LLaMA-Factory always "
    "sends: any model",
    "ScoreEvaluationRequest.max_length": "lower limit in tokens: the prompt is cut from the left, never the end",
    # vLLM, SGLang
    "input": "a rendered text, a list of them, token ids, or a list of lists of token ids",
    "MessagesRequest.messages": "a conversation; the last message is the assistant's and is scored (vLLM)",
    "PoolingMessagesRequest.messages": "a conversation; the last message is the assistant's and is scored (vLLM)",
    "TextRequest.text": "a rendered text, or a list of them (SGLang)",
    "IdsRequest.input_ids": "token ids, or lists of them (SGLang)",
    "rid": "returned as the id of the text; for a list of texts a list of ids (SGLang)",
    "continue_final_message": "true: the policy was cut off, so no end token is added",
    "task": "classify, reward or score, which have the same effect; others are refused",
    "text_1": "prompts: one text, or a list (vLLM)",
    "text_2": "responses to text_1: one text, or a list (vLLM)",
    "queries": "as text_1",
    "DocumentsRequest.documents": "as text_2, with queries",
    "data_1": "as text_1",
    "data_2": "as text_2",
    "QueryItemsRequest.query": "the prompt of all items, as text or as token ids (SGLang)",
    "QueryItemsRequest.items": "responses to query, as texts or as lists of token ids (SGLang)",
    "ItemsRequest.items": "as text_2, with queries",
    "item_first": "true: an item is the prompt, and the query is the response",
    "RerankRequest.query": "the prompt of all documents",
    "RerankRequest.documents": "responses to rank: texts, or objects with a text",
    "RerankTextsRequest.query": "the prompt of all texts",
    "texts": "responses to rank (text-embeddings-inference)",
    "top_n": "number of results to return; 0 or null: all",
    "return_documents": "false: return results without their documents",
    "return_text": "true: return results with their texts (text-embeddings-inference)",
    # text-embeddings-inference
    "PredictRequest.inputs": "a text, a pair of texts (prompt and response), or a list of such lists",
    # KServe
    "InferRequest.inputs": "the tensor sentences, or tokens and sequence_lengths",
    "InferRequest.id": "returned in the reply",
    "InferRequest.outputs": "names of the tensors to return: rewards",
    "OutputTensor.name": "rewards",
    "OutputTensor.parameters": "how the bytes of the tensor are sent",
    "Tensor.name": "sentences, tokens or sequence_lengths",
    "Tensor.shape": "shape of data",
    "Tensor.data": "values, flat or nested by shape",
    "Tensor.parameters": "how the bytes of the tensor are sent; requests with binary_data_size are refused by their content type",
    "Tensor.datatype": "BYTES for sentences, INT64 for the others; optional",
}

VERIFY: dict[str, Any] = {
    "type": "object",
    "required": ["responses_create_params", "response"],
    "additionalProperties": True,
    "properties": {
        "responses_create_params": {
            "type": "object",
            "description": "the request to the policy, as in OpenAI's Responses API: `input`, `instructions`",
        },
        "response": {
            "type": "object",
            "description": "the response of the policy, as in OpenAI's Responses API: `output`",
        },
        "mask_sample": {"type": "boolean", "description": "true: the episode is masked already, and stays masked"},
        "instance_config": {
            "type": "object",
            "description": "returned with `mask_sample` added, where NeMo-RL reads it",
        },
    },
}
"""The body of `/verify`, which is read as plain JSON because the reply repeats it."""


def describe_fields(name: str, schema: dict[str, Any]) -> None:
    """Add descriptions to the fields of a record, in place."""
    for field, of_field in schema.get("properties", {}).items():
        description = FIELDS.get(f"{name}.{field}", FIELDS.get(field))
        if description is not None:
            of_field.setdefault("description", description)
