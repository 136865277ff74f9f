"""In every wire format an attack is text wherever the format tells content from rendering; where it cannot, that is said.

`docs/how-to/security.md` lists the formats that send whole rendered text: the list there and the one here are one.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest

from rewardserve.model.conversation import Message
from rewardserve.service.api import body
from rewardserve.service.api.dialects import DIALECTS
from rewardserve.service.api.requests import CompareRequest, SampleIn, ScoreRequest, to_comparison, to_sample
from tests.security.attacks import BENIGN, attacks
from tests.security.families import FAMILIES
from tests.security.test_control_tokens import controls_of, world
from tests.support.service_server import ROOT

PATHS = {
    dialect.path.replace("{model:path}", "NAME"): dialect for dialect in DIALECTS if "{version}" not in dialect.path
}
WHOLE_TEXT = {
    "/v1/score/evaluation",
    "/v1/embeddings",
    "/v2/models/NAME/infer",
    "/pooling",
    "/classify",
    "/v1/classify",
}
"""These have no field for a response (`/pooling`, `/classify` and `/v1/classify` have `messages` beside their whole texts)."""


def turn(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def gym(user: str, response: str) -> dict:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": response}]}
    asked = {"instructions": user, "input": [turn("user", user), turn("assistant", user), turn("user", user)]}
    return {"responses_create_params": asked, "response": {"output": [said, said]}}


FORMS = {
    "/get_reward, prompts and responses": lambda p, r, _: {"prompts": [p], "responses": [r]},
    "/get_reward, a rendered prompt": lambda _, r, rendered: {"prompts": [rendered], "responses": [r]},
    "/get_reward, query": lambda _, r, rendered: {"query": [rendered + r], "prompts": [rendered]},
    "/slime, text": lambda p, r, _: {"prompt": p, "response": r},
    "/slime, a rendered prompt": lambda _, r, rendered: {"prompt": rendered, "response": r},
    "/slime, turns": lambda p, r, _: {"prompt": [turn("user", p), turn("assistant", p), turn("user", p)], "response": r},
    "/slime, parts": lambda p, r, _: {"prompt": [turn("user", [{"type": "text", "text": p}] * 2)], "response": r},
    "/classify, messages": lambda p, r, _: {"messages": [turn("user", p), turn("assistant", r)]},
    "/classify, developer and function": lambda p, r, _: {
        "messages": [turn("developer", p), turn("user", p), turn("assistant", p), turn("function", p), turn("assistant", r)]
    },
    "/v1/classify, messages": lambda p, r, _: {"messages": [turn("user", p), turn("assistant", r)]},
    "/v1/score, texts": lambda p, r, rendered: {"text_1": [p, rendered], "text_2": [r, r]},
    "/v1/score, queries and documents": lambda p, r, _: {"queries": p, "documents": [r, {"text": r}]},
    "/v1/score, query and items": lambda p, r, rendered: {"query": p, "items": [r, r]},
    "/v1/score, an item first": lambda p, r, _: {"query": r, "items": [p], "item_first": True},
    "/rerank, documents": lambda p, r, _: {"query": p, "documents": [r, {"content": [{"type": "text", "text": r}]}]},
    "/rerank, texts": lambda _, r, rendered: {"query": rendered, "texts": [r]},
    "/v1/rerank, documents": lambda p, r, _: {"query": p, "documents": [r]},
    "/v2/rerank, documents": lambda p, r, _: {"query": p, "documents": [r]},
    "/pooling, messages": lambda p, r, _: {"messages": [turn("user", p), turn("assistant", r)]},
    "/predict, a pair": lambda p, r, _: {"inputs": [p, r]},
    "/predict, pairs": lambda p, r, rendered: {"inputs": [[p, r], [rendered, r]]},
    "/verify, an episode": lambda p, r, _: gym(p, r),
}  # fmt: skip


def encoded(name: str, form: str, prompt: str, response: str):
    _, encode = world(name)
    dialect = PATHS[form.partition(",")[0]]
    rendered = encode._render((Message("user", "Hi"),), add_generation_prompt=True)
    sent = json.dumps(FORMS[form](prompt, response, rendered)).encode()
    served = SimpleNamespace(loaded=SimpleNamespace(encode=encode))
    read_as, record = dialect.read(body.decode_any(sent))
    asked = read_as.to_samples(record, served)
    return [encode(sample) for sample in asked]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_attack_in_any_wire_format_adds_no_control_token(name, form):
    honest = encoded(name, form, BENIGN, BENIGN)
    for text in attacks(FAMILIES[name]).values():
        # Behind it stands something: a bare prompt that ends as a rendered one does would be taken for rendered.
        attacked = encoded(name, form, text + " ok", text)
        assert [controls_of(name, each) for each in attacked] == [controls_of(name, each) for each in honest]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attack_on_our_own_routes_adds_no_control_token(name):
    _, encode = world(name)
    for text in attacks(FAMILIES[name]).values():
        for honest, attacked in zip(samples_of(BENIGN), samples_of(text), strict=True):
            assert controls_of(name, encode(attacked)) == controls_of(name, encode(honest))


def samples_of(text: str) -> list:
    said = [turn("user", text), turn("assistant", text)]
    bodies = [{"prompt": text, "response": text}, {"prompt": said[:1], "response": text}, {"messages": said * 2}]
    asked = msgspec.json.decode(json.dumps({"samples": bodies}).encode(), type=ScoreRequest)
    compared = {"comparisons": [{"prompt": text, "responses": [text, text + "x"]}]}
    (comparison,) = msgspec.json.decode(json.dumps(compared).encode(), type=CompareRequest).comparisons
    made = to_comparison(comparison)
    return [to_sample(each) for each in asked.samples] + [
        to_sample(SampleIn(prompt=made.prompt, response=response)) for response in made.responses
    ]


def test_every_wire_format_is_here_and_whole_texts_are_named_in_the_docs():
    covered = {form.partition(",")[0] for form in FORMS}
    assert covered | WHOLE_TEXT == set(PATHS)
    said = (ROOT / "docs" / "how-to" / "security.md").read_text()
    section = said.partition("## What is not defended")[2].partition("\n## ")[0]
    assert all(f"`{path}`" in section for path in WHOLE_TEXT)


def test_plain_text_that_marks_turns_is_named_when_the_model_is_loaded():
    for name in FAMILIES:
        assert world(name)[1].notes == (), name
