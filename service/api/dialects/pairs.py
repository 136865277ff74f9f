"""Scores of text pairs in the formats of vLLM and SGLang for a model with one label: `/score`, `/v1/score` and `/rerank`.

The first text is a prompt and the second a response to it: a prompt that ends with the template's text before a response is joined
with the response unchanged, as both servers do; any other prompt is rendered with the template, as in training. Requests for
token probabilities, or for a softmax over one score, which is always 1, are refused.

`POST /score` is also the route of this server's format: a body with `samples` has that format. On `/rerank`, a body with `texts`
has the format of text-embeddings-inference, whose default is a sigmoid. SGLang's `/v1/rerank` has the request of vLLM's and another
reply; the reply here is vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample, SampleOptions
from rewardserve.service.api.dialects import tei
from rewardserve.service.api.dialects.dialect import (
    BodyFormat,
    Dialect,
    ModelName,
    ScoredRequest,
    sample_from_pair,
    sample_or_error,
)
from rewardserve.service.api.dialects.openai import EXAMPLE_USAGE, IGNORED_FIELDS, TokenId, TokenUsage, usage
from rewardserve.service.api.dialects.turns import check_known_fields, text_of
from rewardserve.service.api.dialects.vllm import (
    EXAMPLE_REPLY,
    TRUNCATION_FIELDS,
    VllmReply,
    VllmRequest,
    vllm_fields,
    wants_activation,
)
from rewardserve.service.api.field_docs import CHECKPOINT, PROMPT, RESPONSE, doc
from rewardserve.service.api.requests import MAX_TOKENS
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

Text = str | dict[str, Any]
"""A text, or an object with `text`, or with `content` as a list of parts."""

Texts = Text | list[Text]


class TextsRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """vLLM's fields for pairs."""

    text_1: Annotated[Texts, doc("prompts: one text, or a list (vLLM)", PROMPT)]
    text_2: Annotated[Texts, doc("responses to text_1: one text, or a list (vLLM)", [RESPONSE])]


class DataRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """`TextsRequest` with other field names."""

    data_1: Annotated[Texts, doc("as text_1", PROMPT)]
    data_2: Annotated[Texts, doc("as text_2", [RESPONSE])]


class DocumentsRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """`TextsRequest` with other field names."""

    queries: Annotated[Texts, doc("as text_1", PROMPT)]
    documents: Annotated[Texts, doc("as text_2, with queries", [RESPONSE])]


class ItemsRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """`TextsRequest` with other field names."""

    queries: Annotated[Texts, doc("as text_1", PROMPT)]
    items: Annotated[Texts, doc("as text_2, with queries", [RESPONSE])]


class QueryItemsRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """SGLang's fields: a text and a list of texts, or token ids and a list of them."""

    query: Annotated[str | list[TokenId], doc("the prompt of all items, as text or as token ids (SGLang)", PROMPT)]
    items: Annotated[
        Text | list[Text | list[TokenId]],
        doc("responses to query, as texts or as lists of token ids (SGLang)", [RESPONSE]),
    ]
    item_first: Annotated[bool, doc("true: an item is the prompt, and the query is the response", False)] = False
    model: ModelName = None


class RerankRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """vLLM's fields for ranking, the same as those of Jina and Cohere."""

    query: Annotated[Text, doc("the prompt of all documents", PROMPT)]
    documents: Annotated[list[Text], doc("responses to rank: texts, or objects with a text", [RESPONSE])]
    top_n: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None, doc("number of results to return; 0 or null: all", 1)
    ] = None
    return_documents: Annotated[bool, doc("false: return results without their documents", True)] = True


class RerankTextsRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """text-embeddings-inference's fields for ranking."""

    query: Annotated[str, doc("the prompt of all texts", PROMPT)]
    texts: Annotated[list[str], doc("responses to rank (text-embeddings-inference)", [RESPONSE])]
    raw_scores: tei.RawScores = None
    truncate: tei.Truncate = None
    return_text: Annotated[bool, doc("true: return results with their texts (text-embeddings-inference)", False)] = (
        False
    )
    model: ModelName = None


# -- replies ----------------------------------------------------------------------------------------------------------


class PairScore(ReplyRecord, frozen=True, gc=False):
    """The score of one pair."""

    index: Annotated[int, doc("index of the pair, from 0", 0)]
    object: Annotated[str, doc("kind of the record", "score")]
    score: Annotated[float, doc("the score, or its sigmoid if the request asks for it", 1.93)]


class PairScoresReply(VllmReply, frozen=True, gc=False):
    """vLLM's reply of `/score`."""

    data: Annotated[
        list[PairScore], doc("one entry a pair, in order", [{"index": 0, "object": "score", "score": 1.93}])
    ]
    usage: Annotated[TokenUsage, doc("number of tokens of the request", EXAMPLE_USAGE)]


class ItemScoresReply(ReplyRecord, frozen=True, gc=False):
    """SGLang's reply of `/v1/score`."""

    scores: Annotated[list[list[float]], doc("one list with one score an item, in order", [[1.93]])]
    model: Annotated[str, doc("name of the model", CHECKPOINT)]
    usage: Annotated[TokenUsage, doc("number of tokens of the request", EXAMPLE_USAGE)]
    object: Annotated[str, doc("kind of the reply", "scoring")]


class RankedText(ReplyRecord, frozen=True, gc=False):
    """The text of a ranked document."""

    text: Annotated[str, doc("document as in the request", RESPONSE)]


class RankedDocument(ReplyRecord, frozen=True, gc=False, kw_only=True):
    """One document with its score."""

    index: Annotated[int, doc("index of the document in the request, from 0", 1)]
    document: Annotated[
        RankedText | UnsetType, doc("the document; not if return_documents is false", {"text": RESPONSE})
    ] = UNSET
    relevance_score: Annotated[float, doc("the score, or its sigmoid if the request asks for it", 1.93)]


class RankUsage(ReplyRecord, frozen=True, gc=False):
    """vLLM's token usage of a ranking."""

    prompt_tokens: Annotated[int, doc("tokens of all pairs", 24)]
    total_tokens: Annotated[int, doc("same as `prompt_tokens`, since nothing is generated", 24)]


class RerankReply(ReplyRecord, frozen=True, gc=False):
    """vLLM's reply of `/rerank`, the same as that of Jina and Cohere."""

    id: Annotated[str, doc("with the request_id of the request, or new", "rerank-1")]
    model: Annotated[str, doc("name of the model", CHECKPOINT)]
    usage: Annotated[RankUsage, doc("number of tokens of the request", {"prompt_tokens": 24, "total_tokens": 24})]
    results: Annotated[
        list[RankedDocument],
        doc("documents, the best first", [{"index": 1, "document": {"text": RESPONSE}, "relevance_score": 1.93}]),
    ]


class TextRank(ReplyRecord, frozen=True, gc=False, kw_only=True):
    """One text with its score, in text-embeddings-inference's format."""

    index: Annotated[int, doc("index of the text in the request, from 0", 1)]
    text: Annotated[str | UnsetType, doc("the text; only if return_text is true", RESPONSE)] = UNSET
    score: Annotated[float, doc("sigmoid of the raw score, or the raw score", 0.87)]


# -- pairs ------------------------------------------------------------------------------------------------------------


def _pair_samples(first: str, second: str) -> Callable[[VllmRequest, ModelRuntime], list[SampleOrError]]:
    def to_samples(body: VllmRequest, runtime: ModelRuntime) -> list[SampleOrError]:
        firsts, seconds = _as_list(first, getattr(body, first)), _as_list(second, getattr(body, second))
        if len(firsts) == 1:
            firsts = [*firsts] * len(seconds)
        if len(firsts) != len(seconds):
            raise InvalidRequest(
                f"{first} and {second} must have the same length, or {first} the length 1",
                field=second, n_first=len(firsts), n_second=len(seconds),
            )  # fmt: skip
        options = body.options
        return [_pair(i, p, r, runtime, options) for i, (p, r) in enumerate(zip(firsts, seconds, strict=True))]

    return to_samples


def _item_samples(body: QueryItemsRequest, runtime: ModelRuntime) -> list[SampleOrError]:
    items = body.items if isinstance(body.items, list) else [body.items]
    return [_item(i, body, item, runtime) for i, item in enumerate(items)]


def _item(i: int, body: QueryItemsRequest, item: Text | list[int], runtime: ModelRuntime) -> SampleOrError:
    query, options = body.query, SCORE_EMPTY_OPTIONS
    if isinstance(query, list) and isinstance(item, list):
        ids = [*item, *query] if body.item_first else [*query, *item]
        return Sample(input_ids=tuple(ids), options=options)
    if not isinstance(query, str) or isinstance(item, list):
        raise InvalidRequest("query and items must both be texts, or both be token ids", field="items")
    return _pair(i, item, query, runtime, options) if body.item_first else _pair(i, query, item, runtime, options)


def _pair(i: int, prompt: Text, response: Text, runtime: ModelRuntime, options: SampleOptions) -> SampleOrError:
    return sample_or_error(lambda: sample_from_pair(_text(i, prompt), _text(i, response), runtime, options))


def _text(i: int, text: Text) -> str:
    """Return one text of a pair. Raise `InvalidMessages` for any other type, and `UnsupportedField`."""
    if isinstance(text, str):
        return text
    name = "content" if "content" in text else "text"
    check_known_fields(text, {name}, f"text {i}", i)
    return text_of(i, text.get(name))


def _as_list(field: str, texts: Any) -> Sequence[Text]:
    listed = texts if isinstance(texts, list) else [texts]
    if not listed or any(isinstance(each, list) for each in listed):
        raise InvalidRequest(f"{field} must be a text, or a list of one or more texts", field=field)
    return listed


def _pairs_reply(body: VllmRequest, scored_request: ScoredRequest) -> PairScoresReply:
    data = [PairScore(i, "score", number) for i, number in enumerate(scored_request.scores)]
    return PairScoresReply(*vllm_fields(body, scored_request, "score"), data, usage(scored_request))


def _items_reply(_body: QueryItemsRequest, scored_request: ScoredRequest) -> ItemScoresReply:
    scores = [[number] for number in scored_request.scores]
    return ItemScoresReply(scores, scored_request.model, usage(scored_request), "scoring")


# -- ranks ------------------------------------------------------------------------------------------------------------


def _document_samples(body: RerankRequest, runtime: ModelRuntime) -> list[SampleOrError]:
    options = body.options
    return [
        _pair(i, body.query, each, runtime, options) for i, each in enumerate(_as_list("documents", body.documents))
    ]


def _text_samples(body: RerankTextsRequest, runtime: ModelRuntime) -> list[SampleOrError]:
    options = SampleOptions(truncates=body.truncate is not False, scores_empty=True)
    return [_pair(i, body.query, each, runtime, options) for i, each in enumerate(_as_list("texts", body.texts))]


def _by_score(numbers: Sequence[float]) -> list[int]:
    """Return the indices of scores, the highest score first."""
    return sorted(range(len(numbers)), key=lambda i: -numbers[i])


def _documents_reply(body: RerankRequest, scored_request: ScoredRequest) -> RerankReply:
    numbers = scored_request.scores
    results = [
        RankedDocument(
            index=i,
            document=RankedText(_text(i, body.documents[i])) if body.return_documents else UNSET,
            relevance_score=numbers[i],
        )
        for i in _by_score(numbers)[: body.top_n or None]
    ]
    n = scored_request.n_tokens
    name = f"rerank-{body.request_id or uuid4().hex}"
    return RerankReply(name, scored_request.model, RankUsage(n, n), results)


def _texts_reply(body: RerankTextsRequest, scored_request: ScoredRequest) -> list[TextRank]:
    numbers, texts = scored_request.scores, body.texts
    return [
        TextRank(index=i, text=texts[i] if body.return_text else UNSET, score=numbers[i]) for i in _by_score(numbers)
    ]


# -- the table --------------------------------------------------------------------------------------------------------

_IGNORED_FIELDS = IGNORED_FIELDS | TRUNCATION_FIELDS
_ONE_LIMIT: dict[str, tuple[object, ...]] = {"max_tokens_per_query": (0,), "max_tokens_per_doc": (0,)}


def _pairs(first: str, second: str, body: type[VllmRequest]) -> BodyFormat:
    return BodyFormat(
        text_fields=(first, second),
        body=body,
        to_samples=_pair_samples(first, second),
        to_reply=_pairs_reply,
        replies=(PairScoresReply,),
        ignored_fields=_IGNORED_FIELDS,
        accepted_values={**_ONE_LIMIT, "apply_softmax": (False,), "item_first": (False,)},
        activation_of=wants_activation,
    )


_ITEMS = BodyFormat(
    text_fields=("query", "items"),
    body=QueryItemsRequest,
    to_samples=_item_samples,
    to_reply=_items_reply,
    replies=(ItemScoresReply,),
    ignored_fields=IGNORED_FIELDS,
    accepted_values={"apply_softmax": (False,), "return_pooled_hidden_states": (False,)},
    may_be_empty=True,
)

SCORE = Dialect(
    path="/v1/score",
    clients="clients of vLLM and SGLang",
    body_formats=(
        _pairs("text_1", "text_2", TextsRequest),
        _pairs("data_1", "data_2", DataRequest),
        _pairs("queries", "documents", DocumentsRequest),
        _pairs("queries", "items", ItemsRequest),
        _ITEMS,
    ),
    score_kind="raw",
    example_reply={**EXAMPLE_REPLY, "id": "score-1", "data": [{"index": 0, "object": "score", "score": 1.93}]},
)

_DOCUMENTS = BodyFormat(
    text_fields=("query", "documents"),
    body=RerankRequest,
    to_samples=_document_samples,
    to_reply=_documents_reply,
    replies=(RerankReply,),
    ignored_fields=_IGNORED_FIELDS,
    accepted_values={**_ONE_LIMIT, "return_text": (False,)},
    activation_of=wants_activation,
)

_RERANK_TEXTS = BodyFormat(
    text_fields=("query", "texts"),
    body=RerankTextsRequest,
    to_samples=_text_samples,
    to_reply=_texts_reply,
    replies=(list[TextRank],),
    ignored_fields=tei.IGNORED_FIELDS,
    activation_of=tei.wants_activation,
    activates_by_default=True,
)

_RERANK = Dialect(
    path="/rerank",
    clients="clients of vLLM and text-embeddings-inference",
    body_formats=(_DOCUMENTS, _RERANK_TEXTS),
    score_kind="raw",
    example_reply={
        "id": "rerank-1",
        "model": "/models/rm",
        "usage": {"prompt_tokens": 24, "total_tokens": 24},
        "results": [{"index": 1, "document": {"text": "Because."}, "relevance_score": 1.93}],
    },
)

RERANKS = (
    _RERANK,
    replace(_RERANK, path="/v1/rerank", clients="clients of vLLM and Jina", body_formats=(_DOCUMENTS,)),
    replace(_RERANK, path="/v2/rerank", clients="clients of vLLM and Cohere", body_formats=(_DOCUMENTS,)),
)
