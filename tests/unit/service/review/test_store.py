"""The review store, against dictionaries that are kept beside it."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.records import AlertRecord, SampleFilter, SampleRecord, Turn, from_line, to_line
from rewardserve.service.review.store import ReviewStore
from rewardserve.service.review.tables import metadata

MIGRATIONS = Path(__file__).parents[4] / "service" / "review" / "migrations"


def sample(number: int = 0, run: str = "a", **fields: Any) -> SampleRecord:
    defaults: dict[str, Any] = {
        "run": run, "at": 1_000.0 + number, "step": number // 4, "prompt": [Turn("user", f"prompt {number // 2}")],
        "response": f"response {number}", "evidence": f"{number:016x}", "prompt_key": f"{number // 2:016x}", "score": 0.5,
        "reason": "share", "model": "m", "model_version": 1,
    }  # fmt: skip
    return SampleRecord(**{**defaults, **fields})


def alert(run: str = "a", at: float = 1_000.0) -> AlertRecord:
    return AlertRecord(
        run=run, at=at, wire="repetition", severity="page", statistic=0.9, threshold=0.2, model="m", model_version=1
    )


# -- what is added is read ------------------------------------------------------------------------------------------


def test_every_field_comes_back(store):
    given = sample(
        3, prompt=[Turn("system", "sys"), Turn("user", "u")], sample_id="x", task="math", reward=0.25, raw=1.5, audit=-0.5,
        heads={"a": 1.0}, stages={"cap": -0.25}, flags=["flattery", "empty"], n_tokens=7, truncated=True, missing_end=True,
    )  # fmt: skip
    assert store.add([given]) == 1
    (stored,) = store.samples()
    assert stored.sample == given
    assert store.sample(stored.id) == given


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", "\u202ebidi", "\u200b", "'; DROP TABLE samples; --", "%", "😀" * 1000, "", "\\x00"]
)
def test_any_text_comes_back(store, text):
    store.add([sample(response=text, prompt=text)])
    assert store.samples()[0].sample.response == text
    assert store.samples()[0].sample.prompt == text


def test_equal_samples_of_a_step_are_stored_once(store):
    assert store.add([sample(1), sample(1), sample(2)]) == 2
    assert store.add([sample(1), sample(1, step=None), sample(1, run="b")]) == 2
    assert store.add([sample(1, step=None)]) == 0
    assert [(each.run, each.n_samples) for each in sorted(store.runs())] == [("a", 3), ("b", 1)]


def test_samples_are_selected_by_each_field(store):
    records = [
        sample(
            n, run="ab"[n % 2], reason=["share", "flagged", "alert"][n % 3], flags=["flattery"] if n % 5 == 0 else []
        )
        for n in range(40)
    ] + [sample(99, step=None)]
    store.add(records)

    def found(**fields: Any) -> list[str]:
        return [each.sample.response for each in store.samples(SampleFilter(**fields))]

    def wanted(keep) -> list[str]:
        return [each.response for each in reversed(records) if keep(each)]

    assert found() == wanted(lambda r: True)
    assert found(run="b") == wanted(lambda r: r.run == "b")
    assert found(reason="alert", run="a") == wanted(lambda r: r.reason == "alert" and r.run == "a")
    assert found(flag="flattery") == wanted(lambda r: "flattery" in r.flags)
    assert found(flag="flat") == []
    assert found(flag="%") == []
    assert found(prompt_key=records[3].prompt_key) == wanted(lambda r: r.prompt_key == records[3].prompt_key)
    assert found(evidence=records[7].evidence) == [records[7].response]
    assert found(first_step=2, last_step=3) == wanted(lambda r: r.step in (2, 3))
    assert found(last_step=0) == wanted(lambda r: r.step == 0)


def test_pages_have_every_sample_once(store):
    store.add([sample(n) for n in range(25)])
    seen, before = [], None
    while page := store.samples(limit=7, before=before):
        seen += [each.sample.response for each in page]
        before = page[-1].id
    assert seen == [f"response {n}" for n in reversed(range(25))]


def test_export_has_every_sample_in_order_and_reads_back(store):
    store.add([sample(n, flags=["x"]) for n in range(1200)])
    lines = [to_line(each) for each in store.export(SampleFilter(run="a"))]
    assert [from_line(line) for line in lines] == [sample(n, flags=["x"]) for n in range(1200)]
    assert list(store.export(SampleFilter(run="none"))) == []


def test_an_export_that_is_not_one_is_refused():
    with pytest.raises(ValueError, match="missing required field `response`"):
        from_line(b'{"run":"a","at":1.0,"prompt":"p"}')
    with pytest.raises(msgspec.ValidationError, match="score"):
        from_line(to_line(sample()).replace(b"0.5", b'"much"'))


# -- what is deleted is gone ----------------------------------------------------------------------------------------


def test_a_deleted_run_is_gone_and_others_stay(store):
    store.add([sample(n, run="ab"[n % 2]) for n in range(10)], [alert("a"), alert("b")])
    deleted = store.delete_run("a")
    assert deleted is not None
    assert (deleted.n_samples, deleted.n_alerts) == (5, 1)
    assert store.delete_run("a") is None
    assert [(each.run, each.n_samples, each.n_alerts) for each in store.runs()] == [("b", 5, 1)]
    assert store.alerts("a") == []
    assert len(store.alerts("b")) == 1


def test_a_deleted_sample_is_gone(store):
    store.add([sample(n) for n in range(3)])
    gone = store.samples()[1].id
    assert store.delete_sample(gone)
    assert not store.delete_sample(gone)
    assert store.sample(gone) is None
    assert [each.sample.response for each in store.samples()] == ["response 2", "response 0"]
    assert store.runs()[0].n_samples == 2


@pytest.mark.parametrize("delete", ["run", "sample", "age", "size"])
def test_a_deleted_text_is_in_no_file(tmp_path, delete):
    store = ReviewStore.open(tmp_path / "review.db")
    secret = "the launch code is 0000 "
    store.add([sample(n, response=f"{secret}{n} " * 50, prompt=f"{secret}p") for n in range(60)])
    store.add([sample(n, run="b") for n in range(5)])
    for each in store.samples(SampleFilter(run="a"), limit=200) if delete == "sample" else ():
        store.delete_sample(each.id)
    if delete == "run":
        store.delete_run("a")
    elif delete == "age":
        store.expire(2_000.0, 2**40)
    elif delete == "size":
        store.expire(0.0, 0)
    left = [path for path in tmp_path.iterdir() if secret.encode() in path.read_bytes()]
    assert left == []
    assert (tmp_path / "review.db").stat().st_size < 150_000
    store.close()


def test_the_file_is_for_its_owner_only(tmp_path):
    store = ReviewStore.open(tmp_path / "review.db")
    store.add([sample()])
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    store.close()


def test_ids_are_not_used_again(store):
    store.add([sample(1)])
    first = store.samples()[0].id
    store.delete_run("a")
    store.add([sample(2)])
    assert store.samples()[0].id > first


def test_old_samples_expire_by_age_and_size(store):
    store.add([sample(n) for n in range(1_100)], [alert(at=1_000.0), alert(at=5_000.0)])
    assert store.expire(1_600.0, 2**40) == 600
    assert store.samples(limit=1_000)[-1].sample.at == 1_600.0
    assert len(store.alerts("a")) == 1
    sizes = [each.n_bytes for each in store.export()]
    assert store.expire(0.0, sum(sizes[-100:])) == 400
    assert [each.response for each in store.export()] == [f"response {n}" for n in range(1_000, 1_100)]
    assert store.expire(9_999.0, 0) == 100
    assert store.runs() == []


# -- sums -----------------------------------------------------------------------------------------------------------

CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), max_size=8)),
        st.tuples(st.just("alert"), st.sampled_from("abc")),
        st.tuples(st.just("delete run"), st.sampled_from("abc")),
        st.tuples(st.just("delete sample"), st.integers(1, 30)),
        st.tuples(st.just("expire"), st.integers(1_000, 1_030)),
    ),
    max_size=12,
)


@given(changes=CHANGES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_sums_of_runs_are_those_of_their_samples(store, changes):
    for run in "abc":
        store.delete_run(run)
    for kind, value in changes:
        if kind == "add":
            store.add([sample(number, run=run) for number, run in value])
        elif kind == "alert":
            store.add([], [alert(value)])
        elif kind == "delete run":
            store.delete_run(value)
        elif kind == "delete sample":
            store.delete_sample(value)
        else:
            store.expire(float(value), 2**40)
    samples = list(store.export())
    for counts in store.runs():
        own = [each for each in samples if each.run == counts.run]
        assert counts.n_samples == len(own)
        assert counts.n_bytes == sum(each.n_bytes for each in own)
        assert counts.n_alerts == len(store.alerts(counts.run))
    assert {each.run for each in samples} <= {each.run for each in store.runs()}


def test_writers_on_many_threads_lose_nothing(database, store):
    other = ReviewStore.open(database)
    failed: list[Exception] = []

    def write(place: int) -> None:
        try:
            for n in range(20):
                (store, other)[place % 2].add(
                    [sample(1_000 * place + n, run="abc"[n % 3]), sample(n, run="b")], [alert("c")]
                )
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(place,)) for place in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    counts = {each.run: each for each in store.runs()}
    assert sum(each.n_samples for each in counts.values()) == len(list(store.export()))
    assert counts["c"].n_alerts == 80
    other.close()


# -- schema ---------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_of_the_code(store):
    with store._database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_every_migration_goes_up_and_down(database):
    revisions = [each.revision for each in ScriptDirectory(str(MIGRATIONS)).walk_revisions()][::-1]
    store = ReviewStore(database)
    assert store.revision() is None
    for number, revision in enumerate(revisions):
        store.upgrade(revision)
        assert store.revision() == revision
        store.downgrade(revisions[number - 1] if number else "base")
        assert store.revision() == (revisions[number - 1] if number else None)
        store.upgrade(revision)
    store.upgrade()
    store.add([sample()])
    store.close()
    again = ReviewStore.open(database)
    assert len(again.samples()) == 1
    again.close()


def test_a_store_of_a_newer_server_is_refused(tmp_path):
    path = tmp_path / "review.db"
    ReviewStore.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ReviewStoreError, match="9999, which a newer server has written"):
        ReviewStore.open(path)


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        ("mysql://u:secret@h/x", "mysql is not supported"),
        ("oracle+cx://u:secret@h/x", "not supported"),
        ("http://x", "http is not supported"),
        ("://", "neither the path of a file nor a URL"),
    ],
)
def test_another_database_is_refused_by_name(database, reason):
    with pytest.raises(ReviewStoreError, match=reason) as caught:
        ReviewStore(database)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no database " * 100, b"SQLite format 3\0" + bytes(100)])
def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "review.db"
    path.write_bytes(content)
    with pytest.raises(ReviewStoreError, match=r"review\.db: "):
        ReviewStore.open(path)
    assert path.read_bytes() == content


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ReviewStoreError, match="unable to open database file"):
        ReviewStore.open(tmp_path / "missing" / "review.db")
    assert not os.listdir(tmp_path)
