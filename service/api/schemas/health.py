"""The replies of the health routes, and of the lists of models in the formats of OpenAI and KServe."""

from __future__ import annotations

from typing import Annotated

from rewardserve.service.api.field_docs import CHECKPOINT, doc
from rewardserve.service.api.schemas.record import ReplyRecord

_OPENAI_MODEL = {"id": CHECKPOINT, "object": "model", "created": 0, "owned_by": "rewardserve", "max_model_len": 4096}
_SENTENCES = {"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}
_REWARDS = {"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}


class LiveReply(ReplyRecord, frozen=True, gc=False):
    """The process can score."""

    status: Annotated[str, doc("always alive; otherwise the reply is an error", "alive")] = "alive"


class ReadyReply(ReplyRecord, frozen=True, gc=False):
    """The server can score now."""

    status: Annotated[str, doc("always ready; otherwise the reply is an error", "ready")]
    model: Annotated[str, doc("name of the model in service", CHECKPOINT)]
    model_version: Annotated[int, doc("version of the model within this process", 1)]


class OpenaiModel(ReplyRecord, frozen=True, gc=False):
    """The model in service, in OpenAI's format."""

    id: Annotated[str, doc("name of the model", CHECKPOINT)]
    object: Annotated[str, doc("kind of the record", "model")]
    created: Annotated[int, doc("always 0", 0)]
    owned_by: Annotated[str, doc("this server", "rewardserve")]
    max_model_len: Annotated[int, doc("limit of tokens of a sample", 4096)]


class OpenaiModelList(ReplyRecord, frozen=True, gc=False):
    """The models in service, in OpenAI's format."""

    object: Annotated[str, doc("kind of the record", "list")]
    data: Annotated[list[OpenaiModel], doc("the model in service", [_OPENAI_MODEL])]


class KserveServer(ReplyRecord, frozen=True, gc=False):
    """The server, in the format of KServe v2."""

    name: Annotated[str, doc("name of the server", "rewardserve")]
    version: Annotated[str, doc("version of the server", "0.1.0")]
    extensions: Annotated[list[str], doc("extensions of the protocol; none", [])]


class KserveLive(ReplyRecord, frozen=True, gc=False):
    """The process can score, in the format of KServe v2."""

    live: Annotated[bool, doc("always true: otherwise the reply is an error", True)] = True


class KserveReady(ReplyRecord, frozen=True, gc=False):
    """The server can score now, in the format of KServe v2."""

    ready: Annotated[bool, doc("always true: otherwise the reply is an error", True)] = True


class KserveModelReady(ReplyRecord, frozen=True, gc=False):
    """The model can score now, in the format of KServe v2."""

    name: Annotated[str, doc("name of the model", CHECKPOINT)]
    ready: Annotated[bool, doc("always true: otherwise the reply is an error", True)] = True


class TensorSpec(ReplyRecord, frozen=True, gc=False):
    """A tensor of the model, in the format of KServe v2."""

    name: Annotated[str, doc("name of the tensor", "sentences")]
    datatype: Annotated[str, doc("type of its values", "BYTES")]
    shape: Annotated[list[int], doc("rows and columns; -1: any number", [-1, 1])]


class KserveModel(ReplyRecord, frozen=True, gc=False):
    """The model, in the format of KServe v2, with the tensors that every client can use."""

    name: Annotated[str, doc("name of the model", CHECKPOINT)]
    versions: Annotated[list[str], doc("version in service within this process", ["1"])]
    platform: Annotated[str, doc("backend of the model", "rewardserve_torch")]
    inputs: Annotated[list[TensorSpec], doc("input tensors", [_SENTENCES])]
    outputs: Annotated[list[TensorSpec], doc("output tensors", [_REWARDS])]
