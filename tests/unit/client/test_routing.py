"""Where prompts live: the same everywhere, and hardly ever somewhere else."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rewardserve_client.routing import order_of

URLS = [f"http://reward-{i}:8000" for i in range(8)]
servers = st.lists(st.sampled_from(URLS), min_size=1, unique=True)


@given(group=st.binary(max_size=40), urls=servers)
def test_every_server_has_one_place_in_the_order(group, urls):
    assert sorted(order_of(group, urls)) == sorted(urls)


@given(group=st.binary(max_size=40), urls=servers, shuffled=st.randoms())
def test_how_the_servers_are_listed_changes_nothing(group, urls, shuffled):
    other = list(urls)
    shuffled.shuffle(other)
    assert order_of(group, other) == order_of(group, urls)


@given(group=st.binary(max_size=40), urls=servers, new=st.sampled_from(["http://new:1", "http://other:2"]))
def test_a_server_more_moves_a_prompt_to_itself_or_not_at_all(group, urls, new):
    before, after = order_of(group, urls), order_of(group, [*urls, new])
    assert after[0] in (new, before[0])
    assert tuple(url for url in after if url != new) == before


@given(group=st.binary(max_size=40), urls=st.lists(st.sampled_from(URLS), min_size=2, unique=True))
def test_when_a_server_goes_its_prompts_go_to_the_next_in_their_order(group, urls):
    home, *rest = order_of(group, urls)
    assert order_of(group, [url for url in urls if url != home]) == tuple(rest)


def test_prompts_are_spread_evenly():
    homes = Counter(order_of(b"prompt %d" % i, URLS)[0] for i in range(4000))
    assert len(homes) == len(URLS)
    assert all(400 < n < 600 for n in homes.values())  # 500 expected, standard deviation 21


def test_another_process_finds_the_same_order():
    code = "from rewardserve_client.routing import order_of; print(*order_of(b'p', %r))" % URLS  # noqa: UP031
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[3] / "client",
    )  # fmt: skip
    assert tuple(there.stdout.split()) == order_of(b"p", URLS)
