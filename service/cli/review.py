"""`rewardserve review ACTION DATABASE`: export, import and delete captured samples, and migrate the store, without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from rewardserve.arguments import Parser
from rewardserve.exit_codes import FAILED, USAGE_ERROR
from rewardserve.model.text.printable import printable
from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.records import SampleFilter, SampleRecord, from_line, to_line
from rewardserve.service.review.store import ReviewStore, is_missing

PROGRAM = "rewardserve review"
_DESCRIPTION = """Work on a review store, which has the samples that REWARD_CAPTURE chose. export: print them as JSON Lines, the
oldest first. import: read such lines from standard input; equal samples of a run and step are stored once. delete: delete a run
or one sample, also from the files of the store. upgrade: migrate the schema to this version, as a server does at its start;
downgrade: to REVISION, for an older server."""
ACTIONS = ("export", "import", "delete", "upgrade", "downgrade")
_PART = 256


class _BadLine(ValueError):
    """A line that is no sample."""


def main(arguments: Sequence[str]) -> int:
    """Run one action. Return the exit code."""
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=f"one of {', '.join(ACTIONS)}")
    parser.add_argument("database", metavar="DATABASE", help="path of a SQLite file, or URL of a Postgres database")
    parser.add_argument(
        "--run", metavar="LABEL", help="export or delete samples of this run only; default: all runs for export"
    )
    parser.add_argument("--sample", type=int, metavar="ID", help="delete this sample only; default: none")
    parser.add_argument(
        "--revision",
        metavar="REVISION",
        help="revision of the schema to downgrade to; base: no tables; default: none",
    )
    given = parser.parse_args(arguments)
    if given.action == "delete" and (given.run is None) == (given.sample is None):
        parser.error("delete needs one of --run and --sample")
    if given.action == "downgrade" and given.revision is None:
        parser.error("downgrade needs --revision; base deletes everything")
    for name, actions in (("run", ("export", "delete")), ("sample", ("delete",)), ("revision", ("downgrade",))):
        if getattr(given, name) is not None and given.action not in actions:
            parser.error(f"--{name} has no effect on {given.action}: leave it out")
    if given.action not in ("import", "upgrade") and is_missing(given.database):
        parser.error(f"{given.database}: no such file")
    try:
        store = ReviewStore(given.database)
    except ReviewStoreError as error:
        print(printable(f"{PROGRAM}: {error}"), file=sys.stderr)
        return USAGE_ERROR
    try:
        return _run(store, given.action, given.run, given.sample, given.revision)
    except _BadLine as error:
        print(printable(f"{PROGRAM}: {error}"), file=sys.stderr)
        return USAGE_ERROR
    except ReviewStoreError as error:
        print(printable(f"{PROGRAM}: {error}"), file=sys.stderr)
        return FAILED
    finally:
        store.close()


def _run(store: ReviewStore, action: str, run: str | None, sample: int | None, revision: str | None) -> int:
    if action == "downgrade":
        store.downgrade(str(revision))
        print(f"{store.name}: revision {store.revision() or 'base'}")
        return 0
    store.upgrade()
    if action == "upgrade":
        print(f"{store.name}: revision {store.revision()}")
    elif action == "export":
        for record in store.export(SampleFilter(run=run)):
            sys.stdout.buffer.write(to_line(record) + b"\n")
        sys.stdout.buffer.flush()
    elif action == "import":
        n, n_new, lines = 0, 0, _lines()
        while part := list(islice(lines, _PART)):
            n, n_new = n + len(part), n_new + store.add(part)
        print(f"{store.name}: {n_new} samples, and {n - n_new} that it had")
    else:
        return _delete(store, run, sample)
    return 0


def _delete(store: ReviewStore, run: str | None, sample: int | None) -> int:
    if sample is not None:
        n = int(store.delete_sample(sample))
    else:
        counts = store.delete_run(str(run))
        n = counts.n_samples if counts is not None else 0
        if counts is not None and not n:
            print(f"{store.name}: deleted {counts.n_alerts} alerts")
            return 0
    if not n:
        print(f"{PROGRAM}: {store.name} has no such {'run' if sample is None else 'sample'}", file=sys.stderr)
        return USAGE_ERROR
    print(f"{store.name}: deleted {n} sample{'s' * (n != 1)}")
    return 0


def _lines() -> Iterator[SampleRecord]:
    """The samples of standard input."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            yield from_line(line)
        except ValueError as error:
            raise _BadLine(f"line {number} is no sample of an export: {error}") from None
