"The protocol says what the code does, the indices name it, and its older versions are kept."
import re
from pathlib import Path

import pytest

from vl12in1.study import protocol
from vl12in1.study.claims import CLAIMS, Claim
from vl12in1.study.protocol import claims_table, digest, generated, identity, lengths_table, renewed, seeds_table, version

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "PROTOCOL.md"
AGAIN = "type `python -m vl12in1.study.protocol`, or put the code right"


def test_the_protocol_says_what_the_code_does():
    text = PAGE.read_text()
    assert renewed(text, generated()) == text, AGAIN
    assert all(claim.sentence in text for claim in CLAIMS)


@pytest.mark.parametrize("claims", [CLAIMS[1:], CLAIMS[::-1], [*CLAIMS, Claim("Another one", "better", "ft", "gt")],
                                    [CLAIMS[0]._replace(direction=-1), *CLAIMS[1:]], [CLAIMS[0]._replace(b="gt"), *CLAIMS[1:]],
                                    [claim._replace(margin=claim.margin and 3) for claim in CLAIMS]])
def test_another_claim_is_another_protocol(claims):
    assert claims_table(claims) != claims_table() and claims_table(claims) not in PAGE.read_text()


def test_other_lengths_and_seeds_are_another_protocol():
    training = dict(common=dict(learning_rate=.1, head_learning_rate=.2), multi=dict(iterations=10),
                    few=dict(iterations=20, learning_rate=.3))
    assert lengths_table(training).splitlines()[2:] == ["| multi | 10 | 0.1 | 0.2 |", "| few | 20 | 0.3 | 0.2 |"]
    seeds = dict(thorough=dict(main=[0, 3], side=[1]), beyond=dict(main=[0], side=[]))
    table = seeds_table(seeds, dict(at=dict(seeds="main"), st=dict(seeds="main"), gt=dict(seeds="side")))
    assert table.splitlines()[2:] == ["| main | 0, 3 | 0 | at, st |", "| side | 1 | – | gt |"]


@pytest.mark.parametrize("text", ["", "<!-- claims -->\n", "<!-- claims -->\n<!-- end of claims -->\n" * 2])
def test_a_table_has_one_place(text):
    with pytest.raises(ValueError, match="places for claims: mark one"): renewed(text, dict(claims="new"))


def test_the_command_writes_the_tables_again_and_nothing_else(tmp_path, monkeypatch):
    text = PAGE.read_text()
    (tmp_path / "PROTOCOL.md").write_text(text.replace(CLAIMS[0].sentence, "Something else"))
    monkeypatch.setattr(protocol, "root", lambda: tmp_path)
    monkeypatch.setattr(protocol, "generated", generated_here := lambda: dict(claims=claims_table()))
    protocol.main()
    assert (tmp_path / "PROTOCOL.md").read_text() == renewed(text, generated_here()) == text
    (tmp_path / "PROTOCOL.md").write_text("Version 1.")
    with pytest.raises(SystemExit, match="PROTOCOL.md: 0 places for claims"): protocol.main()


# --- versions

def faults(folder):
    "What is wrong with the versions of the protocol in a folder."
    text = (folder / "PROTOCOL.md").read_text()
    listed = dict(re.findall(r"^\| (\d+) \|.*\| (.*) \|$", text, re.M))
    if [*map(int, listed)] != [*range(1, version(text) + 1)]: yield f"version {version(text)} lists {', '.join(listed)}"
    kept = {path.stem: path for path in (folder / "protocols").glob("*")}
    older = {number: told for number, told in listed.items() if int(number) < version(text)}
    if kept.keys() != older.keys(): yield f"protocols/ holds {sorted(kept)} and not {sorted(older)}"
    for number in kept.keys() & older.keys():
        if digest(kept[number]) not in older[number]: yield f"version {number} is not what it was"


def test_older_versions_are_kept_as_they_were():
    assert list(faults(ROOT)) == []


def test_a_changed_or_missing_older_version_is_found(tmp_path):
    (tmp_path / "protocols").mkdir()
    old, new = tmp_path / "protocols/1.md", tmp_path / "PROTOCOL.md"
    old.write_text("Version 1.\n")
    new.write_text(f"Version 2.\n\n| 1 | the first | `{digest(old)}` |\n| 2 | the second | the index has it |\n")
    assert list(faults(tmp_path)) == []
    old.write_text("Version 1, changed.\n")
    assert list(faults(tmp_path)) == ["version 1 is not what it was"]
    old.unlink()
    assert list(faults(tmp_path)) == ["protocols/ holds [] and not ['1']"]
    new.write_text(new.read_text().replace("Version 2", "Version 3"))
    assert "version 3 lists 1, 2" in list(faults(tmp_path))


# --- indices

@pytest.mark.parametrize("path", [path for path in (ROOT / "reports").rglob("index.md")], ids=lambda path: path.parent.name)
def test_an_index_names_the_protocol_that_it_follows(path):
    pages = [PAGE, *(ROOT / "protocols").glob("*.md")]
    followed = [page for page in pages if f"version {version(page.read_text())}, SHA-256 `{digest(page)}`" in path.read_text()]
    assert len(followed) == 1, "run `make study` (or `make thorough`, `make beyond`, `make rerun`) and commit what it writes"


def test_one_byte_is_another_identity(tmp_path):
    page = tmp_path / "PROTOCOL.md"
    page.write_text("Version 4.\nA")
    before = identity(page)
    assert before.startswith("`PROTOCOL.md`, version 4, SHA-256 `") and len(re.search("`([0-9a-f]+)`$", before)[1]) == 64
    page.write_text("Version 4.\nB")
    assert identity(page) != before


def test_no_report_has_a_seed_by_which_lengths_were_chosen():
    chosen_by = set(map(int, re.search(r"seeds (\d+) and (\d+), which no report uses", PAGE.read_text()).groups()))
    reported = set(map(int, re.findall(r"\d+", " ".join(re.findall(r"^\| (?:main|side|extra) \|(.*?)\|[^|]*\|$", PAGE.read_text(), re.M)))))
    assert len(chosen_by) == 2 and len(reported) >= 10 and not chosen_by & reported
