"The description of a folder of corpora: right about its files and records, and valid, as mlcroissant says."
import hashlib
import json

import mlcroissant
import pytest

from vl12in1 import corpora
from vl12in1.study import croissant as chapter
from vl12in1.study.croissant import croissant, main
from vl12in1.world import WorldConfig, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WorldConfig(scale=.02))
    return folder


@pytest.fixture(scope="module")
def described(world): return croissant(world)


def test_every_file_is_there_with_its_digest(world, described):
    files = [part for part in described["distribution"] if part["@type"] == "cr:FileObject"]
    for part in files:
        contents = (world / part["contentUrl"]).read_bytes()
        assert part["sha256"] == hashlib.sha256(contents).hexdigest() and part["contentSize"] == f"{len(contents)} B"
    assert len(files) == len({part["@id"] for part in files}) >= 30


def test_records_name_files_that_are_described(described):
    files = {part["@id"] for part in described["distribution"]}
    sources = [field["source"]["fileObject"]["@id"] for records in described["recordSet"] for field in records["field"]]
    assert sources and set(sources) <= files


def test_what_is_synthetic_says_so(described):
    assert "miniature world (synthetic" in described["description"] and described["license"] == ["Apache-2.0"]


def test_the_command_prints_a_description(world, described, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["croissant", str(world)])
    main()
    assert json.loads(capsys.readouterr().out) == described


@pytest.mark.parametrize("arguments, complaint", [([], "usage: "), (["a", "b"], "usage: "), (["."], "no complete corpus in this folder")])
def test_what_cannot_be_described_is_one_line(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["croissant", *arguments])
    with pytest.raises(SystemExit, match=complaint): main()


def test_it_is_the_context_that_mlcroissant_writes():
    version = mlcroissant.Context(conforms_to="http://mlcommons.org/croissant/1.0")
    context = mlcroissant.Metadata(name="a", ctx=version).to_json()["@context"]
    assert {name: value for name, value in chapter.CONTEXT.items() if context.get(name) != value} == {}


def test_mlcroissant_finds_no_fault_and_reads_the_records(world, described, tmp_path):
    (world / "croissant.json").write_text(json.dumps(described))
    dataset = mlcroissant.Dataset(world / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    (world / "croissant.json").unlink()
    statements = corpora.load(world, only=["nlvr2"])["nlvr2"]["train"]
    read = [record["nlvr2/sentence"].decode() for record in dataset.records("nlvr2")]
    assert read == statements.text.tolist()
