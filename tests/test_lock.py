"""HEAD is what its pipeline makes: dvc.lock against the files, the code views and the settings of the commit.

Without DVC's cache: of what git keeps the content is compared, of what only the cache holds nothing can be said."""
import copy
import hashlib
import json
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml

from vl12in1.study.notebooks import code_view
from vl12in1.study.parallel import COMPLETE

ROOT = Path(__file__).resolve().parents[1]
LOCK = load_yaml(ROOT / "dvc.lock")["stages"]


def md5(content):
    return hashlib.md5(content).hexdigest()


@lru_cache(None)
def tracked():
    "The files that git keeps."
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@lru_cache(None)
def settings(file):
    return load_yaml(ROOT / file)  # as DVC does, for which 1e-08 is a number


def contents(path):
    "Name below `path` -> content, of the files that git keeps there, or of the code views that a stage writes there."
    if path.startswith("build/views"):
        views = {f"build/views/{book.stem}.py": code_view(book).encode() for book in (ROOT / "nbs/study").glob("*.ipynb")}
        return {name[len(path):].lstrip("/"): view for name, view in views.items() if name.startswith(path)}
    return {name[len(path):].lstrip("/"): (ROOT / name).read_bytes() for name in tracked() if name == path or name.startswith(path + "/")}


@lru_cache(None)
def digest(path):
    "As dvc.lock writes it; None of what git does not keep."
    files = contents(path)
    if list(files) in ([], [""]): return md5(files[""]) if files else None
    entries = [dict(md5=md5(files[name]), relpath=name) for name in sorted(files)]
    return md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def value(file, key):
    "What stands under a dotted key in a file of settings."
    found = settings(file)
    for part in key.split("."): found = found.get(part) if isinstance(found, dict) else None
    return found


def stages():
    "Names of the stages of dvc.yaml."
    for name, stage in settings("dvc.yaml")["stages"].items():
        keys = settings("params.yaml")[stage["foreach"].strip("${}")] if "foreach" in stage else []
        yield from [f"{name}@{key}" for key in keys] or [name]


def differences(lock):
    "What in this checkout is not as the last run of its stage found it or left it."
    yield from (f"{name} was never run" for name in stages() if name not in lock)
    yield from (f"{name} is no stage" for name in lock if name not in set(stages()))
    for name, stage in lock.items():
        for file in stage.get("deps", []) + stage.get("outs", []):
            if digest(file["path"]) not in (None, file["md5"]): yield f"{name}: {file['path']}"
        for file, keys in stage.get("params", {}).items():
            yield from (f"{name}: {file}: {key}" for key, then in keys.items() if value(file, key) != then)


def test_head_is_what_its_pipeline_makes():
    assert list(differences(LOCK)) == [], "run `make study` and commit what it writes"


def test_what_was_changed_by_hand_is_found():
    lock, before = copy.deepcopy(LOCK), set(differences(LOCK))
    table = next(out for out in lock["table_sizes"]["outs"] if out["path"].endswith(".md"))
    table["md5"] = md5(b"another table")
    lock["world"]["params"] = {"profiles/smoke.yaml": {"world": "flat"}}
    found = {f"table_sizes: {table['path']}", "world: profiles/smoke.yaml: world"}
    assert set(differences({name: stage for name, stage in lock.items() if name != "index"})) >= found | {"index was never run"}
    assert not found & before


# --- complete runs with more seeds, kept with the lock that their clone had

def kept_otherwise(folder, lock):
    "The files and folders below `folder`, a copy of a study's reports, that are not as the study's lock says it left them."
    outs = [out for stage in lock.values() for out in stage.get("outs", []) if out["path"].startswith("reports/")]
    return [out["path"] for out in outs if digest(folder + out["path"].removeprefix("reports")) != out["md5"]]


@pytest.mark.parametrize("name", COMPLETE)
def test_the_reports_of_a_complete_run_are_what_it_left(name):
    folder = f"reports/{name}"
    if not contents(f"{folder}/dvc.lock"): pytest.skip(f"{folder} is not there yet")
    assert kept_otherwise(folder, load_yaml(ROOT / folder / "dvc.lock")["stages"]) == [], f"run `make {name}` and commit what it writes"


def test_a_report_that_was_changed_or_lost_is_found():
    paths = dict.fromkeys(["reports/table_sizes.md", "reports/regions/detector.json", "reports/clean"])
    lock = {path: dict(outs=[dict(path=path, md5=digest(path))]) for path in paths}
    assert kept_otherwise("reports", lock) == []
    lock["reports/table_sizes.md"]["outs"][0]["md5"] = md5(b"another table")
    lock["lost"] = dict(outs=[dict(path="reports/lost.md", md5=md5(b"")), dict(path="build/frames", md5="")])
    assert kept_otherwise("reports", lock) == ["reports/table_sizes.md", "reports/lost.md"]
