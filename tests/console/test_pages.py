"""The pages as a person uses them, in Chromium."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.console.conftest import TAIL, train
from tests.support.service_server import Server, wait_until

PAGES = [
    "", "/run?run=hacked", "/run?run=quiet", "/queue", "/queue?run=hacked&sampling=alert", "/loop", "/models", "/models?confirm=1",
    "/playground",
]  # fmt: skip


def visit(page, server, path=""):
    reply = page.goto(f"{server.url}/console{path}")
    assert reply.status == 200, path
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_each_page_fits_and_has_no_violation_of_accessibility(browser, server, width, scheme):
    axe = pytest.importorskip(
        "axe_core_python.sync_playwright", reason="axe-core-python is not installed: make setup"
    ).Axe()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    sample = server.client.get("/review/samples?run=hacked&limit=1").json()["samples"][0]["id"]
    for path in [*PAGES, f"/sample/{sample}"]:
        visit(page, server, path)
        found = [(each["id"], each["nodes"][0]["html"][:200]) for each in axe.run(page)["violations"]]
        assert found == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    context.close()


def test_home_shows_the_hacked_run_first_and_leads_to_its_cause(page, server):
    visit(page, server)
    assert page.title().startswith("alarm: hacked")
    states = [(each.inner_text()) for each in page.locator(".run .state").all()]
    assert states == ["alarm", "quiet"]
    page.get_by_role("link", name="what changed, and the responses that show it").click()
    assert "judge_injection" in page.locator("table").inner_text()
    assert page.locator("svg.chart").count() >= 3
    assert page.locator("line.mark.page").count() >= 1
    sides = page.locator(".finding .sides").last
    assert TAIL.strip() not in sides.locator(".side").nth(0).inner_text()
    assert TAIL.strip() in sides.locator(".side").nth(1).inner_text()
    sides.locator("a").last.click()
    assert "Response" in page.inner_text("main")


def test_an_alert_arrives_while_the_page_is_open(page, tmp_path):
    with Server("--backend=echo", "echo", "--tripwires.cpu-share=1", f"--tripwires.state-dir={tmp_path}") as server:
        train(server, 10, run="live")
        visit(page, server)
        assert page.locator(".run .state").inner_text() == "quiet"
        train(server, 8, run="live", first=10, share=0.7)
        page.get_by_text("alarm", exact=True).wait_for(timeout=15_000)
        assert page.title().startswith("alarm: live")
        page.goto(f"{server.url}/console/run?run=live")
        page.get_by_role("button", name="Acknowledge").first.click()
        page.wait_for_url("**/console/run?run=live")
        visit(page, server)
        page.goto("about:blank")


def test_twenty_pairs_are_labelled_by_keyboard_and_one_is_taken_back(page, server):
    visit(page, server, "/queue?run=hacked&sampling=alert")
    wanted = {}
    for number in range(20):
        pair = page.locator("input[name=pair]").get_attribute("value")
        first, second = (each.inner_text() for each in page.locator("#label blockquote").all())
        key = "t" if number == 19 else "2" if TAIL.strip() in first else "1"
        assert TAIL.strip() in first + second
        wanted[pair] = key
        page.keyboard.press(key)
        page.wait_for_function("before => document.querySelector('input[name=pair]')?.value !== before", arg=pair)
    assert page.locator(".facts b").first.inner_text() == "20"
    page.keyboard.press("u")
    page.wait_for_function("before => document.querySelector('input[name=pair]')?.value === before", arg=pair)
    found = server.client.get("/review/labels?run=hacked").json()["pairs"]
    assert {each["pair"] for each in found} == set(wanted) - {pair}
    assert {each["verdicts"]["local"] for each in found} == {"earlier"}  # the responses without the exploit


def test_the_playground_ranks_and_colours(page, server):
    visit(page, server, "/playground")
    page.fill("#prompt", "How do I boil an egg?")
    texts = ["Eight minutes.", "No idea \u202e.", "<b>x</b>"]
    for i, text in enumerate(texts):
        page.fill(f"#response{i}", text)
    page.get_by_role("button", name="Score").click()
    rows = page.locator("main > table tbody tr").all()
    assert len(rows) == 3
    rewards = [float(row.locator("td").nth(2).inner_text()) for row in rows]
    sent = [{"prompt": "How do I boil an egg?", "response": text} for text in texts]
    expected = sorted(server.client.post("/score", json={"samples": sent}).json()["rewards"], reverse=True)
    assert rewards == pytest.approx(expected, abs=1e-3)
    shown = page.locator(".heat").inner_text().replace("U+202E", "\u202e")
    assert shown.strip() == rows[0].locator("td").nth(1).inner_text().replace("U+202E", "\u202e").strip()


HOSTILE = [
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "\u202egnissim si thgir\u202c \u200b\u2066zero\u2069 \u0000 \u001b[31m",
    "]]></script><svg onload=alert(1)>{{ 7*7 }} {% raw %}",
    "lone \ud800 surrogate",
    "x" * 1_000_000,
]


def test_hostile_responses_are_shown_harmlessly(page, tmp_path):
    with Server("--backend=echo", "echo", "--capture=share:1", f"--tripwires.state-dir={tmp_path}") as server:
        run = "<b onclick=alert(1)>'\"&"
        samples = [{"prompt": HOSTILE[0], "response": text} for text in HOSTILE]
        body = {"run": run, "step": 1, "samples": samples}
        reply = server.client.post("/score", content=json.dumps(body), headers={"content-type": "application/json"})
        assert reply.status_code == 200, reply.text
        assert [each["error"] for each in reply.json()["results"]][:3] == [None] * 3
        wait_until(lambda: len(server.client.get("/review/samples").json()["samples"]) >= 3, 20.0)
        ids = [each["id"] for each in server.client.get("/review/samples").json()["samples"]]
        for path in ("", "/queue", *(f"/sample/{each}" for each in ids)):
            visit(page, server, path)
            assert "owned" not in page.title()
            assert page.locator("main script, main img, main svg[onload]").count() == 0
        for path in (f"/run?run={quote(run)}", f"/queue?run={quote(run)}"):
            visit(page, server, path)
            assert run in page.inner_text("main")
        shown = "".join(visit(page, server, f"/sample/{each}").inner_text("main") for each in ids)
        for mark in ("U+202E", "U+202C", "U+200B", "U+2066", "U+0000", "U+001B"):
            assert mark in shown
