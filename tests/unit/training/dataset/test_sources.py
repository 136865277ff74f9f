"""Files of every kind that is read, and files that are cut, false or of another kind: refused in one line, never raised through."""

from __future__ import annotations

import gzip
import itertools
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewardserve.training import cli
from rewardserve.training.dataset import data, hub, sources
from rewardserve.training.dataset.data import DataError
from rewardserve.training.settings.data_config import DataConfig, SourceConfig
from rewardserve.training.settings.validation import ConfigError
from tests.support.planted_pairs import planted_rows, write_jsonl

ROWS = [
    {"prompt": f"Question {i},\nwith \"quotes\"", "chosen": f"yes\t{i}, kindly", "rejected": f"no {i}", "margin": 0.5 + i}
    for i in range(4)
]  # fmt: skip


def table(delimiter):
    quoted = lambda cell: '"' + str(cell).replace('"', '""') + '"'  # noqa: E731
    lines = [delimiter.join(ROWS[0])] + [delimiter.join(map(quoted, row.values())) for row in ROWS]
    return "\r\n".join(lines) + "\r\n"


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
SAME = {
    "d.jsonl": LINES.encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "blank.jsonl": ("\n" + LINES + "\n\n").encode(),
    "d.ndjson.gz": gzip.compress(LINES.encode()),
    "D.JSONL": LINES.encode(),
    "d.json": json.dumps(ROWS, indent=2).encode(),
    "mark.json": b"\xef\xbb\xbf\n " + json.dumps(ROWS).encode(),
    "d.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "lines.json": LINES.encode(),
    "d.csv": table(",").encode(),
    "mark.csv": b"\xef\xbb\xbf" + table(",").encode(),
    "d.csv.gz": gzip.compress(table(",").encode()),
    "d.tsv": table("\t").encode(),
    "semicolon.csv": table(";").encode(),
    "tab.csv.gz": gzip.compress(table("\t").encode()),
    "comma.tsv": table(",").encode(),
    "no_break.csv": table(",").removesuffix("\r\n").encode(),
    "no_break.jsonl": LINES.removesuffix("\n").encode(),
}


@pytest.mark.parametrize("name", SAME)
def test_every_kind_of_file_holds_the_same_pairs(name, tmp_path):
    (tmp_path / name).write_bytes(SAME[name])
    found = data.read_source(SourceConfig(str(tmp_path / name)), head="score")
    expected = data.read_source(SourceConfig(str(write_jsonl(tmp_path / "plain.jsonl", ROWS))), head="score")
    assert not found.bad
    assert data.digest(found.pairs) == data.digest(expected.pairs)


def parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(planted_rows(200)), tmp_path / "whole.parquet")
    return (tmp_path / "whole.parquet").read_bytes()


PACKED = gzip.compress(LINES.encode() * 5000)
BROKEN = {
    "cut.jsonl.gz": (PACKED[: len(PACKED) // 2], "is truncated or damaged"),
    "damaged.jsonl.gz": (PACKED[:200] + bytes(60) + PACKED[260:], "is truncated or damaged"),
    "head.jsonl.gz": (PACKED[:3], "is truncated or damaged"),
    "false.jsonl.gz": (LINES.encode(), "is not gzipped"),
    "hidden.jsonl": (PACKED, "add .gz to its name"),
    "wide.jsonl": (LINES.encode("utf-16"), "is UTF-16"),
    "wide.csv": (table(",").encode("utf-16"), "is UTF-16"),
    "latin.csv": ("prompt,chosen,rejected\na,caf\u00e9,b\n".encode("latin-1"), "line 2: not UTF-8"),
    "quote.tsv": (b'prompt\tchosen\trejected\na\t"Hello" he said\tb\n', "not a well-formed table"),
    "twice.csv": (b"prompt,chosen,chosen\na,b,c\n", "column 'chosen' twice"),
    "object.json": (b'"text"', "it holds a str"),
    "cut.json": (json.dumps(ROWS).encode()[:-9], "neither a JSON array of objects"),
    "empty.jsonl": (b"", "has no rows"),
    "blank.jsonl": (b"\n\n", "has no rows"),
    "empty.json": (b"[]", "has no rows"),
    "empty.csv": (b"", "has no rows"),
    "header.csv": (b"prompt,chosen,rejected\n", "has no rows"),
    "empty.jsonl.gz": (b"", "has no rows"),
    "d.jsonl.zst": (b"\x28\xb5\x2f\xfd", "decompress it first"),
    "d.jsonl.bz2": (b"BZ", "decompress it first"),
    "d.txt.gz": (PACKED, "decompress it first"),
    "d.txt": (LINES.encode(), "has an unsupported file type"),
    "d": (LINES.encode(), "has an unsupported file type"),
    "empty.parquet": (b"", "not a complete Parquet file"),
    "false.parquet": (LINES.encode(), "is no Parquet file but JSON"),
    "table.parquet": (table(",").encode(), "is no Parquet file but a table"),
    "packed.parquet": (PACKED, "is no Parquet file but gzipped"),
    "parquet.jsonl": (b"PAR1\x15\x04\xe9\xff", "is a Parquet file, not what its name says: name it .parquet"),
    "parquet.csv": (b"PAR1\x15\x04\xe9\xff", "is a Parquet file"),
    "sheet.csv": (b"PK\x03\x04\x14\x00", "a spreadsheet"),
    "table.jsonl": (table(",").encode(), "the header of a table in its first line"),
    "table.json": (table(";").encode(), "the header of a table in its first line"),
    "table.jsonl.gz": (gzip.compress(table("\t").encode()), "the header of a table in its first line"),
    "lines.csv": (LINES.encode(), "has JSON in its first line"),
    "array.tsv": (json.dumps(ROWS).encode(), "has JSON in its first line"),
    "cut.jsonl": (LINES.encode()[:-30], "after line 3: it ends within the next row"),
    "cut_in_name.jsonl": (LINES.encode() + b'{"pro', "after line 4: it ends within the next row"),
    "cut.ndjson.gz": (gzip.compress(LINES.encode()[:-30]), "after line 3: it ends within the next row"),
    "cut.csv": (b"prompt,chosen,rejected\na,b,c\nd,e", "after line 2: it ends within the next row (has 2 cells"),
    "open.csv": (b'prompt,chosen,rejected\na,b,c\nd,"e', "not a well-formed table"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(name, tmp_path):
    content, says = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError)) as caught:
        data.load(DataConfig((SourceConfig(str(tmp_path / name)),)), "score")
    assert says in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [4, 300, -12, -1])
def test_a_cut_parquet_file_is_refused(at, tmp_path):
    (tmp_path / "cut.parquet").write_bytes(parquet(tmp_path)[:at])
    with pytest.raises(ConfigError, match="not a complete Parquet file"):
        data.load(DataConfig((SourceConfig(str(tmp_path / "cut.parquet")),)), "score")


BAD_LINES = {
    "not JSON": b"{no json",
    "not UTF-8: byte 0xe9": '{"prompt": "caf\u00e9"}'.encode("latin-1"),
    "nested too deeply": b"[" * 100_000,
    "occurs twice": b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}',
    "a row must be an object": b"[1]",
    "margin is a number": json.dumps({**ROWS[0], "margin": 0}).encode().replace(b'"margin": 0', b'"margin": 1' + b"0" * 400),
    "not JSON: it has a number of 5001 digits; the limit is 4300": (
        json.dumps({**ROWS[0], "margin": 0}).encode().replace(b'"margin": 0', b'"margin": 1' + b"0" * 5000)
    ),
    "is 'inf'": json.dumps({**ROWS[0], "margin": float("inf")}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("says", BAD_LINES)
def test_a_bad_line_is_named_by_its_number(says, tmp_path):
    (tmp_path / "d.jsonl").write_bytes(LINES.encode() + BAD_LINES[says] + b"\n")
    with pytest.raises(DataError) as caught:
        data.load(DataConfig((SourceConfig(str(tmp_path / "d.jsonl")),)), "score")
    assert "d.jsonl:5: " in str(caught.value)
    assert says.replace("margin is a number", "a margin is a number") in str(caught.value)


def test_a_ragged_row_of_a_table_is_a_bad_row(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,chosen,rejected\na,b,c\na,b\n")
    (bad,) = data.read_source(SourceConfig(str(tmp_path / "d.csv")), head="score").bad
    assert (bad.line, bad.message) == (3, "has 2 cells, and the header 3")


def test_folders_are_told_from_files(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    (tmp_path / "nothing").mkdir()
    for path, says in (
        (tmp_path / "d.jsonl", "is a folder"),
        (tmp_path / "nothing", "is an empty folder"),
        ("./a/b/c", "neither a file"),
    ):
        with pytest.raises(ConfigError, match=says):
            list(sources.read(SourceConfig(str(path))))


def test_what_a_data_set_library_raises_is_one_line(tmp_path):
    write_jsonl(tmp_path / "folder" / "train.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"split 'gone'\) cannot be loaded"):
        list(sources.read(SourceConfig(str(tmp_path / "folder"), split="gone"), cache=str(tmp_path / "cache")))


def test_a_source_of_which_most_is_lost_is_refused_with_counts(tmp_path):
    path = str(write_jsonl(tmp_path / "d.jsonl", [*planted_rows(4), *([{"prompt": "p"}] * 5)]))
    with pytest.raises(DataError, match=r"5 of the 9 rows of .* are lost: 5 without a pair[^\n]*\n  \S+:\d+: "):
        data.load(DataConfig((SourceConfig(path),), on_bad_row="skip", eval_fraction=0), "score")
    split = data.load(DataConfig((SourceConfig(path),), on_bad_row="skip", eval_fraction=0, max_dropped=0.6), "score")
    assert len(split.train) == 4


def test_the_hub_is_named_and_left_out_where_it_is_silent(tmp_path, monkeypatch, capsys):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "answers", lambda endpoint, timeout_s: False)
    with pytest.raises(ConfigError, match=r"some/pairs.*hf download NAME --repo-type dataset"):
        list(sources.read(SourceConfig("some/pairs"), cache=str(tmp_path)))
    output = capsys.readouterr().err
    assert "data set some/pairs: from the Hugging Face hub" in output
    assert "does not reply" in output


def in_folder(tmp_path, files):
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(sources.read(SourceConfig(str(tmp_path / "folder")), cache=str(tmp_path / "cache")))
    message = str(caught.value)
    assert message.startswith(f"data source '{tmp_path / 'folder'}' (split 'train') cannot be loaded: ")
    assert "DatasetGenerationError" not in message
    assert "\n" not in message
    return message.partition("cannot be loaded: ")[2]


LIST = json.dumps({**ROWS[0], "prompt": ["a"]}).encode() + b"\n"
OTHER = json.dumps({"question": "q", "chosen": "a", "rejected": "b"}).encode() + b"\n"
FAULTS = {
    "json": ({"train.jsonl": LINES.encode() + b"{no json\n"}, "{}/train.jsonl, line 5: not JSON: "),
    "second": ({"train.jsonl": LINES.encode(), "test.jsonl": b"\n" + LINES.encode() + b"{\n"}, "{}/test.jsonl, line 6: not JSON: "),
    "list": ({"train.jsonl": LINES.encode() + b"[1]\n"}, "{}/train.jsonl, line 5: a row must be an object, got list"),
    "latin": ({"train.jsonl": LINES.encode() + '{"a": "é"}'.encode("latin-1")}, "{}/train.jsonl, line 5: not UTF-8: byte 0xe9"),
    "csv": ({"train.csv": table(",").encode() + b"a,b,c,d,e\r\n"}, "{}/train.csv, line 10: has 5 cells, and the header 4"),
    "gz": ({"train.jsonl.gz": PACKED[: len(PACKED) // 2]}, "data source '{}/train.jsonl.gz' cannot be read"),
    "wide": ({"train.jsonl": LINES.encode("utf-16")}, "data source '{}/train.jsonl' is UTF-16"),
    "parquet": ({"train.parquet": b"PAR1"}, "data source '{}/train.parquet' cannot be read from its beginning: it is not"),
    "kind": ({"a/train.jsonl": LINES.encode(), "b/train.jsonl": LIST * 9},
             "{}/b/train.jsonl, line 1: prompt is a list; {}/a/train.jsonl, line 1 has a text"),
    "columns": ({"a/train.jsonl": LINES.encode(), "b/train.jsonl": OTHER},
                "{}/b/train.jsonl has the columns chosen, question, rejected; {}/a/train.jsonl has chosen, margin, "),
    "empty": ({"train.jsonl": b""}, "its files have no rows"),
    "unknown": ({"x.py": b"1"}, "DataFilesNotFoundError: No (supported) data files found in {}"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_folder_is_told_with_file_row_and_cause(tmp_path, name):
    files, says = FAULTS[name]
    assert in_folder(tmp_path, files).startswith(says.replace("{}", str(tmp_path / "folder")))


def test_of_wrapped_errors_the_first_cause_is_told():
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = OSError(5, "Input/output error", "/data/x")
    assert sources._cause_of(wrapped) == "OSError: [Errno 5] Input/output error: '/data/x'"
    assert sources._cause_of(StopIteration()) == "StopIteration: no reason given"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.jsonl.gz"])
def test_another_encoding_is_named_also_in_compressed_files(tmp_path, name, encoding):
    content = LINES.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ConfigError, match=f"is {encoding.upper()}; convert it to UTF-8"):
        list(sources.read(SourceConfig(str(tmp_path / name))))


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz"])
def test_a_compressed_file_may_have_a_byte_order_mark(tmp_path, name):
    content = LINES.encode() if "jsonl" in name else table(",").encode()
    (tmp_path / name).write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    assert [row.values["prompt"] for row in sources.read(SourceConfig(str(tmp_path / name)))] == [
        r["prompt"] for r in ROWS
    ]


# -- Parquet that holds what Python has no value for ---------------------------------------------------------


def columns_of(rows, **others):
    whole = {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")} | others
    return pa.table(whole)


def raw_texts(*texts):
    """A column of type string with these bytes, which no writer of Parquet checks."""
    plain = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(plain), plain.buffers())


UNREADABLE = {
    "chosen is not UTF-8: byte 0xe9 at 3": {"chosen": raw_texts(b"yes", b"caf\xe9", b"yes", b"yes")},
    "day cannot be read: ": {"day": pa.array([0, 2**62, 0, 0], pa.timestamp("us"))},
}


@pytest.mark.parametrize("says", UNREADABLE)
def test_a_value_of_parquet_that_cannot_be_read_is_told_with_row_and_column(says, tmp_path):
    pq.write_table(columns_of(ROWS, **UNREADABLE[says]), tmp_path / "d.parquet")
    with pytest.raises(DataError) as caught:
        data.load(DataConfig((SourceConfig(str(tmp_path / "d.parquet")),)), "score")
    assert f"d.parquet:2: row: {says}" in str(caught.value)
    assert str(caught.value).startswith("1 of 4 rows")
    found = data.read_source(SourceConfig(str(tmp_path / "d.parquet")), head="score")
    assert [pair.rejected_text for pair in found.pairs] == ["no 0", "no 2", "no 3"], "the others are read"


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    """`to_pylist` keeps the last of them: here the rejected responses would be the chosen ones."""
    names = ["prompt", "chosen", "rejected", "chosen"]
    table = pa.table([[f"q{i}" for i in range(4)], ["a"] * 4, ["b"] * 4, ["c"] * 4], names=names)
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match="has the column 'chosen' twice"):
        list(sources.read(SourceConfig(str(tmp_path / "d.parquet"))))


def test_a_margin_may_be_a_decimal(tmp_path):
    pq.write_table(columns_of(ROWS, margin=pa.array([Decimal("1.25")] * 4)), tmp_path / "d.parquet")
    found = data.read_source(SourceConfig(str(tmp_path / "d.parquet")), head="score")
    assert [pair.margin for pair in found.pairs] == [1.25] * 4


@pytest.mark.parametrize("path", [".", "./", "../data"])
def test_a_folder_may_be_named_from_inside(tmp_path, monkeypatch, path):
    folder = tmp_path / "data"
    write_jsonl(folder / "train.jsonl", planted_rows(3))
    monkeypatch.chdir(folder)
    rows = list(sources.read(SourceConfig(path), cache=str(tmp_path / "cache")))
    assert [row.values["chosen"] for row in rows] == [row["chosen"] for row in planted_rows(3)]


def test_a_folder_of_very_many_files_is_refused_at_once(tmp_path, monkeypatch):
    """A home folder or /tmp: the library would look at each of them for a minute."""
    monkeypatch.setattr(sources, "_MOST_FILES", 20)
    for n in range(21):
        file = tmp_path / f"part{n % 3}" / f"{n}.txt"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the library was asked"))
    with pytest.raises(ConfigError, match=r"more than 20 files.*[Nn]ame the file"):
        list(sources.read(SourceConfig(str(tmp_path))))


PRETTY = json.dumps(planted_rows(2)[0], indent=2)


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl", "pairs.jsonl.gz"])
@pytest.mark.parametrize(
    "text",
    [
        PRETTY,
        "\n" + PRETTY + "\n" + PRETTY + "\n",
        json.dumps({"data": planted_rows(2)}, indent=1),
        PRETTY.replace("{\n  ", "{", 1),
    ],
)
def test_an_object_over_several_lines_is_one_line_with_the_remedy(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(ConfigError) as error:
        data.read_source(SourceConfig(str(path)), head="score")
    said = str(error.value)
    assert "\n" not in said
    assert f"{str(path)!r} has a JSON value over several lines" in said
    assert "jq -c" in said


def test_a_first_line_that_is_cut_off_is_a_bad_row_of_its_own(tmp_path):
    good = json.dumps(planted_rows(1)[0])
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": "a",\n{good}\n')
    found = data.read_source(SourceConfig(str(path)), head="score")
    assert ([bad.line for bad in found.bad], len(found.pairs)) == ([1], 1)


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        *itertools.product(("train", "finish", "evaluate", "calibrate"), ("sources", "eval_sources")),
        ("crossvalidate", "sources"),
    ],
)
def test_a_missing_file_is_reported_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, verb, key):
    def load_a_model(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("rewardserve.training.cli._run", load_a_model)
    data_of = {"sources": [{"path": str(write_jsonl(tmp_path / "train.jsonl", ROWS)), "name": "train"}]}
    data_of[key] = [{"path": str(tmp_path / "missing.jsonl"), "name": "missing"}]
    config = {"model": {"path": "m"}, "data": data_of, "output": {"folder": str(tmp_path / "out")}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(config))
    assert cli.main(verb, ["--config", str(tmp_path / "recipe.yaml")]) == 2
    missing = f"data.{key}.0: data source '{tmp_path / 'missing.jsonl'}' is not a file (looked in {tmp_path})"
    assert capsys.readouterr().err == f"rewardserve {verb}: {missing}\n"


NUMBERS = {
    "attributes": ({"response": "r", "helpfulness": 0.65, "honesty": 2}, {"attributes": ("helpfulness", "honesty")}),
    "attributes of pairs": ({"chosen": "c", "rejected": "r", "honesty": -1}, {"attributes": ("honesty",)}),
    "ratings": ({"response": "r", "rating": 4.5}, {}),
    "ratings by another name": ({"response": "r", "stars": 4}, {"rating_key": "stars"}),
    "score": ({"response": "r", "score": 4}, {}),
    "labels": ({"response": "r", "label": 1}, {}),
    "kto_tag": ({"response": "r", "kto_tag": 0}, {}),
    "ties": ({"chosen": "c", "rejected": "r", "tie": 1}, {}),
    "margin": ({"chosen": "c", "rejected": "r", "margin": 0.5}, {}),
    "confidence": ({"chosen": "c", "rejected": "r", "sure": 0.75}, {"confidence_key": "sure"}),
    "flips": ({"chosen": "c", "rejected": "r", "wrong": 0.25}, {"flip_key": "wrong"}),
    "helpsteer": (
        {"response": "r", "helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1},
        {},
    ),
    "preferences of helpsteer": ({"response_1": "a", "response_2": "b", "preference_strength": -2}, {}),
    "saferlhf": ({"response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}, {}),
    "shp": ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}, {}),
}


@pytest.mark.parametrize("of", NUMBERS)
def test_every_number_of_a_table_is_read_as_that_of_a_json_row(of, tmp_path):
    columns, settings = NUMBERS[of]
    row = columns if "history" in columns else {"prompt": "q", **columns}
    write_jsonl(tmp_path / "d.jsonl", [row])
    (tmp_path / "d.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    expected, found = (
        data.read_source(SourceConfig(str(tmp_path / name), **settings), head="score") for name in ("d.jsonl", "d.csv")
    )
    assert not expected.bad
    assert not found.bad
    assert found.items
    assert data.digest(found.items) == data.digest(expected.items)


def test_a_text_of_digits_stays_text(tmp_path):
    (tmp_path / "d.csv").write_text("score,chosen,rejected\n42,7,8\n")
    (pair,) = data.read_source(SourceConfig(str(tmp_path / "d.csv"), prompt_key="score"), head="score").pairs
    assert (pair.chosen.conversation()[0].content, pair.chosen_text) == ("42", "7")
