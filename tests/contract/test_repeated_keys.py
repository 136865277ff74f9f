"""A request that is sent again with its `Idempotency-Key`: what failed for a while is scored then, in every wire format."""

from __future__ import annotations

import pytest

from tests.contract.table import PROMPT, RESPONSE, gym_episode
from tests.contract.test_forms import FORMS
from tests.support.service_server import drill

COMPARISON = {"prompt": PROMPT, "responses": [RESPONSE, "No."]}
EPISODE, ANSWER = gym_episode(RESPONSE)
OURS = {
    "score": ("/score", {"samples": [{"prompt": PROMPT, "response": RESPONSE}]}),
    "score beside a sample that is refused": ("/score", {"samples": [{"text": "a"}, {"prompt": "", "response": "a"}]}),
    "compare": ("/compare", {"comparisons": [COMPARISON]}),
    "NeMo-Gym": ("/verify", {"responses_create_params": EPISODE, "response": ANSWER}),
}
REQUESTS = OURS | {name: (form.path, form.body) for name, form in FORMS.items()}
FAILURES = {"fails-while-there-is": "scorer_failed", "no-memory-while-there-is": "out_of_memory"}


@pytest.fixture(scope="module", params=FAILURES)
def failing(request, tmp_path_factory):
    """A server, the file that makes it fail, and the code of that failure."""
    file = tmp_path_factory.mktemp("failing") / "file"
    with drill(f"{request.param}:{file}", "--cache.scores=0") as running:
        yield running, file, FAILURES[request.param]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_failure_that_passes_is_not_the_answer_to_a_repeat(failing, name):
    server, file, code = failing
    path, body = REQUESTS[name]

    def ask():
        return server.client.post(path, json=body, headers={"idempotency-key": name})

    file.touch()
    failed = ask()
    file.unlink()
    scored, again = ask(), ask()
    assert code in failed.text
    assert (scored.status_code, code in scored.text) == (200, False)
    assert "idempotency-replayed" not in scored.headers
    assert (again.content, again.headers["idempotency-replayed"]) == (scored.content, "true")


def test_a_sample_that_is_at_fault_itself_has_the_same_answer_again(failing):
    server = failing[0]
    body = {"samples": [{"text": "a"}, {"prompt": "", "response": "a"}]}
    first, again = (server.client.post("/score", json=body, headers={"idempotency-key": "own"}) for _ in range(2))
    assert first.json()["results"][1]["error"]["code"] == "empty_prompt"
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
