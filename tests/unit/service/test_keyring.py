"""Files of keys: what is read, what is refused without quoting it, what a change does, and what `reward-keys` writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import keys
from service.keyring import SCOPES, KeyFile, KeyRing, KeysError, line_of, parse, read
from service.quota import UNLIMITED, Limits

SECRET = "rwd_a-key-that-nobody-guesses"


def hashed(name: str, key: str, rest: str = "score") -> str:
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()} {rest}\n"


def test_a_line_is_a_name_a_digest_scopes_and_limits():
    ring = parse("# team a\n\n" + hashed("ppo", SECRET, "score,metrics  requests_per_s=5 tokens_per_s=2e4 burst_s=3"))
    key = ring.find(SECRET.encode())
    assert key is not None
    assert (key.name, key.scopes, key.limits) == ("ppo", {"score", "metrics"}, Limits(5, 20_000, 3))
    assert ring.find(b"another") is None
    assert ring.find(b"") is None
    assert ring.find(hashlib.sha256(SECRET.encode()).hexdigest().encode()) is None, "a digest is no key"
    assert list(ring.warnings()) == []


def test_a_line_of_one_word_is_a_key_as_such_with_a_warning():
    ring = parse(f"{SECRET}\nshort\n")
    key = ring.find(SECRET.encode())
    assert key.scopes == {"score", "metrics"}
    assert key.limits == UNLIMITED
    plain, short = ring.warnings()
    assert "not hashed" in plain
    assert "line-2" in short
    assert SECRET not in plain + short


@pytest.mark.parametrize(
    "text",
    [
        "", "# nothing\n", "ppo xyzzy score", "ppo sha256:xyzzy score", "ppo sha256:" + "0" * 62 + " score", "sha256:" + "0" * 64,
        hashed("ppo", "xyzzy", "score,root"), hashed("ppo", "xyzzy", ""), hashed("ppo", "xyzzy", "score, admin"),
        hashed("ppo", "xyzzy", "score tokens_per_s=0"), hashed("ppo", "xyzzy", "score tokens_per_s=nan"),
        hashed("ppo", "xyzzy", "score tokens_per_s=inf"), hashed("ppo", "xyzzy", "score tokens=3"),
        hashed("ppo", "xyzzy", "score tokens_per_s=xyzzy"), hashed("ppo", "xyzzy") + hashed("ppo", "other"),
        hashed("ppo", "xyzzy") + hashed("ppo2", "xyzzy"), hashed("ppo", "xyzzy") + "xyzzy", hashed("ppo", ""),
        hashed("p" * 65, "x"), hashed("ppo", "xyzzy", "score runs="), hashed("ppo", "xyzzy", "score runs=*"),
        hashed("ppo", "xyzzy", "score runs=a*b"), hashed("ppo", "xyzzy", "score runs=a,"),
        hashed("ppo", "xyzzy", "score runs=a runs=b"),
        hashed("ppo", "xyzzy", "score owner="), hashed("ppo", "xyzzy", "score owner=" + "o" * 65),
        hashed("ppo", "xyzzy", "score runs=" + ",".join(map(str, range(65)))),
    ],
)  # fmt: skip
def test_what_is_no_file_of_keys_is_refused_and_not_quoted(text):
    with pytest.raises(KeysError) as refused:
        parse(text)
    assert "xyzzy" not in str(refused.value)


@given(
    st.frozensets(st.sampled_from(SCOPES), min_size=1),
    st.builds(Limits, st.none() | st.sampled_from([1.0, 0.5, 300.0]), st.none() | st.just(1e5), st.sampled_from([10.0, 1.0])),
)  # fmt: skip
def test_what_is_written_is_read(scopes, limits):
    (key,) = parse(line_of("a-name", SECRET, scopes, limits)).keys
    assert (key.name, key.scopes, key.limits) == ("a-name", scopes, limits)
    assert parse(line_of("a-name", SECRET, scopes, limits)).find(SECRET.encode()) == key


def test_a_key_may_be_bound_to_runs_and_these_runs_to_it():
    ring = parse(
        hashed("a", "a-key", "score runs=ppo-7,sweep-*")
        + hashed("b", "b-key", "score")
        + hashed("c", "c-key", "score runs=dpo-1")
    )
    a, b, c = (ring.caller(ring.find(f"{each}-key".encode())) for each in "abc")
    runs = ("ppo-7", "ppo-70", "sweep-", "sweep-1", "dpo-1", "new")
    assert [a.may_send(run) for run in runs] == [True, False, True, True, False, False]
    assert [b.may_send(run) for run in runs] == [False, True, False, False, False, True]
    assert [c.may_send(run) for run in runs] == [False, False, False, False, True, False]
    assert (a.runs.sole, b.runs.sole, c.runs.sole) == (None, None, "dpo-1")


def test_keys_of_one_owner_share_their_runs():
    ring = parse(
        hashed("old", "old-key", "score owner=team-a")
        + hashed("new", "new-key", "score owner=team-a")
        + hashed("b", "b-key")
    )
    owners = [ring.caller(ring.find(key)).owner for key in (b"old-key", b"new-key", b"b-key")]
    assert owners == ["team-a", "team-a", "b"]


# -- a file that changes ----------------------------------------------------------------------------------------------


class Told(list):
    def __call__(self, names, why):
        self.append((list(names), why))


@pytest.fixture
def world(tmp_path):
    path, told = tmp_path / "keys", Told()
    path.write_text(hashed("old", "old-key") + hashed("other", "other-key"))
    return path, told, KeyFile(path, read(path), told)


def names(file):
    return [key.name for key in file.ring().keys]


def test_a_file_that_stays_as_it_was_is_no_news(world):
    _, told, file = world
    file.look()
    file.look()
    assert (names(file), told) == (["old", "other"], [])


def test_a_key_that_is_added_is_valid_at_the_next_look_and_one_that_is_gone_is_not_at_the_next_but_one(world):
    path, told, file = world
    path.write_text(hashed("new", "new-key") + hashed("old", "old-key") + hashed("other", "other-key"))
    file.look()
    assert names(file) == ["new", "old", "other"]
    path.write_text(hashed("new", "new-key") + hashed("other", "other-key"))
    file.look()
    assert names(file) == ["new", "old", "other"], "it may be half of a file that is being written"
    file.look()
    assert names(file) == ["new", "other"]
    assert file.ring().find(b"old-key") is None
    assert told == [(["new", "old", "other"], None), (["new", "other"], None)]


@pytest.mark.parametrize("empty", [os.remove, lambda p: p.write_text(""), lambda p: p.write_text("\n# old\n"),
                                   lambda p: p.write_text("nonsense of words"), lambda p: shutil.rmtree(p.parent)])  # fmt: skip
def test_a_file_without_keys_or_no_file_means_that_no_key_is_valid(world, empty):
    path, told, file = world
    empty(path)
    for _ in range(3):
        file.look()
    assert file.ring().is_required, "without keys is not without protection"
    assert file.ring().find(b"old-key") is None
    ((valid, why),) = told
    assert valid == []
    assert "no key" in why
    path.parent.mkdir(exist_ok=True)
    path.write_text(hashed("new", "new-key"))
    file.look()
    assert names(file) == ["new"]


def test_a_line_that_is_no_key_takes_no_other_with_it_and_is_named_and_not_quoted(world):
    path, told, file = world
    path.write_text("ppo sha256:xyzzy score\n" + hashed("other", "other-key"))
    for _ in range(3):
        file.look()
    assert names(file) == ["other"]
    ((valid, why),) = told
    assert valid == ["other"]
    assert "line 1" in why
    assert "xyzzy" not in why


def test_a_run_stays_bound_while_the_line_that_says_so_cannot_be_read(tmp_path):
    path = tmp_path / "keys"
    path.write_text(hashed("bound", "bound-key", "score runs=only") + hashed("other", "other-key"))
    file = KeyFile(path, read(path), Told())
    path.write_text(hashed("bound", "bound-key", "scores runs=only") + hashed("other", "other-key"))
    file.look()
    file.look()
    ring = file.ring()
    assert not ring.caller(ring.find(b"other-key")).may_send("only")


@pytest.mark.parametrize("spoil", [
    lambda p: (os.remove(p), os.mkfifo(p)), lambda p: (os.remove(p), p.mkdir()), lambda p: p.write_bytes(b"\xff\xfe"),
    lambda p: (os.remove(p), os.symlink("/dev/zero", p)), lambda p: p.write_bytes(b"# " + b"x" * 5_000_000),
    lambda p: (os.remove(p), os.symlink(p.name, p)),
])  # fmt: skip
@pytest.mark.timeout(30)
def test_a_file_that_cannot_be_read_hangs_nothing_and_keeps_the_keys(world, spoil):
    path, told, file = world
    spoil(path)
    for _ in range(3):
        file.look()
    assert names(file) == ["old", "other"]
    ((valid, why),) = told
    assert valid == ["old", "other"]
    assert "cannot be read" in why
    with pytest.raises(KeysError, match="cannot be read"):
        read(path)


def test_a_file_that_another_takes_the_place_of_is_read_again(world):
    path, _, file = world
    file.look()
    beside = path.with_name("beside")
    beside.write_text(hashed("old", "new-key") + hashed("other", "other-key"))
    os.utime(beside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(beside, path)
    file.look()
    file.look()
    assert file.ring().find(b"new-key") is not None


def test_without_a_setting_no_key_is_needed():
    assert not KeyRing().is_required


# -- reward-keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_printed_once_and_only_its_digest_is_kept(tmp_path, capsys):
    path = tmp_path / "keys"
    assert keys.main(["ppo", str(path)]) == 0
    assert keys.main(["ops", str(path), "--scopes=score,admin", "--requests-per-s=2", "--tokens-per-s=1000"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first != second
    assert len(first) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text()
    ring = read(path)
    assert ring.find(first.encode()).scopes == {"score"}
    assert ring.find(second.encode()).scopes == {"score", "admin"}
    assert ring.find(second.encode()).limits == Limits(2, 1000)
    assert keys.main(["sweep", str(path), "--runs=ppo-7,sweep-*", "--owner=team-a"]) == 0
    caller = read(path).caller(read(path).find(capsys.readouterr().out.strip().encode()))
    assert (caller.owner, caller.may_send("sweep-1"), caller.may_send("other")) == ("team-a", True, False)


@pytest.mark.parametrize(
    "arguments", [["ppo"], ["ops", "--scopes=root"], ["two words"], ["x", "--tokens-per-s=-1"], ["x", "--scopes="]]
)
def test_nothing_is_added_that_would_break_the_file(tmp_path, capsys, arguments):
    path = tmp_path / "keys"
    path.write_text(hashed("ppo", SECRET).rstrip())
    before = path.read_text()
    assert keys.main([arguments[0], str(path), *arguments[1:]]) == 2
    assert path.read_text() == before
    said = capsys.readouterr()
    assert said.out == "", "no key is shown that was not kept"
    assert "reward-keys" in said.err


def test_a_file_without_a_last_newline_is_gone_on_with_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "keys"
    path.write_text(hashed("ppo", SECRET).rstrip())
    assert keys.main(["ops", str(path)]) == 0
    assert [key.name for key in read(path).keys] == ["ppo", "ops"]
