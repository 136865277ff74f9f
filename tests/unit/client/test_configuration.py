"""Addresses and keys, checked before anything is sent."""

from __future__ import annotations

import pytest

from rewardserve_client import ClientLimits, Misconfigured, RewardClient, WrongType
from rewardserve_client.configuration import deadline_from, key_from, model_digests_from, urls_from


def test_servers_come_from_the_argument_or_else_from_the_environment():
    there = {"REWARDSERVE_URL": "http://a:1/, http://b:2 ,,http://a:1"}
    assert urls_from(None, there) == ("http://a:1", "http://b:2")
    assert urls_from("https://c/base/", there) == ("https://c/base",)
    assert urls_from(["http://a:1", "http://b:2"], {}) == ("http://a:1", "http://b:2")


def test_an_empty_address_in_a_list_is_no_server_less():
    """A variable that is not set would take a server away without a word."""
    with pytest.raises(Misconfigured, match="address 2 of 2 in url is empty"):
        urls_from(["http://a:1", ""], {})
    assert urls_from("http://a:1,", {}) == ("http://a:1",)


@pytest.mark.parametrize(
    "url", ["", "reward:8000", "ftp://a", "http://", "http://a:99999999/", "http://a/?x=1", "http://[::1"]
)
def test_what_is_no_server_is_refused(url):
    with pytest.raises(Misconfigured):
        urls_from(url, {})


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(Misconfigured) as caught:
        RewardClient("http://user:sesame@a:1")
    assert "sesame" not in str(caught.value)


def test_the_key_comes_from_the_argument_or_else_from_the_environment():
    there = {"REWARDSERVE_API_KEY": "sk-there\n"}
    assert key_from(None, there) == "sk-there"
    assert key_from("sk-here", there) == "sk-here"
    assert key_from(None, {}) is None


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "grün"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(key):
    with pytest.raises(Misconfigured) as caught:
        RewardClient("http://a:1", api_key=key)
    assert key not in str(caught.value)


def test_limits_that_allow_nothing_are_refused():
    for name in ("chunk_samples", "chunk_bytes", "concurrent_chunks", "connections", "attempt_timeout_s"):
        with pytest.raises(Misconfigured):
            ClientLimits(**{name: 0})


@pytest.mark.parametrize(("text", "seconds"), [("12.5", 12.5), ("", 300.0), (None, 300.0)])
def test_the_deadline_of_adapters_comes_from_the_environment(text, seconds):
    assert deadline_from({} if text is None else {"REWARDSERVE_DEADLINE_S": text}) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(text):
    with pytest.raises(Misconfigured):
        deadline_from({"REWARDSERVE_DEADLINE_S": text})


DIGEST = "sha256:" + "a" * 64


def test_a_pin_comes_from_the_argument_or_else_from_the_environment():
    other = "sha256:" + "b" * 64
    assert model_digests_from(None, {}) == ()
    assert model_digests_from(None, {"REWARDSERVE_MODEL_DIGEST": f"{DIGEST}, {other}"}) == (DIGEST, other)
    assert model_digests_from(other, {"REWARDSERVE_MODEL_DIGEST": DIGEST}) == (other,)
    assert model_digests_from([DIGEST], {}) == (DIGEST,)


@pytest.mark.parametrize("only", ["", ",", " ", f"{DIGEST},", [], [""], "sha256:x", DIGEST.upper()])
def test_a_pin_that_would_pin_nothing_is_refused(only, monkeypatch):
    with pytest.raises(Misconfigured):
        RewardClient("http://a:1", model_digest=only)
    if isinstance(only, str):
        monkeypatch.setenv("REWARDSERVE_MODEL_DIGEST", only)
        with pytest.raises(Misconfigured):
            RewardClient("http://a:1")


def test_a_url_of_another_type_may_be_one_string():
    with pytest.raises(WrongType, match="url must be a string or a list of strings, not int"):
        urls_from(3, {})
