"""Scores of text pairs, as vLLM and SGLang give them for a model with one label: `/score`, `/v1/score`, `/rerank` and its like.

The first text is a prompt and the second a response to it: where the prompt ends in what the template writes before a response
they are joined as they are, as both servers do; any other prompt is rendered with the template, as in training. What asks for
probabilities of tokens, or for a softmax over one score, which is always 1, is refused.

`POST /score` is our own route too: a body with `samples` is ours. On `/rerank`, a body with `texts` is that of
text-embeddings-inference, whose default is a sigmoid. SGLang's own `/v1/rerank` has the request of vLLM's and another reply; the
reply here is vLLM's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

import msgspec

from model.conversation import Sample, Terms
from service.api.dialects.dialect import Answered, Dialect, sample_of, spoken
from service.api.dialects.openai import UNREAD, Id, usage
from service.api.dialects.turns import refuse_unread, text_of
from service.api.stage import Served
from service.api.wire import MOST_TOKENS
from service.errors import InvalidRequest
from service.scoring import Asked

Text = str | dict[str, Any]
"""A text, or an object with a `text` or with `content` in parts."""

Texts = Text | list[Text]
Limit = Annotated[int, msgspec.Meta(ge=-1, le=MOST_TOKENS)]

_THEIRS = ("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2", "query")


class PairsRequest(msgspec.Struct, frozen=True, gc=False):
    """vLLM's four ways to name two lists, and SGLang's `query` with `items`, which may be token ids."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    query: str | list[Id] | None = None
    items: Text | list[Text | list[Id]] | None = None
    item_first: bool = False
    apply_softmax: bool = False
    label_token_ids: list[int] | None = None
    model: str | None = None
    request_id: str = ""
    use_activation: bool | None = None
    activation: bool | None = None
    truncate_prompt_tokens: Limit | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None

    @property
    def is_sglang(self) -> bool:
        """Whether this is SGLang's format."""
        return self.query is not None


class RerankRequest(msgspec.Struct, frozen=True, gc=False):
    """vLLM's fields, which are those of Jina and Cohere, and with `texts` those of text-embeddings-inference."""

    query: Text
    documents: list[Text] | None = None
    texts: list[str] | None = None
    top_n: Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)] | None = None
    return_documents: bool = True
    return_text: bool = False
    raw_scores: bool | None = None
    truncate: bool | None = None
    model: str | None = None
    request_id: str = ""
    use_activation: bool | None = None
    activation: bool | None = None
    truncate_prompt_tokens: Limit | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    instruct: str | None = None
    instruction: str | None = None

    @property
    def is_tei(self) -> bool:
        """Whether this is the format of text-embeddings-inference."""
        return self.texts is not None


_ABSENT = msgspec.Raw()


class _Names(msgspec.Struct, frozen=True, gc=False):
    """Which fields a body has, without their values."""

    samples: msgspec.Raw = _ABSENT
    text_1: msgspec.Raw = _ABSENT
    text_2: msgspec.Raw = _ABSENT
    queries: msgspec.Raw = _ABSENT
    documents: msgspec.Raw = _ABSENT
    items: msgspec.Raw = _ABSENT
    data_1: msgspec.Raw = _ABSENT
    data_2: msgspec.Raw = _ABSENT
    query: msgspec.Raw = _ABSENT


_names = msgspec.json.Decoder(_Names)


def has_pairs(content: bytes) -> bool:
    """Whether a body is one of pairs, and not one of ours."""
    try:
        names = _names.decode(content)
    except (ValueError, RecursionError):
        return False
    return names.samples is _ABSENT and any(getattr(names, name) is not _ABSENT for name in _THEIRS)


# -- pairs ------------------------------------------------------------------------------------------------------------


def _ask(body: PairsRequest, served: Served) -> list[Asked]:
    _check_limits(body.max_tokens_per_query, body.max_tokens_per_doc)
    if body.is_sglang:
        return _ask_sglang(body, served)
    ways = [
        ("text_1", body.text_1, "text_2", body.text_2),
        ("data_1", body.data_1, "data_2", body.data_2),
        ("queries", body.queries, "documents", body.documents),
        ("queries", body.queries, "items", body.items),
    ]
    given = [way for way in ways if way[1] is not None and way[3] is not None]
    if len(given) != 1:
        raise InvalidRequest("send one of text_1 and text_2, queries and documents, query and items", field="text_1")
    first, prompts, second, responses = given[0]
    firsts, seconds = _listed(first, prompts), _listed(second, responses)
    if len(firsts) == 1:
        firsts = [*firsts] * len(seconds)
    if len(firsts) != len(seconds):
        raise InvalidRequest(
            f"{first} and {second} differ in number: send 1 to 1, 1 to n, or n to n",
            field=second, n_first=len(firsts), n_second=len(seconds),
        )  # fmt: skip
    terms = _terms(body.truncate_prompt_tokens)
    return [_pair(i, p, r, served, terms) for i, (p, r) in enumerate(zip(firsts, seconds, strict=True))]


def _ask_sglang(body: PairsRequest, served: Served) -> list[Asked]:
    if body.items is None:
        raise InvalidRequest("send items beside query", field="items")
    if body.label_token_ids:
        raise InvalidRequest(
            "this model gives one score and no probabilities of tokens: leave label_token_ids out",
            field="label_token_ids",
        )
    if body.apply_softmax:
        raise InvalidRequest("a softmax over one score is always 1: leave apply_softmax out", field="apply_softmax")
    terms = _terms(body.truncate_prompt_tokens)
    items = body.items if isinstance(body.items, list) else [body.items]
    return [_item(i, body, item, served, terms) for i, item in enumerate(items)]


def _item(i: int, body: PairsRequest, item: Text | list[int], served: Served, terms: Terms) -> Asked:
    query = body.query
    if isinstance(query, list) and isinstance(item, list):
        ids = [*item, *query] if body.item_first else [*query, *item]
        return Sample(input_ids=tuple(ids), terms=terms)
    if not isinstance(query, str) or isinstance(item, list):
        raise InvalidRequest("query and items must be texts both, or token ids both", field="items")
    return _pair(i, item, query, served, terms) if body.item_first else _pair(i, query, item, served, terms)


def _pair(i: int, prompt: Text, response: Text, served: Served, terms: Terms) -> Asked:
    return sample_of(lambda: spoken(_text(i, prompt), _text(i, response), served, terms))


def _text(i: int, text: Text) -> str:
    """Raise `InvalidMessages` for what is no text, and `UnsupportedField`."""
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


def _terms(limit: int | None) -> Terms:
    """-1 is vLLM's word for the model's own limit."""
    return Terms(max_tokens=limit if limit is not None and limit > 0 else None, scores_empty=True)


def _check_limits(*limits: int | None) -> None:
    if any(limits):
        raise InvalidRequest(
            "a limit of one of two texts is not supported: use truncate_prompt_tokens, which cuts the prompt",
            field="max_tokens_per_doc",
        )


def _answer(body: PairsRequest, answered: Answered) -> dict[str, Any]:
    if body.is_sglang:
        scores = [[number] for number in answered.numbers]
        return {"scores": scores, "model": answered.model, "usage": usage(answered), "object": "scoring"}
    return {
        "id": f"score-{body.request_id or uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": answered.model,
        "data": [{"index": i, "object": "score", "score": number} for i, number in enumerate(answered.numbers)],
        "usage": usage(answered),
    }


# -- ranks ------------------------------------------------------------------------------------------------------------


def _ask_ranks(body: RerankRequest, served: Served) -> list[Asked]:
    _check_limits(body.max_tokens_per_query, body.max_tokens_per_doc)
    if body.instruct or body.instruction:
        raise InvalidRequest("the template is the contract's and has no place for an instruction", field="instruct")
    if (body.documents is None) == (body.texts is None):
        raise InvalidRequest("send documents, a list of texts", field="documents")
    given = body.documents if body.texts is None else body.texts
    terms = replace(_terms(body.truncate_prompt_tokens), truncates=body.truncate is not False)
    listed = _listed("documents" if body.texts is None else "texts", given)
    return [_pair(i, body.query, each, served, terms) for i, each in enumerate(listed)]


def _ask_ranks_of_documents(body: RerankRequest, served: Served) -> list[Asked]:
    if body.is_tei:
        raise InvalidRequest("send documents, a list of texts; texts are read at /rerank", field="texts")
    return _ask_ranks(body, served)


def _answer_ranks(body: RerankRequest, answered: Answered) -> Any:
    numbers = answered.numbers
    order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
    if body.texts is not None:
        texts = body.texts
        return [{"index": i, **({"text": texts[i]} if body.return_text else {}), "score": numbers[i]} for i in order]
    documents = body.documents or []
    results = [
        {
            "index": i,
            **({"document": {"text": _text(i, documents[i])}} if body.return_documents else {}),
            "relevance_score": numbers[i],
        }
        for i in order[: body.top_n or None]
    ]
    n = answered.n_tokens
    return {
        "id": f"rerank-{body.request_id or uuid4().hex}",
        "model": answered.model,
        "usage": {"prompt_tokens": n, "total_tokens": n},
        "results": results,
    }


def _wants_activation(body: RerankRequest) -> bool | None:
    if body.is_tei:
        return None if body.raw_scores is None else not body.raw_scores
    return body.activation if body.use_activation is None else body.use_activation


# -- the table --------------------------------------------------------------------------------------------------------

SCORE = Dialect(
    path="/v1/score",
    callers="clients of vLLM and SGLang",
    body=PairsRequest,
    ask=_ask,
    answer=_answer,
    number="raw",
    unread=UNREAD | {"truncation_direction"},
    model=lambda body: body.model,
    activation=lambda body: body.activation if body.use_activation is None else body.use_activation,
)

RERANK = Dialect(
    path="/rerank",
    callers="clients of vLLM and text-embeddings-inference",
    body=RerankRequest,
    ask=_ask_ranks,
    answer=_answer_ranks,
    number="raw",
    unread=UNREAD | {"truncation_direction"},
    model=lambda body: body.model,
    activation=_wants_activation,
    activates=lambda body: body.is_tei,
)

RERANKS = (
    RERANK,
    replace(RERANK, path="/v1/rerank", ask=_ask_ranks_of_documents, callers="clients of vLLM and Jina"),
    replace(RERANK, path="/v2/rerank", ask=_ask_ranks_of_documents, callers="clients of vLLM and Cohere"),
)
