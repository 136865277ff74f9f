"""`POST /classify` and `POST /pooling` as vLLM serves them, and `/classify` as SGLang does: told apart by their fields.

vLLM reads `input` or `messages`, SGLang `text` or `input_ids`. vLLM's own default is a sigmoid of the score unless the
checkpoint says that it is a regression; here the default is the raw score, as for every reward model that says so.
Special tokens, template and truncation are the contract's: the end token, at which the score is read, is never cut off.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec

from model.conversation import SCORES_EMPTY, FinishReason, Sample, Terms
from service.api.dialects.dialect import Answered, Dialect, sample_of
from service.api.dialects.openai import UNREAD, Encoding, Inputs, samples_of, usage, vector
from service.api.dialects.turns import turns_of
from service.api.stage import Served
from service.api.wire import MOST_TOKENS
from service.errors import InvalidRequest
from service.scoring import Asked

LABEL = "LABEL_0"
"""What transformers calls the only label of a model with one output."""


class PoolingRequest(msgspec.Struct, frozen=True, gc=False):
    """The fields of both servers that mean something for one score.

    A template of the caller's own is refused: the score would not be the one that was trained.
    """

    input: Inputs | None = None
    messages: list[dict[str, Any]] | None = None
    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    model: str | None = None
    request_id: str = ""
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1, le=MOST_TOKENS)] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    task: str | None = None
    encoding_format: Encoding = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"

    @property
    def is_sglang(self) -> bool:
        """Whether this is SGLang's format."""
        return self.text is not None or self.input_ids is not None

    @property
    def wants_activation(self) -> bool | None:
        """`use_activation`, or one of the names that it had; of one score each means the sigmoid there."""
        asked = [self.use_activation, self.activation, self.softmax]
        return next((each for each in asked if each is not None), None)

    @property
    def terms(self) -> Terms:
        """-1 is vLLM's word for the model's own limit."""
        limit = self.truncate_prompt_tokens
        return Terms(max_tokens=limit if limit is not None and limit > 0 else None, scores_empty=True)


def _ask(body: PoolingRequest, _served: Served) -> list[Asked]:
    for field, value in (("chat_template", body.chat_template), ("chat_template_kwargs", body.chat_template_kwargs)):
        if value:
            raise InvalidRequest(
                f"{field}: the chat template is the contract's, and is rendered as in training; send no other",
                field=field,
            )
    given = [each for each in (body.input, body.messages, body.text, body.input_ids) if each is not None]
    if len(given) != 1:
        raise InvalidRequest("send exactly one of input, messages, text, input_ids", field="input", n_given=len(given))
    if body.messages is not None:
        return [_of_messages(body, body.messages)]
    if body.is_sglang:
        return samples_of(given[0], SCORES_EMPTY, "input_ids" if body.text is None else "text")
    return samples_of(given[0], body.terms)


def _of_messages(body: PoolingRequest, messages: list[dict[str, Any]]) -> Asked:
    if body.add_generation_prompt:
        raise InvalidRequest("there is nothing to score after a generation prompt", field="add_generation_prompt")
    finish: FinishReason = "length" if body.continue_final_message else "stop"
    return sample_of(lambda: Sample(messages=turns_of(messages), finish_reason=finish, terms=body.terms))


def _answer_classify(body: PoolingRequest, answered: Answered) -> Any:
    if body.is_sglang:
        return _sglang(body, answered)
    data = [
        {"index": i, "label": LABEL, "probs": [number], "num_classes": 1} for i, number in enumerate(answered.numbers)
    ]
    return _vllm(body, answered, "classify", data)


def _sglang(body: PoolingRequest, answered: Answered) -> Any:
    ms = round(answered.seconds, 6)
    items = [
        {
            "embedding": [number],
            "meta_info": {
                "id": uuid4().hex,
                "finish_reason": None,
                "prompt_tokens": result.n_tokens,
                "e2e_latency": ms,
            },
        }
        for number, result in zip(answered.numbers, answered.results, strict=True)
    ]
    return items[0] if _is_single(body) else items


def _is_single(body: PoolingRequest) -> bool:
    """SGLang answers one text with one object, and a list, of one too, with a list."""
    if body.text is not None:
        return isinstance(body.text, str)
    return bool(body.input_ids) and not isinstance((body.input_ids or [[]])[0], list)


def _ask_pooling(body: PoolingRequest, served: Served) -> list[Asked]:
    if body.task not in (None, "classify", "reward", "score"):
        raise InvalidRequest("this model gives one score a text: task must be classify, or left out", field="task")
    if body.is_sglang:
        raise InvalidRequest("send input or messages", field="input")
    return _ask(body, served)


def _answer_pooling(body: PoolingRequest, answered: Answered) -> Any:
    data = [
        {"index": i, "object": "pooling", "data": vector(number, body.encoding_format)}
        for i, number in enumerate(answered.numbers)
    ]
    return _vllm(body, answered, "pool", data)


def _vllm(body: PoolingRequest, answered: Answered, kind: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{kind}-{body.request_id or uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": answered.model,
        "data": data,
        "usage": usage(answered),
    }


CLASSIFY = Dialect(
    path="/classify",
    callers="verl with vLLM, other clients of vLLM and SGLang",
    body=PoolingRequest,
    ask=_ask,
    answer=_answer_classify,
    number="raw",
    unread=UNREAD,
    model=lambda body: body.model,
    activation=lambda body: body.wants_activation,
)

CLASSIFY_V1 = replace(CLASSIFY, path="/v1/classify", callers="clients of SGLang")
"""SGLang's reply has a softmax there, which is 1 for one score: here it is what `/classify` gives."""

POOLING = Dialect(
    path="/pooling",
    callers="clients of vLLM",
    body=PoolingRequest,
    ask=_ask_pooling,
    answer=_answer_pooling,
    number="raw",
    unread=UNREAD,
    model=lambda body: body.model,
    activation=lambda body: body.wants_activation,
)
