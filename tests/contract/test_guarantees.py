"""What we promise holds in every wire format: the ids that training used, whatever the caller made of the text.

A real checkpoint with a BOS in its template, behind a socket; the reference is transformers on the templated text.
"""

from __future__ import annotations

import asyncio
import os
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.contract import callers
from tests.contract.table import CALLERS, RESPONSE
from tests.support import checkpoints
from tests.support.server_in_process import serve_in_process
from tests.support.service_server import drill
from tests.support.tiny import CHATML, LLAMA3_LIKE

TEMPLATES = {"chatml": (CHATML, {}), "bos": (LLAMA3_LIKE, {"bos": "<s>"})}
QUESTION, ANSWER = "What is two plus two?", "Four, of course."


@pytest.fixture(scope="module", params=TEMPLATES)
def world(request, tmp_path_factory):
    """A server, and the model and tokenizer that it serves as transformers reads them."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    template, tokens = TEMPLATES[request.param]
    checkpoints.reward_model(folder, template=template, **tokens)
    flags = ("--device=cpu", "--dtype=float32", "--normalize=off", "--shape=none", "--model-aliases=rm")
    with serve_in_process(f"{folder}", *flags) as server:
        yield server, AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def templated(tokenizer, *, with_answer=True, question=QUESTION, answer=ANSWER):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(
        turns if with_answer else turns[:1], tokenize=False, add_generation_prompt=not with_answer
    )


def reference(world, text=None):
    """A plain float32 forward over what the template writes, up to the end token."""
    _, model, tokenizer = world
    text = (templated(tokenizer) if text is None else text).rstrip()
    with torch.no_grad():
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        return float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])


def close(score):
    return pytest.approx(score, abs=1e-4)


async def never(_seconds):
    raise AssertionError("nothing fails here, so nobody waits")


async def test_openrlhf_decodes_ids_and_gets_the_score_of_training(world):
    server, _, tokenizer = world
    text, prompt = templated(tokenizer), templated(tokenizer, with_answer=False)
    ids = tokenizer(text.rstrip(), add_special_tokens=False).input_ids
    query = tokenizer.decode(ids, skip_special_tokens=False)
    for sent in (query, query.removesuffix(tokenizer.eos_token)):
        output = await callers.openrlhf(f"{server.url}/get_reward", sent, prompt, None, never)
        assert output["reward"] == [close(reference(world))]


async def test_verl_strips_bos_and_gets_the_score_of_training(world):
    server, _, tokenizer = world
    text = templated(tokenizer)
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text[len(tokenizer.bos_token) :]
    for engine in ("vllm", "sglang"):
        assert await callers.verl(server.url, text, engine, never) == close(reference(world))


def test_llamafactory_and_the_engines_get_the_score_of_training(world):
    server, _, tokenizer = world
    text = templated(tokenizer)
    expected = [close(reference(world))]
    assert callers.llamafactory(f"{server.url}/v1/score/evaluation", [text]) == expected
    assert callers.sglang(server.url, [text]) == expected
    assert callers.tei(server.url, [[text]]) == expected
    assert callers.kserve(server.url, [text]) == expected
    ids = tokenizer(text.rstrip(), add_special_tokens=False).input_ids
    by_ids = server.client.post("/classify", json={"input": ids, "use_activation": False}).json()
    assert by_ids["data"][0]["probs"] == expected


def test_what_is_not_rendered_is_rendered_with_the_template_of_training(world):
    server, _, tokenizer = world
    expected = [close(reference(world))]
    assert callers.align_anything(f"{server.url}/get_reward", [QUESTION], [ANSWER]) == expected
    assert callers.tei(server.url, [[QUESTION, ANSWER]]) == expected
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ]
    chat = server.client.post("/classify", json={"messages": messages}).json()
    assert chat["data"][0]["probs"] == expected
    rendered = callers.align_anything(
        f"{server.url}/get_reward", [templated(tokenizer, with_answer=False)], [ANSWER + tokenizer.eos_token]
    )
    assert rendered == expected


async def test_slime_may_send_a_rendered_prompt_or_a_plain_one_or_messages(world):
    server, _, tokenizer = world
    for prompt in (templated(tokenizer, with_answer=False), QUESTION, [{"role": "user", "content": QUESTION}]):
        assert await callers.slime(f"{server.url}/slime", prompt, ANSWER, None, never) == close(reference(world))


async def test_nemo_gym_sends_items_and_gets_the_score_of_training(world):
    server, *_ = world
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]}
    answer = await callers.nemo_gym(server.url, {"input": QUESTION}, {"output": [{"type": "reasoning"}, said]})
    assert answer.reward == close(reference(world))
    assert "reward_components" not in answer.model_extra


def test_the_end_is_kept_when_a_caller_wants_the_text_cut(world):
    server, _, tokenizer = world
    text = templated(tokenizer, question="word " * 30)
    body = {"input": text, "truncate_prompt_tokens": 40, "truncation_side": "right"}
    cut = server.client.post("/classify", json=body).json()
    ids = tokenizer(text.rstrip(), add_special_tokens=False).input_ids
    bos = [ids[0]] if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else []
    kept = bos + ids[len(ids) - 40 + len(bos) :]
    assert cut["usage"]["prompt_tokens"] == 40
    assert cut["data"][0]["probs"] == [close(_score_of_ids(world, kept))]


def _score_of_ids(world, ids):
    with torch.no_grad():
        row = torch.tensor([ids])
        return float(world[1](input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0])


def test_an_activation_is_a_sigmoid_and_only_if_asked_for(world):
    server, _, tokenizer = world
    raw = reference(world)
    sigmoid = float(torch.sigmoid(torch.tensor(raw)))
    for body, expected in [
        ({}, raw),
        ({"use_activation": False}, raw),
        ({"use_activation": True}, sigmoid),
        ({"activation": True}, sigmoid),
        ({"activation": False, "use_activation": False}, raw),
    ]:
        for path, values in (("/classify", "probs"), ("/pooling", "data")):
            answer = server.client.post(path, json={"input": templated(tokenizer), **body}).json()
            assert answer["data"][0][values] == [close(expected)]


def test_openais_client_reads_the_embedding_of_one_number(world):
    from openai import OpenAI

    server, _, tokenizer = world
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="rm", input=[templated(tokenizer)])
        assert client.models.list().data[0].id
    assert answer.data[0].embedding == [close(reference(world))]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"messages": [{"role": "user", "content": "q"}], "chat_template": "{{ x }}"}),
        ("/classify", {"messages": [{"role": "user", "content": "q"}], "add_generation_prompt": True}),
        ("/classify", {"input": "t", "text": "t"}),
        ("/classify", {"input": [["a"]]}),
        ("/classify", {}),
        ("/pooling", {"input": "t", "task": "embed"}),
        ("/v1/embeddings", {"input": [1.5]}),
        ("/v1/score/evaluation", {"messages": []}),
        ("/get_reward", {"prompts": ["a"], "responses": []}),
        ("/get_reward", {}),
        ("/verify", {"response": {}}),
        ("/predict", {"inputs": [["a", "b", "c"]]}),
        ("/predict", {"inputs": []}),
        ("/slime", {"prompt": "a"}),
        ("/v2/models/reward_model/infer", {"inputs": []}),
        ("/v2/models/reward_model/infer", {"inputs": [{"name": "sentences", "shape": [1], "data": [1]}]}),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_field(world, path, body):
    refused = world[0].client.post(path, json=body)
    assert refused.status_code == 422
    reply_body = refused.json()
    if path == "/predict":
        assert reply_body["error_type"] == "validation"
    assert reply_body["field"] if path == "/predict" or path.startswith("/v2") else reply_body["error"]["field"]


# -- no seats ---------------------------------------------------------------------------------------------------------

PATIENT = {"OpenRLHF", "align-anything", "LLaMA-Factory"}


@pytest.fixture(scope="module")
def one_seat(tmp_path_factory):
    """A server for one sample at a time, and the path of a pipe at which its forwards wait while it is there."""
    fifo = tmp_path_factory.mktemp("gate") / "gate"
    flags = ("--admission.max-samples=1", "--max-samples-per-request=1", "--model-aliases=rm", "--cache.scores=0")
    with drill(f"waits-while-there-is:{fifo}", *flags) as server:
        yield server, fifo


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)
async def test_without_capacity_a_caller_is_refused_at_once_unless_it_gives_up_too_soon(caller, one_seat):
    server, fifo = one_seat
    os.mkfifo(fifo)
    waits = []

    async def wait(seconds):
        waits.append(seconds)
        gate.close()
        assert occupant.result().status_code == 200  # so there is a seat the next time

    with ThreadPoolExecutor(2) as pool:
        occupant = pool.submit(server.score, {"text": "occupies the only seat"})
        gate = open(fifo, "wb")  # noqa: SIM115, ASYNC230  # returns when the forward waits inside
        fifo.unlink()  # later forwards do not wait
        if caller.name in PATIENT:
            asked = pool.submit(asyncio.run, caller.ask(server.url, RESPONSE, wait))
            assert not futures.wait([asked], timeout=0.5).done  # others are refused by then
            gate.close()
            assert isinstance(asked.result(), float)
            assert not waits
        elif caller.tries[503] > 1:
            assert isinstance(await caller.ask(server.url, RESPONSE, wait), float)
            assert len(waits) == 1
        else:
            with pytest.raises(Exception, match=r"503|overloaded|seats"):
                await caller.ask(server.url, RESPONSE, wait)
            gate.close()
        assert occupant.result().status_code == 200


def test_a_request_that_waits_for_capacity_is_refused_at_once_when_the_server_shuts_down(tmp_path):
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    with (
        drill(f"forward-waits:{fifo}", "--admission.max-samples=1", "--max-samples-per-request=1") as server,
        ThreadPoolExecutor(2) as pool,
    ):
        occupant = pool.submit(server.score, {"text": "occupies the only seat"})
        gate = open(fifo, "wb")  # noqa: SIM115  # returns when the forward waits inside
        body = {"model": "model", "messages": ["waits for a seat"]}
        waiting = pool.submit(server.client.post, "/v1/score/evaluation", json=body)
        assert not futures.wait([waiting], timeout=0.5).done
        server.signal()
        refused = waiting.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        gate.close()
        assert occupant.result().status_code == 200
        assert server.ended() == 0
