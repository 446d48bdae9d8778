"""HEAD is what its pipeline makes: dvc.lock against the files, the code views and the settings of the commit.

Without DVC's cache: of what git keeps the content is compared, of what only the cache holds nothing can be said."""
import copy
import hashlib
import json
import subprocess
from functools import lru_cache
from pathlib import Path

from dvc.utils.serialize import load_yaml

from vl12in1.study.notebooks import code_view

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
