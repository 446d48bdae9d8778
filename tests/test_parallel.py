"""Several stages at once: order, failures, and a real DVC repository of toy stages."""
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from vl12in1.study.parallel import (STAGES_FILE, alone, call, chains, clear_list, commands, durations, end_called, in_order, placeholders,
                                    repro, rooms, stale, stale_stages, waiting)
from vl12in1.study.timeline import read_stages

ROOT = Path(__file__).resolve().parents[1]


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 12))
    return {str(i): {str(j) for j in draw(st.sets(st.integers(0, i - 1)))} if i else set() for i in range(n)}


@given(graphs(), st.integers(1, 4), st.sets(st.integers(0, 11)))
def test_nothing_starts_before_what_it_needs_and_nothing_is_lost(needs, jobs, failing):
    failing, started, finished, lock = {str(i) for i in failing} & set(needs), [], set(), threading.Lock()

    def run(name):
        with lock:
            started.append(name)
            assert needs[name] <= finished
        with lock:
            if name not in failing: finished.add(name)
        return name not in failing

    failed = in_order(needs, run, jobs)
    behind = waiting(needs)
    unreachable = set().union(*(behind[name] for name in failing))
    assert len(started) == len(set(started)) and set(started) == set(needs) - unreachable
    assert set(failed) == failing - unreachable


@given(graphs(), st.sets(st.integers(0, 11)))
def test_stale_is_what_changed_and_what_waits_for_it(needs, changed):
    changed = {str(i) for i in changed} & set(needs)
    found, behind = stale(needs, changed), waiting(needs)
    assert set(found) == changed | {name for name in needs if any(name in behind[other] for other in changed)}
    assert all(found[name] == needs[name] & set(found) for name in found)


def test_jobs_really_run_side_by_side():
    meeting = threading.Barrier(2, timeout=20)

    def run(name):
        meeting.wait()
        return True

    assert in_order({"a": set(), "b": set()}, run, jobs=2) == []


@given(graphs(), st.integers(1, 100))
def test_a_chain_is_as_long_as_its_stages(needs, seconds):
    length, behind = chains(needs, {"0": seconds}), waiting(needs)
    assert length["0"] == seconds + max((length[name] for name in behind["0"]), default=0)
    assert all(length[name] > length[later] for name in needs for later in behind[name])


def test_the_longest_chain_goes_first():
    begun = []
    in_order({"a": set(), "b": set(), "c": set(), "d": {"c"}}, lambda name: begun.append(name) or True, 1, {"a": 1, "b": 5, "c": 3, "d": 4})
    assert begun == ["c", "b", "d", "a"]


def test_there_is_room_for_one_stage_at_least():
    assert 1 <= len(rooms()) <= max(4, len(os.sched_getaffinity(0)))


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A repository of four toy stages: one first, two after it, and one that needs both."
    (tmp_path / "dvc.yaml").write_text("""
stages:
  first: {cmd: cp source first.txt, deps: [source], outs: [first.txt]}
  left: {cmd: "sleep 1; cat first.txt > left.txt", deps: [first.txt, knob], outs: [left.txt]}
  right: {cmd: "sleep 1; cat first.txt > right.txt", deps: [first.txt], outs: [right.txt]}
  both: {cmd: cat left.txt right.txt > both.txt, deps: [left.txt, right.txt], outs: [both.txt]}
""")
    (tmp_path / "source").write_text("a\n")
    (tmp_path / "knob").write_text("0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]): subprocess.run(command, check=True)
    return tmp_path


@pytest.mark.slow
def test_a_study_is_brought_up_to_date_and_stays_so(study):
    needs = stale_stages()
    assert needs == {"first": set(), "left": {"first"}, "right": {"first"}, "both": {"left", "right"}}
    assert repro(needs) == {}
    assert (study / "both.txt").read_text() == "a\na\n"
    assert stale_stages() == {}
    said = subprocess.run(["dvc", "repro"], capture_output=True, text=True, check=True).stdout
    assert "Running stage" not in said
    (study / "knob").write_text("1\n")
    assert stale_stages() == {"left": set(), "both": {"left"}}


@pytest.mark.slow
def test_what_fails_holds_up_only_what_needs_it(study):
    (study / "dvc.yaml").write_text((study / "dvc.yaml").read_text().replace("sleep 1; cat first.txt > left.txt", "exit 3"))
    assert list(repro(stale_stages())) == ["left"]
    assert (study / "right.txt").exists() and not (study / "both.txt").exists()
    lines = {line.split(",")[0]: line.split(",")[-1] for line in (study / STAGES_FILE).read_text().splitlines()[1:]}
    assert lines == {"first": "True", "left": "False", "right": "True"}


@pytest.mark.slow
@pytest.mark.parametrize("asked", [stale_stages, commands])
def test_a_lock_of_two_commits_is_said_in_a_line(asked, study):
    (study / "dvc.lock").write_text("<<<<<<< HEAD\nstages:\n=======\n")
    with pytest.raises(ValueError, match="^DVC: .*dvc.lock"): asked()


def test_a_table_of_stages_that_was_cut_or_merged_is_named(tmp_path, monkeypatch):
    path = tmp_path / "reports/benchmarks/timeline_smoke.csv"
    path.parent.mkdir(parents=True)
    path.write_text("stage,worker,begin,end,succeeded\nviews,0,1,2,True\n<<<<<<< HEAD\n")
    monkeypatch.setattr("vl12in1.study.parallel.root", lambda: tmp_path)
    monkeypatch.setattr("vl12in1.study.parallel.checked_settings", lambda: dict(profile="smoke"))
    for reading in (durations, lambda: read_stages(path)):
        with pytest.raises(ValueError, match="timeline_smoke.csv: no "): reading()


def test_placeholders_are_written_only_where_nothing_is(tmp_path):
    assert [path.name for path in placeholders(tmp_path, ["at"])] == ["at.json", "at.csv"]
    (tmp_path / "runs/at.json").write_text("{}")
    assert [path.name for path in placeholders(tmp_path, ["at", "st"])] == ["st.json", "st.csv"]
    assert (tmp_path / "runs/at.json").read_text() == "{}"
    (tmp_path / "items/at.csv").unlink()  # trained, and not tested yet
    assert [path.name for path in placeholders(tmp_path, ["at", "st"])] == ["at.csv"]
    assert (tmp_path / "runs/at.json").read_text() == "{}"


WATCHED = "from vl12in1.study.parallel import repro, stale_stages; assert repro(stale_stages()) == {}"


@pytest.mark.slow
def test_a_terminal_shows_a_table_of_what_runs(study):
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", WATCHED], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        while part := read(ours): seen += part
    assert process.returncode == 0, seen.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert b"\x1b[" in seen and re.search(r"running +for", text)  # drawn anew in its place
    assert re.search(r"^ *(left|right) +0:00:0\d", text, re.M) and "1 of 4 stages, 0:00:0" in text
    assert {line.split()[1] for line in text.splitlines() if line.startswith("done: ")} == {"first", "left", "right", "both"}
    assert "4 of 4 stages" in text.splitlines()[-2]


def read(terminal):
    "What a process wrote to its terminal; nothing once it has ended."
    try: return os.read(terminal, 65536)
    except OSError: return b""


@pytest.mark.slow
def test_a_log_has_one_line_for_each_stage(study):
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(re.fullmatch(r"done: \w+ \(\d+ s; [1-4] of 4 stages, 0:00:\d\d elapsed, about 0:00:\d\d left\)", line) for line in lines)
    assert lines[0].startswith("done: first (") and lines[-1].startswith("done: both (") and len(lines) == 4


# --- a study that is killed, and a second one

STOPPED = """
from vl12in1.endings import ending
from vl12in1.study.parallel import alone, call, in_order, stopping
command = ["sh", "-c", "(echo $$ > pid; sleep 60) & wait"]
with ending("study"), alone(), stopping(): in_order({"stage": set()}, lambda name: call(command, {})[0] == 0, 1)
"""


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(.05)
    return condition()


def runs(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError: return False


@pytest.mark.parametrize("dvc_waits", [True, False])
def test_a_stage_whose_dvc_ended_before_it_looked_ends_too(tmp_path, dvc_waits):
    stage = "import time; time.sleep(1); from vl12in1.children import end_with_study; end_with_study(); open('lives', 'w')"
    environment = "os.environ | dict(DVC_STAGE='train')"
    dvc = (f"import os, subprocess, sys; stage = subprocess.Popen([sys.executable, '-c', {stage!r}], env={environment})"
           + "; stage.wait()" * dvc_waits)
    started = subprocess.Popen([sys.executable, "-c", dvc], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    started.communicate(timeout=60)  # the stage has the pipe, too
    assert (tmp_path / "lives").exists() == dvc_waits


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks, every half second")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_what_a_study_has_started_ends_with_it(tmp_path, monkeypatch, number, status):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STOPPED], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        started = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == status and len(said.splitlines()) == (number != signal.SIGKILL)
    assert until(lambda: not runs(started))
    with alone(): pass  # its lock is gone


def test_a_command_that_begins_while_the_others_are_ended_ends_too(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vl12in1.study.parallel.ENDED", threading.Event())
    start = time.monotonic()
    end_called()
    assert call(["sleep", "60"], {})[0] == -signal.SIGKILL and time.monotonic() - start < 10


def test_a_second_study_is_told_of_the_first(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with alone():
        with pytest.raises(BlockingIOError, match=f"study.lock: a study is running here already, process {os.getpid()}: wait"):
            with alone(): pass
    with alone(): pass


@pytest.mark.parametrize("text, stays", [
    ("{", False), (json.dumps(dict(write={"a": dict(pid=2 ** 30, cmd="dvc repro")})), False),
    ("OWN", False), ("DVC", True)])
def test_the_list_of_a_killed_study_is_removed_and_that_of_a_running_dvc_kept(tmp_path, monkeypatch, text, stays):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"])
    assert until(lambda: Path(f"/proc/{sleeper.pid}/cmdline").read_bytes())
    running = {"DVC": sleeper.pid, "OWN": os.getpid()}
    if text in running: text = json.dumps(dict(read={"a": [dict(pid=running[text], cmd="dvc repro")]}, write={}))
    (tmp_path / ".dvc/tmp/rwlock").write_text(text)
    clear_list()
    sleeper.kill()
    sleeper.wait()
    assert (tmp_path / ".dvc/tmp/rwlock").exists() == stays
