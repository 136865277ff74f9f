"""Sessions, texts and charts of the console."""

from __future__ import annotations

import re
import stat
import xml.etree.ElementTree as ET
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.auth.api_keys import ApiKey, ApiKeys
from rewardserve.service.console.charts import Mark, Series, histogram, line_chart, scatter
from rewardserve.service.console.session import MAX_AGE_S, Sessions, read_secret
from rewardserve.service.console.text import visible

KEYS = ApiKeys((ApiKey("ann", sha256(b"secret key").digest(), frozenset({"review"})),), is_required=True)
FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=32)


# -- sessions -------------------------------------------------------------------------------------------------------


def test_a_session_is_of_its_key_and_ends_after_twelve_hours():
    sessions = Sessions(b"s" * 32, KEYS, is_local=True)
    cookie = sessions.log_in(" secret key\n", 1_000.0)
    assert sessions.viewer(cookie, 1_000.0).name == "ann"
    assert sessions.viewer(cookie, 1_000.0 + MAX_AGE_S + 1.0) is None
    assert sessions.viewer(cookie, 900.0) is None
    assert sessions.log_in("another key", 1_000.0) is None
    assert Sessions(b"t" * 32, KEYS, is_local=True).viewer(cookie, 1_000.0) is None
    assert Sessions(b"s" * 32, replace(KEYS, keys=()), is_local=True).viewer(cookie, 1_000.0) is None


@given(st.text(max_size=200))
def test_no_text_is_a_session(text):
    assert Sessions(b"s" * 32, KEYS, is_local=True).viewer(text, 0.0) is None


def test_a_form_token_is_of_one_session():
    sessions = Sessions(b"s" * 32, KEYS, is_local=True)
    one, two = (sessions.viewer(sessions.log_in("secret key", 0.0), 0.0) for _ in range(2))
    assert sessions.accepts(one, sessions.form_token(one))
    assert not sessions.accepts(two, sessions.form_token(one))
    assert not sessions.accepts(None, sessions.form_token(one))
    assert not sessions.accepts(one, "\u00e9")


def test_without_keys_only_this_machine_has_a_session():
    assert Sessions(b"s" * 32, ApiKeys(), is_local=True).viewer(None, 0.0).scopes == {"score", "admin", "review"}
    assert Sessions(b"s" * 32, ApiKeys(), is_local=False).viewer(None, 0.0) is None


def test_the_secret_stays_and_is_for_its_owner(tmp_path):
    first = read_secret(tmp_path / "state")
    assert read_secret(tmp_path / "state") == first
    assert stat.S_IMODE((tmp_path / "state" / "console.secret").stat().st_mode) == 0o600
    assert read_secret(None) != read_secret(None)


# -- texts ----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=100))
def test_every_character_is_shown_or_named(text):
    html = str(visible(text))
    assert "<" not in re.sub(r'<span class="hidden-character">U\+[0-9A-F]{4,6}</span>', "", html)
    assert not re.search("[\u0000-\u0008\u000b-\u001f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", html)


@pytest.mark.parametrize("emoji", ["👨\u200d👩\u200d👧", "❤\ufe0f\u200d🔥"])
def test_an_emoji_stays_whole(emoji):
    assert str(visible(emoji)) == emoji
    assert "U+200D" in visible("a\u200db")


def test_a_long_text_is_cut():
    assert len(visible("x" * 30_000)) == 20_000


# -- charts ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 10**9), st.none() | FLOATS, st.none() | st.floats(0.0, 1e6)), max_size=30))
def test_any_line_is_valid_svg_or_none(points):
    line = Series([float(x) for x, _, _ in points], [y for _, y, _ in points], [s for _, _, s in points])
    chart = line_chart("a < b", line, [Mark(3.0, "page", '"<')])
    if chart:
        assert "nan" not in chart
        assert ET.fromstring(chart).attrib["role"] == "img"


@given(st.lists(FLOATS, max_size=30), st.lists(FLOATS, max_size=30))
def test_any_distribution_is_valid_svg_or_none(then, now):
    for chart in (histogram("t", then, now),):
        assert not chart or ET.fromstring(chart) is not None


def test_a_scatter_has_a_circle_a_point():
    chart = ET.fromstring(scatter("t", [(1.0, 2.0)], [(2.0, 3.0), (4.0, 4.0)]))
    assert len([each for each in chart.iter() if each.tag == "circle"]) == 3
    assert scatter("t", [], []) == ""
