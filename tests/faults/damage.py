"""Damaging files: what disks, networks and editors do to any file, and what somebody does who knows its format.

`damaged(random, name, content, others)` returns what the file holds instead, and says what was done. The same random state does
the same."""
import io
import json
import pickle
import pickletools
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fuzz import places

LONG = "9" * 5000
HOSTILE = [None, True, -1, 0, 1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2 ** 31, 2 ** 63, -2 ** 63, 10 ** 400, "", " ", "0", "-1",
           "nan", "1e309",
           "train", "../../etc/passwd", "/dev/null", "a\x00b", "\ud800", "\u202e", "\x1b[2J", "x" * 10_000, LONG, [], {}, [[]], [None],
           {"": ""},
           [0, 0, -1, 1e30], [float("nan")] * 4, {"id": 1}, [{}], "null", "true"]


# ---- any file

def flip(random, data):
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 8, 64])):
        if data: data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def set_bytes(random, data):
    at, size = random.randrange(len(data) + 1), random.choice([1, 2, 4, 8, 64])
    return data[:at] + random.choice([b"\0", b"\xff", b"\x7f", b"9", b"\n"]) * size + data[at + size:]


def cut(random, data): return data[:random.randrange(len(data) + 1)]
def cut_at_line(random, data): return b"".join(data.splitlines(True)[:random.randrange(len(data.splitlines()) + 1)])
def lose(random, data):
    at = random.randrange(len(data) + 1)
    return data[:at] + data[at + random.choice([1, 2, 16, 512, 4096]):]


def zeros(random, data):
    at = random.randrange(len(data) + 1)
    return data[:at] + bytes(len(data) - at)


def append(random, data): return data + random.choice([b"\0", b"\n", b"}", b"garbage" * 9, data, random.randbytes(99)])
def empty(random, data): return b""
def noise(random, data): return random.randbytes(random.choice([1, 10, 1000, 20_000]))
def insert(random, data):
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice([1, 4, 100])) + data[at:]


BLIND = [flip, flip, flip, set_bytes, cut, cut, cut_at_line, lose, zeros, append, empty, noise, insert]


# ---- nests of lists and dictionaries

def edit_nest(random, content):
    "The nest with one place of it replaced, deleted, given twice or given to another; `content` is changed."
    ways = list(places(content))
    if not ways: return random.choice(HOSTILE)
    *way, last = random.choice(ways)
    target = content
    for step in way: target = target[step]
    edit = random.choice(["replace", "replace", "replace", "delete", "twice", "type", "swap", "deep"])
    if edit == "replace": target[last] = random.choice(HOSTILE)
    elif edit == "delete": del target[last]
    elif edit == "type": target[last] = [target[last]] if random.random() < .5 else {"a": target[last]}
    elif edit == "swap":
        other = random.choice(list(target) if isinstance(target, dict) else range(len(target)))
        target[last], target[other] = target[other], target[last]
    elif edit == "deep":
        for _ in range(random.choice([10, 500])): target[last] = [target[last]]
    elif isinstance(target, list): target.insert(last, target[last])
    else: target[f"{last}0"] = target[last]
    return content


def edit_json(random, data):
    if random.random() < .15:
        text = data.decode("utf-8", "replace")
        return random.choice([b"\xef\xbb\xbf" + data, text.encode("utf-16"), b"[" * 100_000, b'{"a":' * 100_000, data.replace(b'"', b"'"),
                              data.replace(b"1", LONG.encode(), 1), data.replace(b":", b": NaN, \"x\":", 1), data.replace(b",", b",,", 1),
                              data.replace(b"{", b'{"id": 1, "id": 2, ', 1), b"null", b"[]", b"{}", b"5", b'"text"', data[1:], data[:-1]])
    return json.dumps(edit_nest(random, json.loads(data))).encode()


def edit_lines(random, data):
    "Lines of text: one of them edited as JSON or as cells, or lines lost, moved and given twice."
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines: return b"\n"
    at = random.randrange(len(lines))
    edit = random.choice(["cell", "cell", "cell", "lose", "twice", "swap", "whole", "long", "crlf", "utf16", "bom"])
    if edit == "cell":
        mark = "\t" if "\t" in lines[at] else "," if not lines[at].startswith("{") else None
        if mark is None:
            try: lines[at] = json.dumps(edit_nest(random, json.loads(lines[at])))
            except ValueError: lines[at] = lines[at][:-1]
        else:
            cells = lines[at].split(mark)
            place = random.randrange(len(cells))
            cells[place:place + 1] = random.choice([[], [cells[place]] * 2, [str(random.choice(HOSTILE))], [""]])
            lines[at] = mark.join(cells)
    elif edit == "lose": del lines[at]
    elif edit == "twice": lines.insert(at, lines[at])
    elif edit == "swap": lines[at], lines[0] = lines[0], lines[at]
    elif edit == "whole": lines[at] = str(random.choice(HOSTILE))
    elif edit == "long": lines[at] *= 1000
    text = ("\r\n" if edit == "crlf" else "\n").join(lines) + "\n"
    return text.encode("utf-16") if edit == "utf16" else b"\xef\xbb\xbf" * (edit == "bom") + text.encode("utf-8", "surrogatepass")


YAML = ["!!python/object/apply:os.system [touch executed]", "&a [*a, *a]", "{a: 1, a: 2}", "[" * 500, "'", "\t- x", "1e999", ".nan", "no",
        "0o17", "12:30:45",
        "2026-01-01", "!!binary x", "<<: *none", "? x", "|", "-", "[0, 0]", "-1", "'false'", "null"]


def edit_yaml(random, data):
    lines = data.decode("utf-8", "replace").splitlines()
    code = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    if not code: return random.choice(YAML).encode()
    at = random.choice(code)
    key, mark, value = lines[at].partition(": ")
    lines[at] = random.choice([f"{key}{mark}{random.choice(YAML)}", f"{key}{mark}{random.choice(HOSTILE)}", f"  {lines[at]}",
                               lines[at].lstrip(), key,
                               lines[at].replace(":", "", 1), f"{lines[at]}\n{lines[at]}", f"{lines[at]}0", random.choice(YAML), ""])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# ---- pickles

BOMBS = [b"\x95" + struct.pack("<Q", 2 ** 40), b"\x8e" + struct.pack("<Q", 2 ** 33), b"\x96" + struct.pack("<Q", 2 ** 33), b"(" * 50_000,
         b"]" * 50_000,
         b"j" + struct.pack("<I", 2 ** 31), b"r" + struct.pack("<I", 2 ** 32 - 1) + b"0", b"\x8a\xff", b"I" + LONG.encode() + b"\n",
         b"cos\nsystem\n(S'touch executed'\ntR.",
         b"\x8c\x02os\x8c\x06system\x93", b"Pname\n", b"\x82\x01", b"0", b"2", b"t", b"s", b"u", b"b", b"R", b"\x81", b"h\xff", b"h\x00",
         b"N", b"}", b")", b"\x85",
         b"]q\x00" + b"".join(b"(h%ch%ctq%c" % (n, n, n + 1) for n in range(40)), b"\x98", b"\x97"]


def edit_pickle(random, data):
    "Operations of a pickle lost, doubled, moved, or hostile ones put between; or what it holds edited and pickled again."
    if random.random() < .5:
        try: return pickle.dumps(edit_nest(random, pickle.loads(data)), random.choice([0, 2, 4]))
        except Exception: pass
    try: places = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    except Exception: return flip(random, data)
    operations = [data[a:b] for a, b in zip(places, places[1:])]
    at = random.randrange(len(operations))
    edit = random.choice(["lose", "twice", "move", "bomb", "bomb"])
    if edit == "lose": del operations[at]
    elif edit == "twice": operations.insert(at, operations[at])
    elif edit == "move": operations.insert(random.randrange(len(operations)), operations.pop(at))
    else: operations.insert(at, random.choice(BOMBS))
    return b"".join(operations)


# ---- arrays

def edit_array(random, array):
    "An array of another shape or kind, or with hostile numbers in it."
    array = np.array(array)
    edit = random.choice(["shape", "kind", "number", "number", "rows", "text", "empty", "extra"])
    if edit == "shape": return array.reshape(-1) if array.ndim != 1 else array[None]
    kinds = ["float64", "float16", "int8", "uint64", "complex64", "bool", "S4", "U4"]
    if edit == "kind": return array.astype(random.choice(kinds), casting="unsafe")
    if edit == "rows" and array.ndim: return array[:-1] if random.random() < .5 else np.concatenate([array, array])
    if edit == "text": return np.array(["text"] * max(1, len(array) if array.ndim else 1))
    if edit == "empty": return array[:0] if array.ndim else np.zeros(0)
    if edit == "extra": return np.stack([array, array])
    if array.size and array.dtype.kind in "fiu":
        value = random.choice([float("nan"), float("inf"), -1, 1e30, 0, -1e30, 2 ** 31 - 1])
        with np.errstate(all="ignore"): array.reshape(-1)[random.randrange(array.size)] = np.array(value).astype(array.dtype)
    return array


def as_npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def edit_npy(random, data):
    "The array edited, or the header made to claim something else."
    if random.random() < .4:
        try: return as_npy(edit_array(random, np.load(io.BytesIO(data), allow_pickle=False)))
        except ValueError: return data[:128] + edit_pickle(random, data[128:])  # an object
    claims = [b"(99999999999,)", b"(-1, 4)", b"(2, 2, 2)", b"()", b"(0,)", b"[" * 40 + b"]", b"'(1'", b"(1e3,)"]
    kinds = [b"'|O'", b"'<f99'", b"'<M8[ns]'", b"[('a', 'O')]", b"__import__('os')", b"'V1000000000'", b"None"]
    shape, kind = (b" " + random.choice(those) + b", 'x': " for those in (claims, kinds))
    old, new = random.choice([(b"'shape': (", b"'shape':" + shape + b"("), (b"'descr': ", b"'descr':" + kind), (b"False", b"True"),
                              (b"{", b"{" * 50)])
    header = data[10:128].replace(old, new, 1).rstrip()
    return data[:8] + struct.pack("<H", len(header) + 1) + header + b"\n" + data[128:]


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive: return {name: archive.read(name) for name in archive.namelist()}


def as_zip(content, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, value in content.items(): archive.writestr(name, value)
    return stream.getvalue()


def edit_zip(random, data):
    "A member edited by its kind, lost, renamed, or one that unpacks to very much more."
    content = members(data)
    name = random.choice(sorted(content))
    edit = random.choice(["inside", "inside", "inside", "lose", "rename", "bomb", "blind"])
    if edit == "lose": del content[name]
    elif edit == "rename": content[random.choice(["../x", "/x", "a\x01", name + "0"])] = content.pop(name)
    elif edit == "bomb": return as_zip(content | {name: content[name][:128] + bytes(2 ** 24)}, zipfile.ZIP_DEFLATED)
    elif edit == "blind": content[name] = random.choice(BLIND)(random, content[name])
    else: content[name] = (edit_npy if name.endswith(".npy") else edit_pickle if name.endswith(".pkl") else flip)(random, content[name])
    return as_zip(content)


def edit_safetensors(random, data):
    (size,) = struct.unpack("<Q", data[:8])
    if random.random() < .3: return struct.pack("<Q", random.choice([0, 1, size - 1, size + 1, 2 ** 31, 2 ** 62, 2 ** 64 - 1])) + data[8:]
    header = json.loads(data[8:8 + size])
    name = random.choice(sorted(header))
    if random.random() < .4: header = edit_nest(random, header)
    elif isinstance(header[name], dict) and "shape" in header[name]:
        shape = header[name]["shape"]
        shapes = [[2 ** 40], [0], [], [-1], shape[::-1], [1, *shape]]
        header[name] |= random.choice([*({"shape": shape} for shape in shapes), {"dtype": "I64"}, {"dtype": "F99"},
                                       {"data_offsets": [0, 2 ** 62]}, {"data_offsets": [0, 4]}])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size:]


def edit_torch(random, data):
    "Tensors of other shapes, kinds and numbers, or a zip file edited."
    import torch
    if random.random() < .5: return edit_zip(random, data)
    state = torch.load(io.BytesIO(data), weights_only=True)
    nest, names = state, [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    if not names: state = edit_nest(random, state)
    else:
        name = random.choice(names)
        tensor = state[name].clone()
        edit = random.choice(["nan", "shape", "kind", "lose", "expand", "object", "rename"])
        if edit == "nan": tensor.view(-1)[0] = float("nan")
        elif edit == "shape": tensor = tensor.reshape(-1, 1)
        elif edit == "kind": tensor = tensor.to(random.choice([torch.float64, torch.int8, torch.complex64, torch.bfloat16, torch.bool]))
        elif edit == "expand": tensor = tensor.reshape(-1)[:1].expand(2 ** 40)
        elif edit == "object": tensor = random.choice(HOSTILE)
        if edit in ("lose", "rename"): nest.pop(name)
        if edit != "lose": nest[f"{name}0" if edit == "rename" else name] = tensor
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


# ---- tables and databases, by their own libraries

def by_file(random, data, edit, suffix):
    "The bytes of a file in which `edit(path)` has changed something."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        path.write_bytes(data)
        edit(random, path)
        return path.read_bytes()


def edit_parquet(random, data):
    import pyarrow as pa
    import pyarrow.parquet as pq
    table = pq.read_table(io.BytesIO(data))
    name = random.choice(table.column_names) if table.column_names else None
    edit = random.choice(["lose", "rename", "kind", "rows", "twice", "null"])
    if name is None or edit == "rows": table = table.slice(0, max(0, len(table) - 1))
    elif edit == "lose": table = table.drop_columns([name])
    elif edit == "rename": table = table.rename_columns([f"{each}0" if each == name else each for each in table.column_names])
    elif edit == "twice": table = pa.concat_tables([table, table])
    else:
        values = random.choice([["text"], [1.5], [2 ** 62], [-1], [[1]], [None], [b"\xff"]]) * len(table)
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def edit_h5(random, data):
    import h5py

    def edit(random, path):
        with h5py.File(path, "r+") as file:
            names = []
            file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
            name = random.choice(sorted(names))
            old = file[name][()]
            del file[name]
            change = random.choice(["edit", "edit", "lose", "huge", "text", "link"])
            if change == "edit": file[name] = np.asarray(edit_array(random, old))
            elif change == "huge": file.create_dataset(name, (2 ** 40, 4), "float32", chunks=(1024, 4))
            elif change == "text": file[name] = "text"
            elif change == "link": file[name] = h5py.ExternalLink("/etc/passwd", "/")
    return by_file(random, data, edit, ".h5")


def edit_lmdb(random, data):
    import lmdb
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data.mdb").write_bytes(data)
        with lmdb.open(folder, map_size=2 ** 28, sync=False) as base, base.begin(write=True) as transaction:
            keys = [key for key, _ in transaction.cursor()]
            key = random.choice(keys)
            value = transaction.get(key)
            edit = random.choice(["value", "value", "value", "key", "lose", "text"])
            if edit == "value": transaction.put(key, edit_pickle(random, value) or b"x")
            elif edit == "text": transaction.put(key, random.choice([b"", b"x", b"\x80", b"../../x"]))
            else:
                transaction.delete(key)
                if edit == "key": transaction.put(random.choice([b"\xff", b"../x", b"", b"a\x00"]) or b"e", value)
        return Path(folder, "data.mdb").read_bytes()


def edit_png(random, data):
    "The size or kind in the header changed, its checksum made right again; or chunks lost and doubled."
    header = bytearray(data[:33])
    if random.random() < .6:
        at, value = random.choice([(16, 2 ** 31 - 1), (20, 2 ** 31 - 1), (16, 60_000), (20, 0), (16, 0)])
        header[at:at + 4] = struct.pack(">I", value)
        if random.random() < .3: header[24:26] = random.choice([b"\x10\x02", b"\x01\x03", b"\x08\x07", b"\x08\x06"])
        header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
        return bytes(header) + data[33:]
    return data[:33] + data[33:].replace(b"IDAT", random.choice([b"IDAT\0", b"IEND", b"acTL", b"zTXt"]), 1)


def edit_picture(random, data):
    if data.startswith(b"\x89PNG") and random.random() < .5: return edit_png(random, data)
    return random.choice([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", b"GIF89a\xff\xff\xff\xff\0\0\0", b"BM" + bytes(60),
                          b"P6 999999 999999 255\n",
                          b"II*\0\x08\0\0\0", b"<svg/>", b"RIFF\xff\xff\xff\xffWEBPVP8 ", data[:20] + data,
                          data[:2] + b"\xff\xc0\0\x11\x08\xff\xff\xff\xff" + data[2:]])


EDITS = {".json": edit_json, ".jsonl": edit_lines, ".tsv": edit_lines, ".csv": edit_lines, ".txt": edit_lines, ".token": edit_lines,
         ".yaml": edit_yaml,
         ".p": edit_pickle, ".pkl": edit_pickle, ".npy": edit_npy, ".npz": edit_zip, ".h5": edit_h5, ".hdf5": edit_h5, ".mdb": edit_lmdb,
         ".parquet": edit_parquet, ".safetensors": edit_safetensors, ".pth": edit_torch, ".pt": edit_torch, ".png": edit_picture,
         ".jpg": edit_picture}


def edit_of(name, content):
    "The function that edits files of this name and content; None for those that are only damaged blindly."
    if name.endswith(".bin"): return edit_torch if content.startswith(b"PK") else None
    return EDITS.get(Path(name).suffix) if name != "lock.mdb" else None


def damaged(random, name, content, others) -> tuple[bytes, str]:
    "What a file holds after something happened to it, and what that was; `others`: contents of files that could be mistaken for it."
    edit = edit_of(name, content)
    if others and random.random() < .05: return random.choice(others), "another file"
    if edit and random.random() < .6:
        try: return edit(random, content), edit.__name__
        except Exception: pass  # there is no such place in it
    blind = random.choice(BLIND)
    return blind(random, content), blind.__name__
