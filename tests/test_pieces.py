"""Annotation files that are read by pieces and in blocks: the same as by `json.loads`, whatever their sizes, and in little memory."""
import json
import tracemalloc
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import spoil, tries, values
from vl12in1.corpora import CorpusError, frames
from vl12in1.corpora.frames import blocks, json_items, json_records, read_blocks

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be")


def whole(data):
    "What `json.loads` makes of bytes, as a string to compare; None if it is not JSON."
    try: return repr(json.loads(data))
    except (ValueError, RecursionError): return None


def by_pieces(file, piece, read, *arguments):
    "What a reader yields of a file, so many characters at a time; None if it refuses the file."
    with mock.patch.object(frames, "PIECE", piece):
        try: return repr(list(read(file, *arguments)))
        except CorpusError: return None


@tries(100)
@given(st.lists(values, max_size=4), st.integers(1, 9), st.sampled_from(ENCODINGS), st.sampled_from([None, 0, 2]))
def test_pieces_of_any_size_make_the_same_records(tmp_path_factory, rows, piece, encoding, indent):
    file = tmp_path_factory.getbasetemp() / "rows.json"
    file.write_bytes(json.dumps(rows, indent=indent).encode(encoding))
    assert by_pieces(file, piece, json_records) == whole(file.read_bytes())
    file.write_bytes(json.dumps({"info": {"rows": [0]}, "rows": rows, "more": rows}, indent=indent).encode(encoding))
    assert by_pieces(file, piece, json_records, "rows") == repr(json.loads(file.read_bytes())["rows"])


@tries(100)
@given(st.dictionaries(st.text(max_size=4), values, max_size=4), st.integers(1, 9))
def test_pieces_of_any_size_make_the_same_items(tmp_path_factory, rows, piece):
    file = tmp_path_factory.getbasetemp() / "items.json"
    file.write_text(json.dumps(rows))
    assert by_pieces(file, piece, json_items) == repr(list(json.loads(file.read_bytes()).items()))


@tries(300)
@given(st.data(), st.lists(values, max_size=3), st.integers(1, 9))
def test_pieces_refuse_what_the_whole_refuses(tmp_path_factory, data, rows, piece):
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    damaged = spoil(data.draw, json.dumps(rows, ensure_ascii=data.draw(st.booleans())).encode(errors="surrogatepass"))
    file.write_bytes(damaged)
    expected, found = whole(damaged), by_pieces(file, piece, json_records)
    assert (found is None) == (expected is None)
    if expected and expected.startswith("["): assert found == expected


@pytest.mark.parametrize("text", ["", " ", "[1, 2", "[1 2]", "[1,]", "[1]]", "[1] 2", '{"a" 1}', '{"a": 1,}', "{1: 2}", "nul", '["',
                                  pytest.param("[" * 10 ** 5, id="deep")])
def test_what_is_not_json_is_refused(tmp_path, text):
    file = tmp_path / "broken.json"
    file.write_text(text)
    for read in (json_records, json_items):
        with pytest.raises(CorpusError, match="broken.json: not JSON"): list(read(file))
    with pytest.raises(CorpusError, match="broken.json: not JSON"): list(read_blocks(file, "a"))


@pytest.mark.parametrize("text", ["[]", "{}", "7", '{"rows": 7}', '{"rows": {"a": []}}', '[{"rows": [1]}]'])
def test_a_file_without_records_is_refused(tmp_path, text):
    (tmp_path / "empty.json").write_text(text)
    with pytest.raises(CorpusError, match="field 'rows': expected a list of records, and at least one"):
        list(read_blocks(tmp_path / "empty.json", "rows"))


def test_memory_does_not_grow_with_the_file(tmp_path):
    file = tmp_path / "long.json"
    file.write_text(json.dumps({"rows": [{"id": number, "text": "x" * 200} for number in range(20_000)]}))
    with mock.patch.multiple(frames, PIECE=2 ** 14, BLOCK=2 ** 6, ZEROS=bytes(2 ** 13)):
        tracemalloc.start()
        count = sum(len(block.rows) for block in read_blocks(file, "rows"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == 20_000 and peak < file.stat().st_size / 10


def test_a_value_longer_than_a_piece(tmp_path):
    (tmp_path / "long.json").write_text(json.dumps([{"a": "x" * 1000}, {"a": "y"}]))
    assert by_pieces(tmp_path / "long.json", 10, json_records) == repr([{"a": "x" * 1000}, {"a": "y"}])


@tries(50)
@given(st.integers(1, 30), st.integers(1, 9))
def test_records_are_called_by_their_numbers_in_the_file(count, size):
    with mock.patch.object(frames, "BLOCK", size):
        named = [(block.name(index), row) for block in blocks("f", range(count)) for index, row in enumerate(block.rows)]
    assert named == [(number, number) for number in range(count)]
