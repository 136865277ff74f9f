"""What the served benchmark reports: whose processes are counted, how replies are judged, which way ratios point."""

import math
import os
import subprocess
import sys

import pytest

from benchmarks.peers import install, measurements, scenarios
from benchmarks.peers.__main__ import PEERS
from benchmarks.peers.client import HttpAnswer
from benchmarks.peers.measurements import PeerRun
from benchmarks.peers.processes import parse_stat, processes
from benchmarks.peers.scenarios import Scenario
from benchmarks.workloads import make
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy


def run(peer, *, n=0, cpu=1.0, wall=1.0, latencies=(0.1, 0.2, 0.3), failures=()):
    return PeerRun(peer, "ragged", n, 60, cpu, wall, latencies, 100.0, 1e-6, failures)


def test_ratios_say_by_how_much_ours_is_better_in_the_same_round():
    runs = [run("ours", cpu=2.0, wall=3.0), run("vllm", cpu=5.0, wall=6.0, latencies=(0.2, 0.6, 0.9))]
    runs += [run("ours", n=1, cpu=20.0, wall=30.0), run("vllm", n=1, cpu=50.0, wall=60.0, latencies=(0.2, 0.6, 0.9))]
    theirs = next(r for r in measurements.summary(runs) if r["peer"] == "vllm")
    assert theirs["per_cpu_s"] == pytest.approx((60 / 5 + 60 / 50) / 2)
    assert theirs["ours_per_cpu_s"] == pytest.approx(2.5)
    assert theirs["ours_per_wall_s"] == pytest.approx(2.0)
    assert theirs["ours_p50_s"] == pytest.approx(3.0)
    assert theirs["ours_p99_s"] == pytest.approx(3.0)


def test_a_server_that_failed_has_no_rate():
    failed = measurements.summary([run("ours"), run("mosec", failures=("408 ",))])[1]
    assert math.isnan(failed["per_cpu_s"])
    assert measurements.table_row(failed)["pairs/s"] == "failed"


def test_percentiles_are_those_of_the_requests():
    many = run("ours", latencies=tuple(i / 100 for i in range(1, 101)))
    assert many.p50_s == pytest.approx(0.505)
    assert many.p99_s == pytest.approx(0.99)


def test_replies_are_compared_with_the_reference_pair_by_pair():
    scenario = Scenario("ragged", (("a", "b"), ("c",)), 2, reference={0: 1.0, 2: -1.0})
    peer = PEERS["plain"]
    good = [HttpAnswer({"rewards": [1.0, 5.0]}, "", 0.1), HttpAnswer({"rewards": [-1.25]}, "", 0.1)]
    assert scenarios.check_scores(scenario, good, peer) == (0.25, ())
    short = [HttpAnswer({"rewards": [1.0]}, "", 0.1), HttpAnswer(None, "503 busy", 0.1)]
    error, failures = scenarios.check_scores(scenario, short, peer)
    assert math.isnan(error)
    assert failures == ("503 busy", "1 scores for 2 texts")


def test_what_is_sent_as_text_is_what_our_encoder_makes_of_prompt_and_response(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    from benchmarks.models import _write_tokenizer

    _write_tokenizer(tmp_path, tokenizer)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    policy = infer_policy(fast, max_tokens=8192, vocab_size=len(fast), rule=LAYOUT_RULES["trl_value_head"])
    encode = Encoder(fast, policy)
    for pair in make("ragged", tokenizer, 0.03).pairs:
        ids = list(encode(pair.sample()).ids)
        assert fast(scenarios.rendered(pair), add_special_tokens=False)["input_ids"] == ids


def test_a_repeat_sends_the_same_pairs_in_other_batches(tokenizer):
    requests = make("duplicates", tokenizer, 0.1).requests
    again = scenarios.shuffled(requests, seed=0)
    assert [len(r) for r in again] == [len(r) for r in requests]
    assert sorted(p.prompt for r in again for p in r) == sorted(p.prompt for r in requests for p in r)
    assert again != requests


def test_arrivals_of_the_open_loop_have_a_mean_distance_of_one():
    moments = scenarios.arrivals(4000, seed=0)
    assert list(moments) == sorted(moments)
    assert moments[-1] / len(moments) == pytest.approx(1.0, rel=0.05)


def test_the_line_of_a_process_is_read_whatever_its_name_is():
    fields = ["S", "1", "50", "40", *["0"] * 7, "100", "50", "25", "25"]
    assert parse_stat(f"77 (a (b) c) {' '.join(fields)} 20 0").session == 40
    parsed = parse_stat(f"77 (a (b) c) {' '.join(fields)} 20 0")
    assert (parsed.pid, parsed.parent) == (77, 1)
    assert parsed.cpu_s == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))


def test_processes_know_their_parents():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert next(p for p in processes() if p.pid == child.pid).parent == os.getpid()
    finally:
        child.communicate(b"\n", timeout=10)


def test_uv_is_told_what_pip_is_told():
    """As `pip config list` prints it: several values by spaces, or by lines, which are written with an n."""
    listed = "\n".join(
        [
            ":env:.find-links='/from/the/environment'",
            r"global.extra-index-url='\nhttps://a.example/simple\nhttps://b.example/simple'",
            "global.find-links='/from/a/file'",
            "global.index-url='https://c.example/simple?a=b'",
            "user.cert='/etc/cert'",
        ]
    )
    assert install.uv_settings(listed) == {
        "UV_FIND_LINKS": "/from/the/environment",
        "UV_DEFAULT_INDEX": "https://c.example/simple?a=b",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert install.uv_settings("global.find-links='/a /b'") == {"UV_FIND_LINKS": "/a,/b"}
    assert install.uv_settings("") == {}


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_says_where_it_comes_from(name):
    assert PEERS[name].name == name
    assert PEERS[name].requirements or name == "ours"
    assert PEERS[name].path.startswith("/")
