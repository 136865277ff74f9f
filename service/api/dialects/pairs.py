"""Scores of text pairs, as vLLM and SGLang give them for a model with one label: `/score`, `/v1/score`, `/rerank` and its like.

The first text is a prompt and the second a response to it: a prompt that ends with the template's text before a response is joined
with the response as it is, as both servers do; any other prompt is rendered with the template, as in training. Requests for
probabilities of tokens, or for a softmax over one score, which is always 1, are refused.

`POST /score` is our own route too: a body with `samples` is ours. On `/rerank`, a body with `texts` is that of
text-embeddings-inference, whose default is a sigmoid. SGLang's own `/v1/rerank` has the request of vLLM's and another reply; the
reply here is vLLM's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any
from uuid import uuid4

import msgspec

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample, SampleOptions
from rewardserve.service.api.dialects import tei
from rewardserve.service.api.dialects.dialect import Answered, Dialect, Form, sample_of, spoken
from rewardserve.service.api.dialects.openai import UNREAD, Id, usage
from rewardserve.service.api.dialects.turns import refuse_unread, text_of
from rewardserve.service.api.dialects.vllm import OF_TRUNCATION, VllmRequest, wants_activation
from rewardserve.service.api.structs import MOST_TOKENS
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.active_models import Served
from rewardserve.service.scoring import Asked

Text = str | dict[str, Any]
"""A text, or an object with a `text` or with `content` in parts."""

Texts = Text | list[Text]


class TextsRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """vLLM's fields for pairs."""

    text_1: Texts
    text_2: Texts


class DataRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """`TextsRequest`, by other names."""

    data_1: Texts
    data_2: Texts


class DocumentsRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """`TextsRequest`, by other names."""

    queries: Texts
    documents: Texts


class ItemsRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """`TextsRequest`, by other names."""

    queries: Texts
    items: Texts


class QueryItemsRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """SGLang's fields: a text and texts, or token ids and lists of them."""

    query: str | list[Id]
    items: Text | list[Text | list[Id]]
    item_first: bool = False
    model: str | None = None


class RerankRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """vLLM's fields, which are those of Jina and Cohere."""

    query: Text
    documents: list[Text]
    top_n: Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)] | None = None
    return_documents: bool = True


class RerankTextsRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The fields of text-embeddings-inference."""

    query: str
    texts: list[str]
    raw_scores: bool | None = None
    truncate: bool | None = None
    return_text: bool = False
    model: str | None = None


def has_pairs(value: object) -> bool:
    """Whether the JSON of a body is one of pairs, and not one of ours."""
    return isinstance(value, dict) and "samples" not in value and not value.keys().isdisjoint(_TEXTS)


# -- pairs ------------------------------------------------------------------------------------------------------------


def _ask_pairs(first: str, second: str) -> Callable[[VllmRequest, Served], list[Asked]]:
    def ask(body: VllmRequest, served: Served) -> list[Asked]:
        firsts, seconds = _listed(first, getattr(body, first)), _listed(second, getattr(body, second))
        if len(firsts) == 1:
            firsts = [*firsts] * len(seconds)
        if len(firsts) != len(seconds):
            raise InvalidRequest(
                f"{first} and {second} differ in number: send 1 to 1, 1 to n, or n to n",
                field=second, n_first=len(firsts), n_second=len(seconds),
            )  # fmt: skip
        options = body.options
        return [_pair(i, p, r, served, options) for i, (p, r) in enumerate(zip(firsts, seconds, strict=True))]

    return ask


def _ask_items(body: QueryItemsRequest, served: Served) -> list[Asked]:
    items = body.items if isinstance(body.items, list) else [body.items]
    return [_item(i, body, item, served) for i, item in enumerate(items)]


def _item(i: int, body: QueryItemsRequest, item: Text | list[int], served: Served) -> Asked:
    query, options = body.query, SCORE_EMPTY_OPTIONS
    if isinstance(query, list) and isinstance(item, list):
        ids = [*item, *query] if body.item_first else [*query, *item]
        return Sample(input_ids=tuple(ids), options=options)
    if not isinstance(query, str) or isinstance(item, list):
        raise InvalidRequest("query and items must be texts both, or token ids both", field="items")
    return _pair(i, item, query, served, options) if body.item_first else _pair(i, query, item, served, options)


def _pair(i: int, prompt: Text, response: Text, served: Served, options: SampleOptions) -> Asked:
    return sample_of(lambda: spoken(_text(i, prompt), _text(i, response), served, options))


def _text(i: int, text: Text) -> str:
    """The text of one side. Raise `InvalidMessages` for anything else, and `UnsupportedField`."""
    if isinstance(text, str):
        return text
    name = "content" if "content" in text else "text"
    refuse_unread(text, {name}, f"text {i}", i)
    return text_of(i, text.get(name))


def _listed(field: str, texts: Any) -> Sequence[Text]:
    listed = texts if isinstance(texts, list) else [texts]
    if not listed or any(isinstance(each, list) for each in listed):
        raise InvalidRequest(f"{field} must be a text, or a list of one or more texts", field=field)
    return listed


def _answer_pairs(body: VllmRequest, answered: Answered) -> dict[str, Any]:
    return {
        "id": f"score-{body.request_id or uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": answered.model,
        "data": [{"index": i, "object": "score", "score": number} for i, number in enumerate(answered.numbers)],
        "usage": usage(answered),
    }


def _answer_items(_body: QueryItemsRequest, answered: Answered) -> dict[str, Any]:
    scores = [[number] for number in answered.numbers]
    return {"scores": scores, "model": answered.model, "usage": usage(answered), "object": "scoring"}


# -- ranks ------------------------------------------------------------------------------------------------------------


def _ask_documents(body: RerankRequest, served: Served) -> list[Asked]:
    options = body.options
    return [_pair(i, body.query, each, served, options) for i, each in enumerate(_listed("documents", body.documents))]


def _ask_texts(body: RerankTextsRequest, served: Served) -> list[Asked]:
    options = SampleOptions(truncates=body.truncate is not False, scores_empty=True)
    return [_pair(i, body.query, each, served, options) for i, each in enumerate(_listed("texts", body.texts))]


def _order(numbers: Sequence[float]) -> list[int]:
    """Indices, the highest number first."""
    return sorted(range(len(numbers)), key=lambda i: -numbers[i])


def _answer_documents(body: RerankRequest, answered: Answered) -> dict[str, Any]:
    numbers = answered.numbers
    results = [
        {
            "index": i,
            **({"document": {"text": _text(i, body.documents[i])}} if body.return_documents else {}),
            "relevance_score": numbers[i],
        }
        for i in _order(numbers)[: body.top_n or None]
    ]
    n = answered.n_tokens
    return {
        "id": f"rerank-{body.request_id or uuid4().hex}",
        "model": answered.model,
        "usage": {"prompt_tokens": n, "total_tokens": n},
        "results": results,
    }


def _answer_texts(body: RerankTextsRequest, answered: Answered) -> list[dict[str, Any]]:
    numbers, texts = answered.numbers, body.texts
    return [
        {"index": i, **({"text": texts[i]} if body.return_text else {}), "score": numbers[i]} for i in _order(numbers)
    ]


# -- the table --------------------------------------------------------------------------------------------------------

_UNREAD = UNREAD | OF_TRUNCATION
_ONE_LIMIT: dict[str, tuple[object, ...]] = {"max_tokens_per_query": (0,), "max_tokens_per_doc": (0,)}


def _pairs(first: str, second: str, body: type[VllmRequest]) -> Form:
    return Form(
        texts=(first, second),
        body=body,
        ask=_ask_pairs(first, second),
        answer=_answer_pairs,
        unread=_UNREAD,
        defaults={**_ONE_LIMIT, "apply_softmax": (False,), "item_first": (False,)},
        activation=wants_activation,
    )


_ITEMS = Form(
    texts=("query", "items"),
    body=QueryItemsRequest,
    ask=_ask_items,
    answer=_answer_items,
    unread=UNREAD,
    defaults={"apply_softmax": (False,), "return_pooled_hidden_states": (False,)},
    may_be_empty=True,
)

SCORE = Dialect(
    path="/v1/score",
    callers="clients of vLLM and SGLang",
    forms=(
        _pairs("text_1", "text_2", TextsRequest),
        _pairs("data_1", "data_2", DataRequest),
        _pairs("queries", "documents", DocumentsRequest),
        _pairs("queries", "items", ItemsRequest),
        _ITEMS,
    ),
    number="raw",
)

_TEXTS = {name for form in SCORE.forms for name in form.texts}

_DOCUMENTS = Form(
    texts=("query", "documents"),
    body=RerankRequest,
    ask=_ask_documents,
    answer=_answer_documents,
    unread=_UNREAD,
    defaults={**_ONE_LIMIT, "return_text": (False,)},
    activation=wants_activation,
)

_RERANK_TEXTS = Form(
    texts=("query", "texts"),
    body=RerankTextsRequest,
    ask=_ask_texts,
    answer=_answer_texts,
    unread=tei.UNREAD,
    activation=tei.wants_activation,
    activates=True,
)

RERANKS = (
    Dialect(
        path="/rerank",
        callers="clients of vLLM and text-embeddings-inference",
        forms=(_DOCUMENTS, _RERANK_TEXTS),
        number="raw",
    ),
    Dialect(path="/v1/rerank", callers="clients of vLLM and Jina", forms=(_DOCUMENTS,), number="raw"),
    Dialect(path="/v2/rerank", callers="clients of vLLM and Cohere", forms=(_DOCUMENTS,), number="raw"),
)
