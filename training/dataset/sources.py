"""Read the rows of a source, one at a time, with their location.

Reads JSONL, JSON arrays, CSV and TSV (each also gzipped) and Parquet files, and data sets of `datasets`. A file that is
truncated, or does not match its name, is refused with a description. Independent of the contents of a row.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rewardserve.model.text.text_files import UTF8_MARK, JsonDecodeError, parse_json, wide_encoding
from rewardserve.training.dataset import hub
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import ConfigError

_GZIP_MAGIC = b"\x1f\x8b"
_MAGIC = {
    b"PAR1": ("a Parquet file", "name it .parquet"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "export it as CSV, or decompress it"),
    b"ARROW1": ("an Arrow file", "write it as Parquet"),
    b"SQLite format 3": ("a data base of SQLite", "export it as CSV"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it"),
    b"BZh": ("compressed by bzip2", "decompress it"),
    b"\xfd7zXZ": ("compressed by xz", "decompress it"),
    b"\x80\x04": ("a pickle of Python", "write it as JSONL or Parquet"),
}
"""First bytes of files that are no text: what they are, and the remedy."""
_SEPARATORS = (",", ";", "\t")
_START = 65_536
"""Bytes of a file by which its format is recognised."""
_NUMBERS = (
    "score", "kto_tag", "helpfulness", "correctness", "coherence", "complexity", "verbosity", "preference_strength",
    "overall_preference", "better_response_id", "safer_response_id", "labels",
)  # fmt: skip
"""Columns of numbers that no setting names, under other names or in the shape of a public data set."""
_COMPRESSED = (".zst", ".bz2", ".xz", ".zip", ".lz4", ".br", ".7z", ".tar", ".tgz")
_CELL_CHARS = 2**31 - 1
KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv (each also .gz), .parquet"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row: `file` and `line` (from 1) are its location; `values` is None if `error` gives a fault of `field`.

    In an array of JSON or a Parquet file, `line` is the number of the row. `part` tells rows apart that come of one line.
    """

    file: str
    line: int
    values: dict[str, Any] | None
    error: str = ""
    field: str = "row"
    part: str = ""

    @property
    def id(self) -> str:
        """Id of the item that it makes."""
        return f"{self.file}:{self.line}{self.part}"


def read(source: SourceConfig, cache: str | None = None) -> Iterator[SourceRow]:
    """Yield the rows of a source in order. Raise `ConfigError` if the source does not exist or cannot be read."""
    path = Path(source.path)
    reader = find_reader(source)
    if reader is None:
        yield from _datasets(source, cache)
        return
    line = 0
    try:
        for row in reader(path, source):
            line = row.line
            yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(source, line, f"its gzip data is truncated or damaged ({_first_line(error)})") from error
    except csv.Error as error:
        raise _unreadable(source, line, f"it is not a well-formed table: {error}") from error
    except _CutOff as error:
        raise _unreadable(source, line, f"it ends within the next row ({error})") from error
    except OSError as error:
        raise _unreadable(source, line, error.strerror or _first_line(error)) from error


@contextmanager
def named(place: str) -> Iterator[None]:
    """Put the place of a source in the recipe before the message of each `ConfigError`: that of its settings too."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def find_reader(source: SourceConfig) -> Callable[[Path, SourceConfig], Iterator[SourceRow]] | None:
    """Return the reader for the file of a source; None for a folder or a name of the hub, which `datasets` reads.

    Raise `ConfigError` if the file or folder does not exist or is of an unsupported type. Nothing is read or downloaded.
    """
    path = Path(source.path)
    reader = _reader(path)
    if reader is not None:
        _check_is_file(path, source)
        _refuse_split_of_file(source)
    elif path.is_dir():
        _check_folder(path, source)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.path) or source.path.startswith("."):
        raise ConfigError(f"data source {source.path!r} is neither a file nor a folder (looked in {Path.cwd()})")
    return reader


def _reader(path: Path) -> Callable[[Path, SourceConfig], Iterator[SourceRow]] | None:
    """Reader for files of this name; None for a name that `datasets` may know. Raise `ConfigError` for other files."""
    name, kind = path.name.casefold(), _suffix(path)
    if kind == ".parquet" and name.endswith(".parquet"):
        return _parquet
    if kind in _READERS:
        return _READERS[kind]
    if name.endswith((*_COMPRESSED, ".gz")) and not path.is_dir():
        raise ConfigError(
            f"data source {str(path)!r}: this compression is not supported; decompress it first. Supported are {KNOWN}."
        )
    if path.is_file():
        raise ConfigError(f"data source {str(path)!r} has an unsupported file type. Supported are {KNOWN}.")
    return None


def _check_is_file(path: Path, source: SourceConfig) -> None:
    if path.is_dir():
        raise ConfigError(f"data source {source.path!r} is a folder with the name of a file. Name the file in it.")
    if not path.is_file():
        raise ConfigError(f"data source {source.path!r} is not a file (looked in {path.parent.resolve()})")


def _refuse_split_of_file(source: SourceConfig) -> None:
    for name, is_set in (("split", source.split != "train"), ("subset", source.subset is not None)):
        if is_set:
            raise ConfigError(
                f"data source {source.path!r} is a file, of which all rows are read: {name}: {getattr(source, name)} has no "
                "effect. Leave it out, or name the file that holds those rows."
            )


def _unreadable(source: SourceConfig, line: int, why: str) -> ConfigError:
    place = f"after line {line}" if line else "from its beginning"
    return ConfigError(f"data source {source.path!r} cannot be read {place}: {why}. Copy or create it again.")


class _CutOff(Exception):
    """The file ends within a row."""


def _ends_within(data: bytes, error: str) -> bool:
    """Whether a faulty row is the last one, and was cut off: writers end each row with a line break."""
    return bool(error) and not data.endswith((b"\n", b"\r"))


def _open(path: Path) -> IO[bytes]:
    """Open the decompressed bytes. Raise `ConfigError` if name and content disagree, or for another encoding than UTF-8."""
    with path.open("rb") as plain:
        start = plain.read(len(_GZIP_MAGIC))
    named, is_gzip = path.name.casefold().endswith(".gz"), start.startswith(_GZIP_MAGIC)
    if named and start and not is_gzip:
        raise ConfigError(f"data source {str(path)!r} is named .gz and is not gzipped: rename it, or copy it again")
    if is_gzip and not named:
        raise ConfigError(f"data source {str(path)!r} is gzipped: add .gz to its name")
    opener: Any = gzip.open if named else open
    file: IO[bytes] = opener(path, "rb")
    try:
        first = file.read(_START)
        file.seek(0)
        _refuse_other_format(path, first)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_other_format(path: Path, first: bytes) -> None:
    """Raise `ConfigError` for the first bytes of a file of another format or encoding than those of text under this name."""
    encoding = wide_encoding(first[:4])
    if encoding is not None:
        raise ConfigError(
            f"data source {str(path)!r} is {encoding}; convert it to UTF-8 (iconv -f {encoding.lower()} -t utf-8)"
        )
    known = next((found for magic, found in _MAGIC.items() if first.startswith(magic)), None)
    if known is not None:
        raise ConfigError(f"data source {str(path)!r} is {known[0]}, not what its name says: {known[1]}")
    is_table = _suffix(path) in _TABLES
    line = first.removeprefix(UTF8_MARK).lstrip().partition(b"\n")[0].strip()
    if is_table and isinstance(_value_of(line.decode("utf-8", "replace")), dict | list):
        raise ConfigError(
            f"data source {str(path)!r} has JSON in its first line, and no header of a table: name it .jsonl"
        )
    if not is_table and _is_header(line):
        raise ConfigError(
            f"data source {str(path)!r} has the header of a table in its first line, and no JSON: name it .csv or .tsv"
        )


def _suffix(path: Path) -> str:
    """The ending of a name, without .gz."""
    return Path(path.name.casefold().removesuffix(".gz")).suffix


def _is_header(line: bytes) -> bool:
    """Whether a line names two columns or more, as the first one of a table does."""
    names = next((line.split(mark.encode()) for mark in _SEPARATORS if mark.encode() in line), [])
    return len(names) > 1 and all(re.fullmatch(rb'\s*"?[A-Za-z_][\w .-]{0,63}"?\s*', name) for name in names)


# -- JSON -------------------------------------------------------------------------------------------------


def _jsonl(path: Path, source: SourceConfig) -> Iterator[SourceRow]:
    """Read a row a line. Raise `ConfigError` if the first value spans several lines: each line would be a bad row."""
    _refuse_several_lines(path)
    with _open(path) as lines:
        for line, text in enumerate(lines, start=1):
            data = text.removeprefix(UTF8_MARK) if line == 1 else text
            if data.strip():
                row = _json_row(str(path), line, data)
                if _ends_within(text, row.error) and _is_begun(data):
                    raise _CutOff(row.error)
                yield row


def _is_begun(data: bytes) -> bool:
    """Whether a line begins a JSON object."""
    return data.lstrip().startswith(b"{") and _continues_on_next_line(data.decode("utf-8", "ignore"))


def _refuse_several_lines(path: Path) -> None:
    with _open(path) as lines:
        filled = (text.strip() for text in lines if text.removeprefix(UTF8_MARK).strip())
        first, second = (next(filled, b"").removeprefix(UTF8_MARK).decode("utf-8", "replace") for _ in range(2))
    if _continues_on_next_line(first) and not isinstance(_value_of(second), dict):
        raise ConfigError(
            f"data source {str(path)!r} has a JSON value over several lines, but a row must be an object in one line: "
            "`jq -c . FILE` writes objects so, `jq -c '.[]' FILE` the items of an array."
        )


def _continues_on_next_line(line: str) -> bool:
    """Whether a line begins an object or an array that is well-formed so far, and ends before it does."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        is_open = error.pos >= len(line) or error.msg.startswith("Unterminated string")
        return line[:1] in ("{", "[") and is_open
    except (ValueError, RecursionError):
        pass
    return False


def _value_of(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _json(path: Path, source: SourceConfig) -> Iterator[SourceRow]:
    """Read an array of objects or, under the same name, JSONL."""
    with _open(path) as file:
        start = file.read(4096).removeprefix(UTF8_MARK).lstrip()[:1]
    if start == b"{":
        yield from _jsonl(path, source)
        return
    with _open(path) as file:
        data = file.read().removeprefix(UTF8_MARK)
    if not data.strip():
        return
    values, error = _parsed(data)
    if not isinstance(values, list):
        why = error or f"it holds a {type(values).__name__}"
        raise ConfigError(f"data source {str(path)!r} is neither a JSON array of objects nor JSONL: {why}")
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield SourceRow(str(path), number, value)
        else:
            yield SourceRow(str(path), number, None, f"a row must be an object, got {type(value).__name__}")


def _json_row(file: str, line: int, data: bytes) -> SourceRow:
    values, error = _parsed(data)
    if error:
        return SourceRow(file, line, None, error)
    if not isinstance(values, dict):
        return SourceRow(file, line, None, f"a row must be an object, got {type(values).__name__}")
    return SourceRow(file, line, values)


class _RepeatedKey(ValueError):
    """An object has one key twice, and one of the values would be lost."""


def _parsed(data: bytes) -> tuple[Any, str]:
    """Parse a value; also return the fault, empty if there is none."""
    try:
        return parse_json(data.decode("utf-8"), _object), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: byte {data[error.start]:#04x} at {error.start}; convert the file to UTF-8"
    except _RepeatedKey as error:
        return None, str(error)
    except JsonDecodeError as error:
        return None, f"not JSON: {error}"


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) != len(items):
        keys = [key for key, _ in items]
        raise _RepeatedKey(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return values


# -- tables -----------------------------------------------------------------------------------------------


def _table(path: Path, source: SourceConfig) -> Iterator[SourceRow]:
    """Read the rows of a table with a header; an empty cell has no value. `strict`: a stray quote would swallow later rows."""
    csv.field_size_limit(_CELL_CHARS)
    last = b""

    def lines(file: IO[bytes]) -> Iterator[str]:
        nonlocal last
        for number, line in enumerate(file, start=1):
            last = line
            yield _decoded(path, number, line)

    with _open(path) as file:
        delimiter = _separator(path, _decoded(path, 1, file.readline()))
        file.seek(0)
        reader = csv.reader(lines(file), delimiter=delimiter, strict=True)
        header = next(reader, [])
        _refuse_repeated_columns(path, header)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                error = f"has {len(cells)} cells, and the header {len(header)}"
                if len(cells) < len(header) and _ends_within(last, error):
                    raise _CutOff(error)
                yield SourceRow(str(path), reader.line_num, None, error)
                continue
            values: dict[str, Any] = {k: v if v else None for k, v in zip(header, cells, strict=True)}
            yield SourceRow(str(path), reader.line_num, _with_numbers(values, source))


def _separator(path: Path, header: str) -> str:
    """The separator that goes with the name of a table; where the header has none of it, another one that it has."""
    own = _TABLES[_suffix(path)]
    return next((mark for mark in (own, *_SEPARATORS) if mark in header), own)


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return (line.removeprefix(UTF8_MARK) if number == 1 else line).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data source {str(path)!r}, line {number}: not UTF-8: byte {line[error.start]:#04x}; convert the file to UTF-8"
        ) from None


def _with_numbers(values: dict[str, Any], source: SourceConfig) -> dict[str, Any]:
    """Convert the numbers of a table, where all cells are text."""
    keys = (
        source.margin_key,
        source.rating_key,
        source.confidence_key,
        source.flip_key,
        source.label_key,
        source.tie_key,
    )
    texts = (source.prompt_key, source.chosen_key, source.rejected_key, source.response_key)
    names = {*keys, *source.attributes, *_NUMBERS}.difference(texts)
    return values | {name: _number(values[name]) for name in names if name and values.get(name) is not None}


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _parquet(path: Path, source: SourceConfig) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    line = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _refuse_repeated_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches():
            for values, error in _values_of(batch):
                line += 1
                yield SourceRow(str(path), line, None if error else _without_filling(values), error)
    except pyarrow.ArrowException as error:
        with path.open("rb") as plain:
            start = plain.read(_START).removeprefix(UTF8_MARK).lstrip()
        if not start.startswith(b"PAR1"):
            _refuse_text(path, start)
        raise _unreadable(source, line, f"it is not a complete Parquet file ({_first_line(error)})") from error


def _refuse_text(path: Path, start: bytes) -> None:
    """Raise `ConfigError` for a file of JSON, a table or gzipped data under the name of a Parquet file."""
    kind = "gzipped: decompress it" if start.startswith(_GZIP_MAGIC) else ""
    kind = "JSON: name it .jsonl or .json" if start[:1] in (b"{", b"[") else kind
    kind = "a table: name it .csv or .tsv" if _is_header(start.partition(b"\n")[0].strip()) else kind
    if kind:
        raise ConfigError(f"data source {str(path)!r} is no Parquet file but {kind}")


def _refuse_repeated_columns(path: Path, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"data source {str(path)!r} has the column {twice!r} twice")


def _values_of(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Values of each row of a batch, or the name of its first column with a value that Python cannot represent.

    Writers check neither that a text is UTF-8 nor that a date exists in the calendar.
    """
    try:
        rows = batch.to_pylist()
    except _NO_VALUE:
        pass
    else:
        yield from ((values, "") for values in rows)
        return
    for row in range(batch.num_rows):
        values: dict[str, Any] = {}
        error = ""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values[name] = column[row].as_py()
            except UnicodeDecodeError as bad:
                error = error or f"{name} is not UTF-8: byte {bad.object[bad.start]:#04x} at {bad.start}"
            except _NO_VALUE as bad:
                error = error or f"{name} cannot be read: {_first_line(bad)}"
        yield values, error


def _without_filling(values: dict[str, Any]) -> dict[str, Any]:
    """Values without the nulls with which Arrow fills up the fields that only other objects of a column have."""
    return {name: _dense(value) if isinstance(value, list | dict) else value for name, value in values.items()}


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _dense(each) for name, each in value.items() if each is not None}
    return [_dense(each) for each in value] if isinstance(value, list) else value


_NO_VALUE = (ValueError, OverflowError, ImportError)


_TABLES = {".csv": ",", ".tsv": "\t"}
"""Separators that go with the names of tables."""
_READERS: dict[str, Callable[[Path, SourceConfig], Iterator[SourceRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    **dict.fromkeys(_TABLES, _table),
}
_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside the data that the library `datasets` writes."""

_NAMES = (".parquet", *_READERS, *(f"{suffix}.gz" for suffix in _READERS))


_MOST_FILES = 10_000
"""Limit for a data set folder: a home folder or /tmp has more, and the library takes a minute to list such a folder."""


# -- data sets --------------------------------------------------------------------------------------------


def _datasets(source: SourceConfig, cache: str | None) -> Iterator[SourceRow]:
    import datasets

    path = Path(source.path)
    if not path.is_dir():
        hub.announce("data set", source.path)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(source.path)
            table = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            # The library names a folder by its last part, and `.` has none.
            name = str(path.resolve()) if path.is_dir() else source.path
            table = datasets.load_dataset(name, source.subset, split=source.split, cache_dir=cache)
        for line, values in enumerate(table, start=1):
            yield SourceRow(source.path, line, _without_filling(dict(values)))
    except Exception as error:  # a builder, a download or a file of another format may raise anything
        at_hub = hub.is_offline() and not path.is_dir()
        # A plain ValueError is about the name of a split or a subset, not about a file.
        why = (path.is_dir() and type(error) is not ValueError and _fault_in(path)) or _cause_of(error)
        raise ConfigError(
            f"data source {source.path!r} (split {source.split!r}) cannot be loaded: {why} "
            f"{hub.remedy('data set', '--set data.sources.0.path=PATH') if at_hub else ''}".rstrip()
        ) from error


def _check_folder(path: Path, source: SourceConfig) -> None:
    """Raise `ConfigError` for a folder without files, or with so many that the library would take a minute to list them."""
    n_files = 0
    for _, _, files in os.walk(path):
        n_files += len(files)
        if n_files > _MOST_FILES:
            raise ConfigError(
                f"data source {source.path!r} is a folder of more than {_MOST_FILES:,} files: name the file in it, or a folder "
                "that holds the data alone."
            )
    if not n_files:
        raise ConfigError(f"data source {source.path!r} is an empty folder")


def _cause_of(error: BaseException) -> str:
    """First cause of an error that a library has wrapped in others, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500] or 'no reason given'}"


def _fault_in(folder: Path) -> str | None:
    """Describe the first bad row in a folder's files, as far as their format is supported."""
    named = [path for path in sorted(folder.rglob("*")) if path.name.casefold().endswith(_NAMES)]
    files = [path for path in named if path.is_file() and path.name not in _OF_DATASETS]
    columns: dict[Path, set[str]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    unlike = None
    for file in files:
        try:
            for row in read(SourceConfig(str(file))):
                where = f"{file}, line {row.line}"
                if row.values is None:
                    return f"{where}: {row.error}"
                for name, value in row.values.items():
                    if value is not None:
                        columns.setdefault(file, set()).add(name)
                        kind, before = kinds.setdefault(name, (_kind(value), where))
                        unlike = unlike or (
                            kind != _kind(value) and f"{where}: {name} is {_kind(value)}; {before} has {kind}"
                        )
        except ConfigError as error:
            return str(error)
    if files and not columns:
        return "its files have no rows"
    first = next(iter(columns), None)
    other = next((file for file in columns if columns[file] != columns[first or file]), None)
    if other is not None and first is not None:
        here, there = (", ".join(sorted(columns[file])) for file in (other, first))
        return f"{other} has the columns {here}; {first} has {there}. List the files as separate sources."
    return unlike or None


def _kind(value: Any) -> str:
    """JSON type of a value: `datasets` requires one type a column."""
    kinds = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
