"""What is written for Slurm, handed to a program that does with it what Slurm does."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vl12in1.study import slurm

ROOT = Path(__file__).resolve().parents[1]
SBATCH = """#!/bin/bash
# Runs every job of an array at once, as a queue with room would, and says the number of the array. What a job says goes to a file that is
# named from the working directory; without its folder nothing runs.
echo "$@" >> "$LOG"
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
output=$(sed -n 's/^#SBATCH --output=//p' "$script") directory=.
for option in "$@"; do case $option in --chdir=*) directory=${option#--chdir=};; esac; done
for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task bash "$script" > "$directory/$output.$task" 2>&1 || echo "$script $task failed" >> "$LOG"
done
echo $((100 + $(wc -l < "$LOG")))
"""

STAGES = """stages:
  first: {cmd: echo 1 > a, outs: [a]}
  second: {cmd: cp a b, deps: [a], outs: [b]}
  wrong: {cmd: exit 1, deps: [a], outs: [c]}
  each:
    foreach: [x, y]
    do: {cmd: "cat b > ${item}", deps: [b], outs: ["${item}"]}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A small repository of DVC in place of the study, and the stand-in for Slurm on the path."
    (tmp_path / "dvc.yaml").write_text(STAGES)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    for command in (["git"], [sys.executable, "-m", "dvc"]): subprocess.run([*command, "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setattr(slurm, "root", lambda: tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_jobs_run_every_stage_when_its_turn_has_come(study, capsys):
    slurm.main(["--options", "--gres=gpu:1 --time=24:00:00", "--folder", str(study / "jobs")])
    assert "5 stages in 3 levels" in capsys.readouterr().out
    subprocess.run(["bash", "jobs/submit.sh"], check=True)
    assert [(study / name).read_text() for name in ("a", "b", "x", "y")] == ["1\n"] * 4 and not (study / "c").exists()
    log = (study / "log").read_text().splitlines()
    assert log[0] == f"--parsable --chdir={study} level_00.sbatch" and "level_01.sbatch 1 failed" in log
    assert any(" --dependency=afterany:" in line and line.endswith("level_02.sbatch") for line in log)
    first = (study / "jobs/level_00.sbatch").read_text()
    assert "#SBATCH --gres=gpu:1\n#SBATCH --time=24:00:00\n" in first and "#SBATCH --array=0-0" in first


def test_names_and_folders_with_blanks_survive(study, monkeypatch):
    monkeypatch.setattr(slurm, "root", lambda: Path("/a folder/of mine"))
    text = slurm.job(["train@at", "a b"])
    assert "#SBATCH '--comment=two words'\n" in slurm.job(["a"], "--comment='two words'")
    assert "cd '/a folder/of mine'" in text and "stages=(train@at 'a b')" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_old_levels_do_not_stay(tmp_path):
    slurm.write_jobs([["a"], ["b"], ["c"]], tmp_path)
    slurm.write_jobs([["a"]], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["level_00.sbatch", "submit.sh"]
