"Work that writes files is killed, runs out of disk and memory, meets itself: done again, it leaves the same bytes."
import pytest

from faults import jobs, kills


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    jobs.prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("job", jobs.JOBS)
def test_disturbed_work_leaves_the_same_bytes_in_the_end(job, given):
    "What comes at random moments needs many trials: make faults has them."
    ends = {end for *_, end in jobs.trials(job, given, 2, jobs.FAULTS.keys() - {"killed", "interrupted"})}
    assert ends <= {"same bytes", "one clear error"}


@pytest.mark.parametrize("job", ["saving", "reporting"])
def test_a_full_disk_is_one_line_and_the_file_before_is_kept(job, given):
    assert {end for *_, end in jobs.trials(job, given, 2, ["disk full"])} == {"same bytes"}


def test_other_bytes_and_a_traceback_are_found(given, monkeypatch):
    "The harness itself."
    lengths = iter(range(9))
    monkeypatch.setitem(jobs.JOBS, "random", lambda given, folder: (folder / "a").write_text("a" * next(lengths)))
    assert "other bytes in ['a']" in jobs.trial("random", "no folder", 0, given, {"a": ""}, .1)
    monkeypatch.setitem(jobs.JOBS, "broken", lambda given, folder: {}["a"])
    assert "KeyError" in jobs.trial("broken", "disk full", 0, given, {}, .1)


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bytes(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    count, odd, differ = kills.main(5)
    assert (count, odd, differ) == (5, [], [])
