"Complete runs with more seeds: clones of a toy study that are begun, stopped, gone on with and kept."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vl12in1.study.parallel import COMPLETE
from vl12in1.study.thorough import RUNS, choose, clone, git, keep, main, shifted

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = """
stages:
  views: {cmd: cp source first.txt, deps: [source], outs: [first.txt]}
  train:
    cmd: cat first.txt profiles/${profile}.yaml > reports/scores.txt; test ! -e obstacle
    deps: [first.txt]
    params:
      - profiles/${profile}.yaml: [seeds]
    outs:
      - reports/scores.txt: {cache: false}
"""
SEEDS = {"thorough": dict(main=[0, 1, 2], side=[0]), "beyond": dict(main=[0], side=[])}


def profile(name): return yaml.safe_load((ROOT / f"profiles/{name}.yaml").read_text())


def commit(folder, message="next"):
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", f"--message={message}")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A committed study of two toy stages, in the working directory."
    files = {"dvc.yaml": PIPELINE, "source": "a\n", "params.yaml": "# Sizes.\nprofile: small\nruns: {}\nfollowers: {}\nmerged: {}\n"
             "encoder: vilbert\npretraining: {}\n",
             ".gitignore": "/build\n", "profiles/small.yaml": "seeds: {main: [0]}\n", "reports/scores.txt": "of another profile\n",
             **{f"profiles/{name}.yaml": yaml.safe_dump(profile(name) | dict(seeds=seeds)) for name, seeds in SEEDS.items()}}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]): subprocess.run(command, check=True)
    commit(tmp_path)
    return tmp_path


def test_the_runner_makes_room_for_what_complete_runs_leave():
    assert set(RUNS) == set(COMPLETE)


def test_a_run_again_has_other_seeds_and_as_many(checkout):
    seeds = {}
    for name, (own, _) in RUNS.items():
        clone(checkout, checkout / "build" / name)
        choose(checkout / "build" / name, name)
        assert f"profile: {own}\n" in (checkout / "build" / name / "params.yaml").read_text()
        seeds[name] = yaml.safe_load((checkout / "build" / name / f"profiles/{own}.yaml").read_text())["seeds"]
    assert {name: seeds[name] for name in SEEDS} == SEEDS and not set(seeds["thorough"]["main"]) & set(seeds["rerun"]["main"])
    assert {name: len(own) for name, own in seeds["rerun"].items()} == {name: len(own) for name, own in SEEDS["thorough"].items()}


def test_settings_that_name_no_profile_are_refused(checkout):
    clone(checkout, checkout / "build/thorough")
    grid = checkout / "build/thorough/params.yaml"
    grid.write_text("'profile': miniature\n")
    with pytest.raises(ValueError, match=f"^{grid}: 0 lines begin with 'profile:'; expected one"):
        choose(checkout / "build/thorough", "thorough")


def test_the_seeds_of_the_profiles_are_few_enough_to_be_shifted():
    step = min(shift for _, shift in RUNS.values() if shift)
    assert all(max(own) - min(own) < step for name, _ in RUNS.values() for own in profile(name)["seeds"].values() if own)


def test_every_list_of_seeds_has_several_in_one_run_or_another():
    most = {name: max(len(profile(own)["seeds"][name]) for own, _ in RUNS.values()) for name in profile("thorough")["seeds"]}
    assert {name for name, number in most.items() if number < 3} == {"extra"}, "what no claim is about may have one"


def test_a_clone_has_what_is_committed_and_no_more(checkout):
    (checkout / "source").write_text("not committed\n")
    folder = checkout / "build/thorough"
    clone(checkout, folder)
    assert (folder / "source").read_text() == "a\n" and not (folder / "reports").exists()
    commit(checkout)
    (checkout / "profiles/small.yaml").unlink()
    commit(checkout)
    choose(folder, "thorough")
    clone(checkout, folder)
    assert (folder / "source").read_text() == "not committed\n" and not (folder / "profiles/small.yaml").exists()
    assert "profile: small" in (folder / "params.yaml").read_text()


def test_a_report_of_an_earlier_run_is_not_kept(checkout):
    (checkout / "reports/thorough").mkdir()
    (checkout / "reports/thorough/table_gone.md").write_text("earlier")
    folder = checkout / "build/thorough"
    for name in ("dvc.lock", "reports/index.md", "reports/benchmarks/times.csv", "reports/rerun/index.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    keep(folder, checkout / "reports/thorough")
    assert sorted(path.name for path in (checkout / "reports/thorough").iterdir()) == ["dvc.lock", "index.md"]


@pytest.mark.slow
def test_a_complete_run_goes_on_where_it_was_stopped_and_is_kept(checkout, capfd):
    (checkout / "obstacle").touch()
    commit(checkout)
    with pytest.raises(SystemExit, match="reports/thorough is as it was"): main(["thorough"])
    assert not (checkout / "reports/thorough").exists()
    (checkout / "obstacle").unlink()
    commit(checkout)
    capfd.readouterr()
    main(["thorough"])
    assert "1 stages are out of date" in capfd.readouterr().out   # what was done before it stopped is not done again
    assert (checkout / "reports/rerun").is_dir()   # for the table that looks at both
    for name, (own, shift) in RUNS.items():
        if name != "thorough": main([name])
        scores = (checkout / "reports" / name / "scores.txt").read_text()
        assert scores.startswith("a\n") and yaml.safe_load(scores[2:])["seeds"] == shifted(SEEDS[own], shift)
    assert (checkout / "reports/scores.txt").read_text() == "of another profile\n" and git(checkout, "status", "--short") != ""


@pytest.mark.parametrize("name", RUNS)
def test_outside_of_a_checkout_it_ends_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="start this inside a checkout"): main([name])


def test_without_a_commit_it_ends_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(SystemExit, match="git .* failed: reports/thorough is as it was"): main(["thorough"])
