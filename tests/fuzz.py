"Data folders for tests: writing them in upstream's encodings, and damaging them in ways nobody thought of."
import copy
import gzip
import json
import pickle

from hypothesis import settings
from hypothesis import strategies as st


def tries(n, **others):
    "Settings of hypothesis: `n` examples, five times as many with its profile `slow` (conftest.py)."
    return settings(max_examples=n * settings.default.max_examples // 100, deadline=None, **others)


def encode(path, content):
    "The bytes of an upstream file; `bytes` and `str` are written as they are."
    if isinstance(content, (bytes, str)): return content if isinstance(content, bytes) else content.encode()
    if path.endswith(".p"): return pickle.dumps(content, protocol=2)
    if ".jsonl" in path or path.startswith("nlvr2/"):
        lines = "".join(json.dumps(row) + "\n" for row in content).encode()
        return gzip.compress(lines) if path.endswith(".gz") else lines
    return json.dumps(content).encode()


def write(root, content):
    "Write path -> content below `root`; returns `root`."
    for path, value in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(path, value))
    return root


numbers = st.one_of(st.integers(), st.just(10 ** 400), st.floats(), st.booleans())
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=8), st.sampled_from(["", "train", "\ud800", "1", "coco:1", "\t", "\x00"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6)


def places(content, way=()):
    "The way to every value inside of a nest of lists and dictionaries."
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for step, value in items:
        yield (*way, step)
        yield from places(value, (*way, step))


def change(content, way, edit, value):
    "A copy of `content` with the value at `way` replaced, deleted or given twice."
    content = target = copy.deepcopy(content)
    *way, last = way
    for step in way: target = target[step]
    if edit == "replace": target[last] = value
    elif edit == "delete": del target[last]
    elif isinstance(target, list): target.insert(last, copy.deepcopy(target[last]))
    else: target[f"{last}0"] = target[last]
    return content


def spoil(draw, data):
    "Bytes that were cut, or of which one was changed."
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    return draw(st.sampled_from([data[:at], data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1:]]))


@st.composite
def damaged(draw, content):
    "A copy of a folder's content (path -> value) with one to three places of it damaged."
    content = dict(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(content)))
        ways = () if isinstance(content[path], (bytes, str)) else tuple(places(content[path]))
        if not ways or draw(st.integers(0, 9)) == 0:
            content[path] = spoil(draw, encode(path, content[path]))
        else:
            edit = draw(st.sampled_from(["replace", "replace", "delete", "twice"]))
            content[path] = change(content[path], draw(st.sampled_from(ways)), edit, draw(values))
    return content
