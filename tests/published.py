"""Writers of published feature files, for tests and benchmarks: they take any iterable of records and hold one at a time.

A record is {image_id, image_w, image_h, num_boxes, boxes (N, 4) float32, features (N, D) float32} and perhaps cls_prob (N, C).
"""
import base64
import pickle
from itertools import chain
from pathlib import Path

import numpy as np

LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")
BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def record(image, rows=4, dim=8, classes=0, width=640, height=480, seed=0):
    "Random regions of one image; the same for the same arguments."
    rng = np.random.default_rng([seed, *str(image).encode()])
    corners = rng.uniform(0, .6, (rows, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(.05, .4, (rows, 2))], axis=1) * [width, height, width, height]
    made = {"image_id": image, "image_w": width, "image_h": height, "num_boxes": rows, "boxes": boxes.astype(np.float32),
            "features": rng.normal(size=(rows, dim)).astype(np.float32)}
    if classes: made["cls_prob"] = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    return made


def records(images, rows=100, dim=2048, **options):
    "Records of published size for `images`, one after the other. All have the numbers of the first: drawing takes longer than writing."
    first = None
    for image in images:
        first = first or record(image, rows, dim, **options)
        yield first | {"image_id": image}


def as_sizes(made):
    "The record with boxes as x, y, width, height."
    boxes = made["boxes"].copy()
    boxes[:, 2:] -= boxes[:, :2]
    return made | {"boxes": boxes}


def encoded(array):
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def write_lmdb(folder, records, base64=False, keys=True, protocol=None):
    "A folder with data.mdb: pickled dictionaries, with `base64` text instead of arrays; `keys`: write the list of ids, too."
    import lmdb
    ids = []
    with lmdb.open(str(folder), map_size=2**36, sync=False) as env:
        for made in records:
            ids.append(str(made["image_id"]).encode())
            value = {name: encoded(item) if base64 and isinstance(item, np.ndarray) else item for name, item in made.items()}
            with env.begin(write=True) as transaction: transaction.put(ids[-1], pickle.dumps(value, protocol))
        if keys:
            with env.begin(write=True) as transaction: transaction.put(b"keys", pickle.dumps(ids, protocol))


def write_tsv(path, records, columns=BOTTOM_UP):
    "Lines of bottom-up attention's columns or of LXMERT's."
    with open(path, "w", newline="") as file:
        for made in records:
            rows = len(made["boxes"])
            cells = made | {"img_id": made["image_id"], "img_w": made["image_w"], "img_h": made["image_h"],
                            "objects_id": np.zeros(rows, np.int64), "objects_conf": np.zeros(rows, np.float32),
                            "attrs_id": np.zeros(rows, np.int64), "attrs_conf": np.zeros(rows, np.float32)}
            cells = [encoded(cells[name]) if isinstance(cells[name], np.ndarray) else str(cells[name]) for name in columns]
            file.write("\t".join(cells) + "\r\n")


def write_h5(path, records):
    "A group per image, as VOLTA writes them."
    import h5py
    with h5py.File(path, "w") as file:
        for made in records:
            group = file.create_group(str(made["image_id"]))
            for name, item in made.items():
                if name not in ("image_id", "num_boxes"): group[name.replace("image_", "img_")] = item


def write_h5_arrays(path, records, padding=0):
    "Arrays with a row per image, `padding` empty rows behind the boxes of each; all records have as many boxes as the first."
    import h5py
    records = iter(records)
    first = next(records)
    with h5py.File(path, "w") as file:
        for row, made in enumerate(chain([first], records)):
            for name, item in made.items():
                item = np.asarray(int(item) if name == "image_id" else item)
                if item.ndim: item = np.pad(item, [(0, padding), (0, 0)])
                shape = item.shape
                if not row: file.create_dataset(name, (0, *shape), item.dtype, maxshape=(None, *shape), chunks=(1, *shape))
                file[name].resize(row + 1, axis=0)
                file[name][row] = item


def write_npy(folder, records, info=False):
    "A dictionary per image, as the published extractor saves it; with `info` two files per image, as MMF does."
    Path(folder).mkdir(parents=True, exist_ok=True)
    for made in records:
        names = {"boxes": "bbox", "image_w": "image_width", "image_h": "image_height"}
        fields = {names.get(name, name): item for name, item in made.items()}
        if info: np.save(Path(folder) / f"{made['image_id']}_info.npy", {k: v for k, v in fields.items() if k != "features"})
        np.save(Path(folder) / f"{made['image_id']}.npy", fields["features"] if info else fields)


def write_npz(folder, records, fractions=False):
    "A file of named arrays per image; with `fractions` UNITER's `norm_bb` instead of boxes in pixels."
    Path(folder).mkdir(parents=True, exist_ok=True)
    for made in records:
        fields = {name: item for name, item in made.items() if name not in ("image_id", "boxes")}
        boxes = made["boxes"] / np.float32([made["image_w"], made["image_h"]] * 2)
        fields |= {"norm_bb": np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], axis=1)} if fractions else {"bbox": made["boxes"]}
        np.savez(Path(folder) / f"{made['image_id']}.npz", **fields)
