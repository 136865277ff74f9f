"""Files of keys: what is read, what is refused without quoting it, what a change does, and what `rewardserve keys` writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.auth.api_keys import (
    SCOPES,
    ApiKey,
    ApiKeys,
    ApiKeysError,
    ApiKeysFile,
    RunPatterns,
    format_line,
    parse,
    read_api_keys,
)
from rewardserve.service.auth.rate_limits import UNLIMITED, RateLimits
from rewardserve.service.cli import keys

SECRET = "rwd_a-key-that-nobody-guesses"


def hashed(name: str, key: str, rest: str = "score") -> str:
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()} {rest}\n"


def test_a_line_is_a_name_a_digest_scopes_and_limits():
    ring = parse("# team a\n\n" + hashed("ppo", SECRET, "score,metrics  requests_per_s=5 tokens_per_s=2e4 burst_s=3"))
    key = ring.find(SECRET.encode())
    assert key is not None
    assert (key.name, key.scopes, key.limits) == ("ppo", {"score", "metrics"}, RateLimits(5, 20_000, 3))
    assert ring.find(b"another") is None
    assert ring.find(b"") is None
    assert ring.find(hashlib.sha256(SECRET.encode()).hexdigest().encode()) is None, "a digest is no key"
    assert list(ring.warnings()) == []


def test_a_line_of_one_word_is_a_key_as_such_with_a_warning():
    words = [SECRET, "short", "sixteen-letters-", "fifteen-letters"]
    names = ["key-" + hashlib.sha256(word.encode()).hexdigest()[:12] for word in words]
    keys = [key_of(name, word, {"score", "metrics"}) for name, word in zip(names, words, strict=True)]
    keys = [replace(key, is_hashed=False, is_short=i in (1, 3)) for i, key in enumerate(keys)]
    ring = parse("\n".join(words) + "\n")
    assert ring == ApiKeys(tuple(keys), is_required=True)
    assert ring.find(SECRET.encode()) == keys[0]
    assert list(ring.warnings()) == [
        f"4 keys are not hashed ({', '.join(names)}), so the file reveals them: replace them with rewardserve keys.",
        f"{names[1]}, {names[3]}: shorter than 16 characters, easy to guess: replace them with rewardserve keys.",
    ]


def test_a_plain_key_keeps_its_name_and_owner_wherever_its_line_stands():
    moved = ["# a comment\n" + SECRET, f"{hashed('new', 'new-key')}\n\nanother-plain-key\n{SECRET}\nlast-plain-key"]
    before = parse(SECRET)
    for text in moved:
        after = parse(text)
        key = after.find(SECRET.encode())
        assert key == before.keys[0]
        assert after.permissions(key).owner == before.permissions(before.keys[0]).owner == key.name


def key_of(name, key, scopes=("score",), limits=UNLIMITED, **rest) -> ApiKey:
    return ApiKey(name, hashlib.sha256(key.encode()).digest(), frozenset(scopes), limits, **rest)


def test_of_a_digest_every_byte_counts():
    (key,) = parse(hashed("ppo", SECRET)).keys
    for i in range(32):
        other = bytearray(key.digest)
        other[i] ^= 1
        text = f"ppo sha256:{other.hex()} score\n"
        assert parse(text).find(SECRET.encode()) is None
        both = parse(text + hashed("ppo2", SECRET))
        assert both.find(SECRET.encode()).name == "ppo2"


FORM = "write NAME sha256:HEX SCOPES, as rewardserve keys does"
NAME = "the name must have 1 to 64 printable characters"
DIGEST = "a digest must be sha256: and 64 hexadecimal digits, and not that of an empty key"
OWNER = "an owner must have 1 to 64 printable characters"
SCOPE = "scopes must be of score, admin, review, metrics, separated by commas, without spaces"
RUNS = "runs must be names separated by commas, without spaces; `name*` means all names that begin so"
PLAIN = "a key must have printable characters only"
LIMIT = "options are requests_per_s, tokens_per_s, burst_s, each with = and a number above zero, and runs= and owner="


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("xy\u200bzzy", PLAIN), ("xy\0zzy", PLAIN),
        ("ppo xyzzy score", FORM), ("sha256:" + "0" * 64, FORM), ("ppo sha256:" + "7" * 64, FORM),
        (hashed("p" * 65, "xyzzy"), NAME), (hashed("p\0o", "xyzzy"), NAME),
        ("ppo sha256:xyzzy score", DIGEST), ("ppo sha256:" + "7" * 62 + " score", DIGEST),
        ("ppo sha256:" + "7" * 66 + " score", DIGEST), (hashed("ppo", ""), DIGEST),
        (hashed("ppo", "xyzzy", "score owner="), OWNER), (hashed("ppo", "xyzzy", "score owner=" + "o" * 65), OWNER),
        (hashed("ppo", "xyzzy", "score owner=a owner=a"), "owner= is given twice"),
        (hashed("ppo", "xyzzy", "score runs=a runs=a"), "runs= is given twice"),
        *((hashed("ppo", "xyzzy", f"score runs={runs}"), RUNS) for runs in ("", "*", "a*b", "a*b*", "a,", "b\0", "r" * 257)),
        (hashed("ppo", "xyzzy", "score runs=" + ",".join(map(str, range(65)))), "65 runs; the limit of a key is 64"),
        *((hashed("ppo", "xyzzy", scopes), SCOPE) for scopes in ("score,root", "score,", ",")),
        (hashed("ppo", "xyzzy", "score,amdin"), f"{SCOPE}; did you mean admin?"),
        *((hashed("ppo", "xyzzy", f"score {limit}"), LIMIT) for limit in ("tokens=3", "xyzzy=3", "admin")),
        *((hashed("ppo", "xyzzy", f"score {limit}"), f"{limit.partition('=')[0]} must be a number above zero") for limit in (
            "tokens_per_s=0", "tokens_per_s=-1", "tokens_per_s=nan", "tokens_per_s=inf", "tokens_per_s=xyzzy", "tokens_per_s",
            "tokens_per_s=1=2", "burst_s=0",
        )),
    ],
)  # fmt: skip
def test_a_line_that_is_no_key_is_refused_with_its_number_and_not_quoted(line, message):
    with pytest.raises(ApiKeysError) as refused:
        parse(hashed("good", "good-key") + line)
    assert str(refused.value) == f"line 2: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has no key: make one with rewardserve keys"),
        ("# nothing\n\n", "the file has no key: make one with rewardserve keys"),
        (
            "# keys\n" + hashed("ppo", "xyzzy") + hashed("ppo", "other"),
            "line 3: line 2 has the same name; a name may stand on one line only",
        ),
        *(
            (text, "line 2: line 1 has the same key; a key may stand on one line only")
            for text in (hashed("ppo", "xyzzy") + hashed("ppo2", "xyzzy"), hashed("ppo", "xyzzy") + "xyzzy")
        ),
    ],
)
def test_a_file_without_keys_or_with_one_twice_is_refused(text, message):
    with pytest.raises(ApiKeysError) as refused:
        parse(text)
    assert str(refused.value) == message


def test_what_is_as_long_as_it_may_be_is_a_key():
    runs = ["r", "s*", "r" * 256, *map(str, range(61))]
    line = hashed("p" * 64, SECRET, f"score burst_s=0.001 owner={'o' * 64} runs={','.join(runs)}")
    bound = RunPatterns(frozenset(runs) - {"s*"}, ("s",))
    assert parse(line).keys == (
        key_of("p" * 64, SECRET, limits=RateLimits(burst_s=0.001), owner="o" * 64, runs=bound),
    )  # fmt: skip
    assert parse(line).reserved == bound
    assert parse(hashed("ppo", SECRET, "score owner=a=b")).keys[0].owner == "a=b"


@given(
    st.frozensets(st.sampled_from(SCOPES), min_size=1),
    st.builds(RateLimits, st.none() | st.sampled_from([1.0, 0.5, 300.0]), st.none() | st.just(1e5), st.sampled_from([10.0, 1.0])),
)  # fmt: skip
def test_what_is_written_is_read(scopes, limits):
    ring = parse(format_line("a-name", SECRET, scopes, limits))
    assert ring.keys == (key_of("a-name", SECRET, scopes, limits),)
    bound = parse(format_line("a-name", SECRET, scopes, limits, ["run", "sweep-*"], "team-a"))
    runs = RunPatterns(frozenset({"run"}), ("sweep-",))
    assert bound.keys == (key_of("a-name", SECRET, scopes, limits, runs=runs, owner="team-a"),)


def test_a_key_may_be_bound_to_runs_and_these_runs_to_it():
    ring = parse(
        hashed("a", "a-key", "score runs=ppo-7,sweep-*")
        + hashed("b", "b-key", "score")
        + hashed("c", "c-key", "score runs=dpo-1")
    )
    a, b, c = (ring.permissions(ring.find(f"{each}-key".encode())) for each in "abc")
    runs = ("ppo-7", "ppo-70", "sweep-", "sweep-1", "dpo-1", "new")
    assert [a.may_send(run) for run in runs] == [True, False, True, True, False, False]
    assert [b.may_send(run) for run in runs] == [False, True, False, False, False, True]
    assert [c.may_send(run) for run in runs] == [False, False, False, False, True, False]
    assert (a.runs.only_name, b.runs.only_name, c.runs.only_name) == (None, None, "dpo-1")


def test_keys_of_one_owner_share_their_runs():
    ring = parse(
        hashed("old", "old-key", "score owner=team-a")
        + hashed("new", "new-key", "score owner=team-a")
        + hashed("b", "b-key")
    )
    owners = [ring.permissions(ring.find(key)).owner for key in (b"old-key", b"new-key", b"b-key")]
    assert owners == ["team-a", "team-a", "b"]


# -- a file that changes ----------------------------------------------------------------------------------------------


class Told(list):
    def on_keys_read(self, names, why):
        self.append((list(names), why))


@pytest.fixture
def world(tmp_path):
    path, told = tmp_path / "keys", Told()
    path.write_text(hashed("old", "old-key") + hashed("other", "other-key"))
    return path, told, ApiKeysFile(path, read_api_keys(path), told)


def names(file):
    return [key.name for key in file.current().keys]


def test_a_file_that_stays_as_it_was_is_no_news(world):
    _, told, file = world
    file.poll()
    file.poll()
    assert (names(file), told) == (["old", "other"], [])


def test_a_key_counts_when_two_looks_have_seen_it_and_ends_when_two_have_not(world):
    path, told, file = world
    path.write_text(hashed("new", "new-key") + hashed("old", "old-key") + hashed("other", "other-key"))
    file.poll()
    assert names(file) == ["old", "other"], "it may be half of a line that is being written"
    file.poll()
    assert names(file) == ["new", "old", "other"]
    path.write_text(hashed("new", "new-key") + hashed("other", "other-key"))
    file.poll()
    assert set(names(file)) == {"new", "old", "other"}, "it may be half of a file that is being written"
    file.poll()
    assert names(file) == ["new", "other"]
    assert file.current().find(b"old-key") is None
    assert told == [(["new", "old", "other"], None), (["new", "other"], None)]


@pytest.mark.parametrize(
    ("empty", "reason"),
    [
        (os.remove, "the file does not exist: no key is valid until it does"),
        (lambda p: shutil.rmtree(p.parent), "the file does not exist: no key is valid until it does"),
        (lambda p: p.write_text(""), "the file has no key: no key is valid"),
        (lambda p: p.write_text("\n# old\n"), "the file has no key: no key is valid"),
        (lambda p: p.write_text("a line of words"), f"line 1: {FORM}; invalid lines are ignored (1 of them)"),
    ],
)
def test_a_file_without_keys_or_no_file_means_that_no_key_is_valid(world, empty, reason):
    path, told, file = world
    empty(path)
    for _ in range(3):
        file.poll()
    assert file.current() == ApiKeys(is_required=True), "without keys is not without protection"
    assert told == [([], reason)]
    path.parent.mkdir(exist_ok=True)
    path.write_text(hashed("new", "new-key"))
    file.poll()
    file.poll()
    assert names(file) == ["new"]
    assert told[1:] == [(["new"], None)]


def changed(path, text, n):
    """A file that is another one at every look."""
    path.write_text(text + f"# {n}\n" + "#" * n)


def test_in_a_file_that_never_holds_still_keys_go_and_come_as_in_any_other(world):
    path, told, file = world
    for n in range(4):
        changed(path, hashed("other", "other-key") + hashed("new", "new-key"), n)
        file.poll()
        assert set(names(file)) == [{"old", "other"}, {"other", "new"}][n > 0]
    assert told == [(["other", "new"], None)]


def test_a_line_that_is_being_written_is_no_key_until_it_stays_as_it_is(world):
    path, told, file = world
    before, line = path.read_text(), hashed("new", "new-key", "score,metrics tokens_per_s=200000 runs=ppo-7").rstrip()
    for n in (n for n in range(len("new sha256:"), len(line) + 1) if line[n - 1] != " "):
        path.write_text(before + line[:n])
        file.poll()
        assert names(file) == ["old", "other"], line[:n]
    file.poll()
    assert names(file) == ["old", "other", "new"], "the last line needs no newline"
    assert file.current().keys[-1].limits == RateLimits(tokens_per_s=200_000)
    assert [told_names for told_names, _ in told[-1:]] == [["old", "other", "new"]]


def test_a_plain_key_that_is_being_written_makes_no_key_of_its_beginnings(world):
    path, _, file = world
    before = path.read_text()
    for n in range(1, len(SECRET)):
        path.write_text(before + SECRET[:n])
        file.poll()
        assert names(file) == ["old", "other"]
    path.write_text(before + SECRET)
    file.poll()
    file.poll()
    assert file.current().find(SECRET.encode()) is not None
    assert file.current().find(SECRET[:-1].encode()) is None


def test_a_key_whose_line_changes_at_every_look_is_at_most_one_look_behind(world):
    path, _, file = world
    limits: list[float | None] = []
    for n in range(1, 6):
        path.write_text(hashed("old", "old-key", f"score tokens_per_s={n}") + hashed("other", "other-key"))
        file.poll()
        limits.append(file.current().find(b"old-key").limits.tokens_per_s)
    assert limits == [None, 2, 2, 4, 4]


def test_a_file_that_alternates_keeps_the_keys_that_are_in_every_other_version(world):
    path, told, file = world
    versions = [hashed("old", "old-key"), hashed("other", "other-key")]
    for n in range(6):
        path.write_text(versions[n % 2])
        file.poll()
    assert set(names(file)) == {"old", "other"}
    assert told == []


def test_what_cannot_be_read_in_between_neither_keeps_nor_ends_a_key(world):
    path, _, file = world
    gone = hashed("other", "other-key")
    for n in range(4):
        if n % 2:
            path.unlink()
            path.mkdir()
        else:
            path.write_text(gone)
        file.poll()
        if n % 2:
            path.rmdir()
    assert names(file) == ["other"]


def test_an_error_that_is_another_one_at_every_look_is_told(world):
    path, told, file = world
    for n in range(3):
        path.write_text(hashed("old", "old-key") + hashed("other", "other-key") + "no key\n" * (n + 1))
        file.poll()
    assert [why for _, why in told] == [f"line 3: {FORM}; invalid lines are ignored ({n} of them)" for n in (2, 3)]


def test_that_a_file_is_right_again_is_told(world):
    path, told, file = world
    right = path.read_text()
    for text in (right + "no key", right):
        path.write_text(text)
        file.poll()
        file.poll()
    assert told == [
        (["old", "other"], f"line 3: {FORM}; invalid lines are ignored (1 of them)"),
        (["old", "other"], None),
    ]


def test_a_line_that_is_no_key_takes_no_other_with_it_and_is_named_and_not_quoted(world):
    path, told, file = world
    path.write_text("\nppo sha256:xyzzy score\n" + hashed("other", "other-key") + "xyzzy xyzzy\n")
    for _ in range(3):
        file.poll()
    assert names(file) == ["other"]
    assert told == [(["other"], f"line 2: {DIGEST}; invalid lines are ignored (2 of them)")]


def test_a_run_stays_bound_while_the_line_that_says_so_cannot_be_read(tmp_path):
    path = tmp_path / "keys"
    path.write_text(hashed("bound", "bound-key", "score runs=only,sweep-*") + hashed("other", "other-key"))
    file = ApiKeysFile(path, read_api_keys(path), Told())
    path.write_text(
        hashed("bound", "bound-key", "scores runs=only,sweep-*")
        + hashed("other", "other-key")
        + hashed("third", "third-key", "score runs=late,last-*")
    )
    file.poll()
    file.poll()
    ring = file.current()
    other = ring.permissions(ring.find(b"other-key"))
    assert [run for run in ("only", "sweep-1", "late", "last-1", "free") if other.may_send(run)] == ["free"]


def test_a_run_is_free_when_the_line_that_bound_it_is_gone(tmp_path):
    path = tmp_path / "keys"
    path.write_text(hashed("bound", "bound-key", "score runs=only,sweep-*") + hashed("other", "other-key"))
    file = ApiKeysFile(path, read_api_keys(path), Told())
    path.write_text(hashed("other", "other-key"))
    file.poll()
    assert not file.current().permissions(file.current().find(b"other-key")).may_send("only")
    file.poll()
    assert file.current().permissions(file.current().find(b"other-key")).may_send("only")
    assert file.current().reserved == RunPatterns()


def test_a_server_does_not_start_without_its_file(tmp_path):
    for path in (tmp_path / "gone", tmp_path / "gone" / "keys"):
        with pytest.raises(ApiKeysError) as refused:
            read_api_keys(path)
        assert str(refused.value) == "the file does not exist"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: (os.remove(p), os.mkfifo(p)), "no regular file"),
        (lambda p: (os.remove(p), p.mkdir()), "no regular file"),
        (lambda p: (os.remove(p), os.symlink("/dev/zero", p)), "no regular file"),
        (lambda p: (os.remove(p), os.symlink(p.name, p)), "Too many levels of symbolic links"),
        (lambda p: p.write_bytes(b"a\xff"), "it is not UTF-8 (at byte 1); save it as UTF-8"),
        (lambda p: p.write_bytes(b"\xff\xfea"), "it is not UTF-16 (at byte 2); save it as UTF-8"),
        (lambda p: p.write_bytes(b"# " + b"x" * 5_000_000), "more than 4194304 bytes"),
    ],
)
@pytest.mark.timeout(30)
def test_a_file_that_cannot_be_read_hangs_nothing_and_keeps_the_keys(world, spoil, reason):
    path, told, file = world
    spoil(path)
    for _ in range(3):
        file.poll()
    assert told == [(["old", "other"], f"the file cannot be read: {reason}; the previous keys stay valid")]
    assert names(file) == ["old", "other"]
    with pytest.raises(ApiKeysError) as refused:
        read_api_keys(path)
    assert str(refused.value) == f"the file cannot be read: {reason}"


def test_a_file_is_not_read_again_while_it_stays_as_it_is(world, monkeypatch):
    path, _, file = world
    path.write_text(hashed("old", "new-key"))
    file.poll()
    file.poll()
    monkeypatch.setattr("rewardserve.service.auth.api_keys.read_bounded", None)
    file.poll()
    assert file.current().find(b"new-key") is not None


def test_the_file_is_looked_at_twice_a_second(world):
    _, _, file = world
    assert (file.name, file.interval_s) == ("keys", 0.5)


def test_a_file_that_another_takes_the_place_of_is_read_again(world):
    path, _, file = world
    file.poll()
    beside = path.with_name("beside")
    beside.write_text(hashed("old", "new-key") + hashed("other", "other-key"))
    os.utime(beside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(beside, path)
    file.poll()
    file.poll()
    assert file.current().find(b"new-key") is not None


def test_without_a_setting_no_key_is_needed():
    assert not ApiKeys().is_required


# -- rewardserve keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_printed_once_and_only_its_digest_is_kept(tmp_path, capsys):
    path = tmp_path / "keys"
    assert keys.main(["ppo", str(path)]) == 0
    assert keys.main(["ops", str(path), "--scopes=score,admin", "--requests-per-s=2", "--tokens-per-s=1000"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first != second
    assert len(first) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text()
    ring = read_api_keys(path)
    assert ring.find(first.encode()).scopes == {"score"}
    assert ring.find(second.encode()).scopes == {"score", "admin"}
    assert ring.find(second.encode()).limits == RateLimits(2, 1000)
    assert keys.main(["sweep", str(path), "--runs=ppo-7,sweep-*", "--owner=team-a"]) == 0
    caller = read_api_keys(path).permissions(read_api_keys(path).find(capsys.readouterr().out.strip().encode()))
    assert (caller.owner, caller.may_send("sweep-1"), caller.may_send("other")) == ("team-a", True, False)


SPACE = "has a space or a line break: fields of a line are separated by spaces"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo"], "{file}: the file has a key with the name ppo: choose another name, or delete its line first"),
        (["ops", "--scopes=root"], f"--scopes=root: {SCOPE}"),
        (["ops", "--scopes=scoer,admin"], f"--scopes=scoer,admin: {SCOPE}; did you mean score?"),
        (["two words"], f"the name {SPACE}"),
        (["ops", "--owner=team a"], f"the owner {SPACE}"),
        (["ops", "--runs=a, b"], f"the name of a run {SPACE}"),
        (["#ops"], "the name is empty, or begins with #, as comments do"),
        (["x" * 65], NAME),
        (["x", "--scopes="], f"--scopes=: {SCOPE}"),
    ],
)
def test_nothing_is_added_that_would_break_the_file(tmp_path, capsys, arguments, message):
    path = tmp_path / "keys"
    path.write_text(hashed("ppo", SECRET).rstrip())
    before = path.read_text()
    assert keys.main([arguments[0], str(path), *arguments[1:]]) == 2
    assert path.read_text() == before
    output = capsys.readouterr()
    assert output.out == "", "no key is shown that was not kept"
    assert output.err == f"rewardserve keys: {message.format(file=path)}\n"


@pytest.mark.parametrize(
    "arguments",
    [["ops", "--scopes=root"], ["two words"], ["x", "--scopes="], ["x", "--runs=,"]],
)
def test_a_key_that_is_refused_leaves_no_file(tmp_path, arguments):
    assert keys.main([arguments[0], str(tmp_path / "keys"), *arguments[1:]]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--requests-per-s", "--tokens-per-s", "--burst-s"])
@pytest.mark.parametrize("number", ["-3", "0", "x", "nan", "inf", ""])
def test_a_limit_that_is_no_number_above_zero_is_refused_by_its_flag(tmp_path, capsys, flag, number):
    with pytest.raises(SystemExit) as end:
        keys.main(["x", str(tmp_path / "keys"), f"{flag}={number}"])
    assert end.value.code == 2
    first = f"rewardserve keys: {flag}: must be a number above zero, not {number!r}"
    assert capsys.readouterr().err.splitlines() == [first, "See rewardserve keys --help."]
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_last_newline_is_gone_on_with_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "keys"
    path.write_text(hashed("ppo", SECRET).rstrip())
    assert keys.main(["ops", str(path)]) == 0
    assert [key.name for key in read_api_keys(path).keys] == ["ppo", "ops"]
