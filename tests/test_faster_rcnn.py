"The published detector: its numbers, its files, whatever is given to it as one, and pictures of every kind."
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from vl12in1.regions.extraction import check_pair, extract, extract_given
from vl12in1.regions.faster_rcnn import (confidences, open_published, pool, read_class_names, read_detector, region_names,
                                         resized_boxes)
from vl12in1.regions.proposals import BLOCK, grid_anchors, level_anchors, suppress
from vl12in1.regions.pyramid import FasterRCNNConfig, published_config, read_config, transform
from vl12in1.weights import CheckpointError

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from random_detector import as_yaml, invent  # noqa: E402

FIXTURE = Path(__file__).parent / "parity" / "detector_small"
WEIGHTS, CONFIG = FIXTURE / "weights.pth", FIXTURE / "detectron_config.yaml"


@pytest.fixture(scope="module")
def detector(): return read_detector(WEIGHTS, CONFIG, min_size=200, max_size=320)[0]


@pytest.fixture
def picture(): return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def difference(ours, theirs):
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# --- what the published code computes

@torch.inference_mode()
def test_every_published_quantity(detector, capsys):
    x, worst = load_file(FIXTURE / "tensors.safetensors"), {}

    def compare(name, ours, theirs): worst[name] = max(worst.get(name, 0), difference(ours, theirs))

    pictures = [x[f"image{i}.pixels"].numpy() for i in range(3)]
    pictures[2] = np.stack([pictures[2]] * 3, axis=-1)
    maps, sizes = detector.look(pictures)
    for level, map in enumerate(maps):
        thin = (lambda each: each[..., ::4, ::4]) if level < 2 else (lambda each: each)
        compare("pyramid", thin(map), x[f"fpn.{level}"])
        logits, deltas = (each.reshape(3, *map.shape[2:], -1).permute(0, 3, 1, 2) for each in detector.rpn.head(map))
        compare("RPN objectness", thin(logits), x[f"rpn.objectness.{level}"])
        compare("RPN deltas", thin(deltas), x[f"rpn.deltas.{level}"])
        anchors = grid_anchors(level_anchors(detector.config)[level], detector.config.anchor_strides[level], *map.shape[2:])
        compare("anchors", anchors[::16] if level < 2 else anchors, x[f"rpn.anchors.{level}"])
    for i, size in enumerate(sizes):
        own, theirs = [map[i:i + 1] for map in maps], x[f"image{i}.proposals"]
        compare("pixels", transform(pictures[i], 200, 320)[:, ::4, ::4], x[f"image{i}.transformed"])
        proposals, objectness = detector.rpn(own, size)
        rows = torch.cdist(theirs, proposals, p=torch.inf).argmin(1)
        assert len(rows.unique()) == len(proposals) == len(theirs)  # the same set
        compare("proposals", proposals[rows], theirs)
        compare("proposals' objectness, in order", objectness, x[f"image{i}.objectness"])
        assert (objectness[rows].diff() <= 1e-5).all()              # in the same order, up to ties
        features, probs = detector.roi_heads.box(own, theirs)
        compare("fc6", features[::4], x[f"image{i}.fc6"])
        compare("probabilities", probs[::4], x[f"image{i}.scores"].softmax(1))
        confidence = torch.from_numpy(confidences(theirs / x[f"image{i}.scale"].item(), probs))
        compare("confidence", confidence, x[f"image{i}.confidence"])
        kept = confidence.argsort(descending=True, stable=True)[:30]
        assert torch.equal(kept, x[f"image{i}.kept"])
        assert torch.equal(1 + probs[kept, 1:].argmax(1), 1 + x[f"image{i}.kept_probabilities"][:, 1:].argmax(1))
        compare("kept features", features[kept], x[f"image{i}.kept_features"])
        compare("kept boxes", theirs[kept] / x[f"image{i}.scale"].item(), x[f"image{i}.kept_boxes"])
        compare("kept probabilities", probs[kept], x[f"image{i}.kept_probabilities"])
        given, resized = resized_boxes(x[f"image{i}.given_boxes"].numpy(), pictures[i], size)
        features, probs = detector.roi_heads.box(own, resized)
        compare("features of given boxes", features, x[f"image{i}.given_features"])
        compare("probabilities of given boxes", probs, x[f"image{i}.given_probabilities"])
    with capsys.disabled(): print("\n" + "\n".join(f"{name:34}{value:.0e}" for name, value in worst.items()))
    assert len(worst) == 15 and max(worst.values()) < 1e-4


# --- other detectors, by code that does one thing after the other

def plain_resize(picture, scale):
    height, width = (int(np.round(side * scale)) for side in picture.shape[:2])
    resized = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            v, u = min(max((y + .5) / scale - .5, 0), picture.shape[0] - 1), min(max((x + .5) / scale - .5, 0), picture.shape[1] - 1)
            for row, down in ((int(v), 1 - v + int(v)), (min(int(v) + 1, picture.shape[0] - 1), v - int(v))):
                for column, across in ((int(u), 1 - u + int(u)), (min(int(u) + 1, picture.shape[1] - 1), u - int(u))):
                    resized[y, x] += down * across * picture[row, column]
    return torch.tensor(resized[..., ::-1] - [102.9801, 115.9465, 122.7717], dtype=torch.float32).permute(2, 0, 1)


def plain_maps(state, config, pixels):
    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=0)

    def conv(x, name, **how): return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)

    x = F.relu(norm(conv(pixels, "backbone.body.stem.conv1", stride=2, padding=3), "backbone.body.stem.bn1"))
    x, maps = F.max_pool2d(x, 3, 2, 1), []
    for stage, count in enumerate(config.blocks, 1):
        for i in range(count):
            name, stride = f"backbone.body.layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            one, three = (stride, 1) if config.stride_in_1x1 else (1, stride)
            y = F.relu(norm(conv(x, f"{name}.conv1", stride=one), f"{name}.bn1"))
            y = F.relu(norm(conv(y, f"{name}.conv2", stride=three, padding=1, groups=config.groups), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
            x = F.relu(y + x)
        maps.append(x)
    inner, levels = None, []
    for level in (4, 3, 2, 1):
        lateral = conv(maps[level - 1], f"backbone.fpn.fpn_inner{level}")
        inner = lateral if inner is None else lateral + F.interpolate(inner, scale_factor=2, mode="nearest")
        levels.insert(0, conv(inner, f"backbone.fpn.fpn_layer{level}", padding=1))
    return [*levels, levels[-1][:, :, ::2, ::2]]


def plain_anchors(stride, size, ratios):
    "As in the first implementation: a window is listed as width, height and centre, and enlarged."
    anchors = []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        x = y = (stride - 1) / 2
        scale = size / stride
        half = .5 * (width * scale - 1), .5 * (height * scale - 1)
        anchors.append([x - half[0], y - half[1], x + half[0], y + half[1]])
    return np.array(anchors)


def plain_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - inter)


def plain_nms(boxes, scores, overlap):
    kept = []
    for row in np.argsort(-scores, kind="stable"):
        if all(plain_iou(boxes[row], boxes[other]) <= overlap for other in kept): kept.append(row)
    return kept


def plain_proposals(state, config, maps, height, width):
    boxes, scores = [], []
    for map, stride, size in zip(maps, config.anchor_strides, config.anchor_sizes):
        x = F.relu(F.conv2d(map, state["rpn.head.conv.weight"], state["rpn.head.conv.bias"], padding=1))
        logits = F.conv2d(x, state["rpn.head.cls_logits.weight"], state["rpn.head.cls_logits.bias"])[0].sigmoid()
        deltas = F.conv2d(x, state["rpn.head.bbox_pred.weight"], state["rpn.head.bbox_pred.bias"])[0].numpy()
        of_level = []
        for row in range(map.shape[2]):
            for column in range(map.shape[3]):
                for a, anchor in enumerate(plain_anchors(stride, size, config.aspect_ratios)):
                    x1, y1, x2, y2 = anchor + stride * np.array([column, row, column, row])
                    dx, dy, dw, dh = deltas[4 * a:4 * a + 4, row, column]
                    w, h = x2 - x1 + 1, y2 - y1 + 1
                    cx, cy = x1 + .5 * w + dx * w, y1 + .5 * h + dy * h
                    w, h = np.exp(min(dw, np.log(1000 / 16))) * w, np.exp(min(dh, np.log(1000 / 16))) * h
                    box = np.clip([cx - .5 * w, cy - .5 * h, cx + .5 * w - 1, cy + .5 * h - 1], 0, [width - 1, height - 1] * 2)
                    of_level.append((logits[a, row, column].item(), box))
        of_level = sorted(of_level, key=lambda pair: -pair[0])[:config.before_nms]
        of_level = [(score, box) for score, box in of_level if (box[2:] - box[:2] + 1 >= config.smallest).all()]
        kept = plain_nms([box for _, box in of_level], np.array([score for score, _ in of_level]), config.overlap)[:config.after_nms]
        boxes += [of_level[row][1] for row in kept]
        scores += [of_level[row][0] for row in kept]
    best = np.argsort(-np.array(scores), kind="stable")[:config.proposals]
    return np.array(boxes)[best]


def plain_pool(map, box, scale, bins, samples):
    "ROIAlign of one box on one map (C, h, w), point by point: (C, bins, bins)."
    pooled, (height, width) = np.zeros((map.shape[0], bins, bins)), map.shape[1:]
    x1, y1, x2, y2 = np.array(box, float) * scale
    step_x, step_y = max(x2 - x1, 1) / bins, max(y2 - y1, 1) / bins
    for row in range(bins):
        for column in range(bins):
            for i in range(samples):
                for j in range(samples):
                    y, x = y1 + step_y * (row + (i + .5) / samples), x1 + step_x * (column + (j + .5) / samples)
                    if not (-1 <= y <= height and -1 <= x <= width): continue
                    y, x = max(y, 0), max(x, 0)
                    top, left = min(int(y), height - 1), min(int(x), width - 1)
                    if top == height - 1: y = top
                    if left == width - 1: x = left
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    v, u = y - top, x - left
                    pooled[:, row, column] += ((1 - v) * (1 - u) * map[:, top, left] + (1 - v) * u * map[:, top, right]
                                               + v * (1 - u) * map[:, bottom, left] + v * u * map[:, bottom, right]) / samples ** 2
    return pooled


def plain_head(state, config, maps, boxes):
    pooled, finest = [], -int(np.log2(config.scales[0]))
    for box in np.array(boxes, float):
        side = np.sqrt((box[2] - box[0] + 1) * (box[3] - box[1] + 1))
        level = int(np.clip(np.floor(4 + np.log2(side / 224 + 1e-6)), finest, finest + len(config.scales) - 1)) - finest
        pooled.append(plain_pool(maps[level][0].double().numpy(), box, config.scales[level], config.bins, config.samples))
    x = torch.tensor(np.array(pooled), dtype=torch.float32).flatten(1)
    def linear(x, name): return F.linear(x, state[f"roi_heads.box.{name}.weight"], state[f"roi_heads.box.{name}.bias"])
    fc6 = F.relu(linear(x, "feature_extractor.fc6"))
    return fc6, linear(F.relu(linear(fc6, "feature_extractor.fc7")), "predictor.cls_score").softmax(1)


def plain_confidences(boxes, probs, overlap=.5):
    confidence = np.zeros(len(boxes))
    for column in range(1, probs.shape[1]):
        for row in plain_nms(boxes, probs[:, column], overlap): confidence[row] = max(confidence[row], probs[row, column])
    return confidence


SMALL = dict(stem=8, out=8, pyramid=8, feature_dim=16, classes=7)
VARIANTS = {
    "R-50, stride in 1x1": (FasterRCNNConfig(groups=1, width=8, **SMALL), "R-50-FPN"),
    "R-101, groups": (FasterRCNNConfig(blocks=(3, 4, 23, 3), groups=4, width=2, stride_in_1x1=False, **SMALL), "R-101-FPN"),
    "R-152, other proposals": (FasterRCNNConfig(
        blocks=(3, 8, 36, 3), groups=2, width=4, stride_in_1x1=False,
        anchor_sizes=(20, 40, 80, 160, 320), aspect_ratios=(.4, 1.0, 1.7, 3.0),
        before_nms=150, after_nms=40, proposals=60, overlap=.5, smallest=3.0, **SMALL), "R-152-FPN"),
    "pooling": (FasterRCNNConfig(groups=2, width=4, bins=5, samples=3, scales=(.125, .0625, .03125), before_nms=200, after_nms=60,
                                 **SMALL), "R-50-FPN")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_detectors_compute_what_plain_code_does(variant, picture):
    config, body = VARIANTS[variant]
    config = config if config.before_nms < 6000 else FasterRCNNConfig(**vars(config) | dict(before_nms=120, after_nms=50))
    state = invent(config).state_dict()
    detector, report = read_detector({f"module.{name}": tensor for name, tensor in state.items()}, as_yaml(config, body), 100, 140)
    assert set(report.status) == {"mapped"} and detector.config == config
    found = detector.detect(picture, regions=20)

    pixels = plain_resize(picture, 140 / 90)  # the longer side rules
    assert pixels.shape == (3, 93, 140)
    with torch.no_grad():
        maps = plain_maps(state, config, F.pad(pixels, (0, 20, 0, 3))[None])
        boxes = plain_proposals(state, config, maps, 93, 140)
        features, probs = plain_head(state, config, maps, boxes)
    confidence = plain_confidences(boxes / (140 / 90), probs.numpy())
    kept = np.argsort(-confidence, kind="stable")[:20]
    assert (confidence > 0).sum() >= 20 and -np.diff(confidence[kept]).min() >= 0
    assert difference(found.boxes, torch.tensor(boxes[kept] / (140 / 90), dtype=torch.float32)) < 1e-4
    assert difference(found.features, features[kept]) < 1e-4
    assert difference(found.class_probs, probs[kept]) < 1e-4

    given = np.array([[0, 0, 89, 59], [10, 5, 40, 50], [70, 20, 70, 20]], float)
    described = detector.describe(picture, given)
    with torch.no_grad(): features, probs = plain_head(state, config, maps, given * [140 / 90, 93 / 60, 140 / 90, 93 / 60])
    assert difference(described.features, features) < 1e-4 and difference(described.class_probs, probs) < 1e-4
    assert np.array_equal(described.boxes, np.float32(given)) and (described.width, described.height) == (90, 60)


def some_boxes(count, rng, side=60):
    low = rng.uniform(0, side, (count, 2))
    return torch.tensor(np.hstack([low, low + rng.uniform(0, side / 2, (count, 2))]), dtype=torch.float32)


@pytest.mark.parametrize("seed", range(5))
def test_suppression_by_blocks_is_suppression_one_by_one(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    boxes, overlap = some_boxes(150, rng), rng.uniform(.2, .9)
    for block in (7, BLOCK):
        monkeypatch.setattr("vl12in1.regions.proposals.BLOCK", block)
        for limit in (1, 20, 999):
            assert suppress(boxes, overlap, limit).tolist() == plain_nms(boxes.double().numpy(), -np.arange(150.), overlap)[:limit]


@pytest.mark.parametrize("seed", range(5))
def test_all_classes_together_are_one_class_after_the_other(seed):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(60, rng, side=15)
    probs = torch.tensor(rng.dirichlet(np.full(9, .3), 60), dtype=torch.float32)
    if seed == 0: probs[:] = probs[0]  # all the same: ties are broken by order
    expected = plain_confidences(boxes.double().numpy(), probs.numpy())
    assert np.array_equal(confidences(boxes, probs), np.float32(expected))
    assert (expected < probs[:, 1:].numpy().max(1)).any()


def test_suppression_of_the_published_size_takes_a_second():
    rng = np.random.default_rng(0)
    boxes = some_boxes(6000, rng, side=1000)
    probs = torch.tensor(rng.dirichlet(np.full(1601, .01), 1000), dtype=torch.float32)
    started = time.process_time()
    assert 500 < len(suppress(boxes, .7, 1000)) <= 1000
    confidences(boxes[:1000], probs)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("box", [
    [-9, -9, -2, -2], [0, 0, 0, 0], [-3, 2, 30, 9], [7.5, 3.25, 8, 19], [10.9, 6.9, 11.5, 7.6], [50, 50, 60, 60]])
def test_pooling_reads_the_same_points_on_and_off_the_map(box):
    map = torch.randn(3, 8, 12)
    pooled = pool(map.flatten(1).T, 12, torch.tensor([box]) * .5, bins=3, samples=2)[0]
    assert np.allclose(pooled.numpy(), plain_pool(map.double().numpy(), box, .5, 3, 2), atol=1e-5)


# --- files

def published(): return torch.load(WEIGHTS, weights_only=True)


def with_attributes(state):
    more = {"cls_embed": (21, 256), "attr_linear1": (512, 288), "attr_linear2": (400, 512)}
    return state | {f"module.roi_heads.box.predictor.{name}.weight": torch.ones(shape) for name, shape in more.items()}


@pytest.mark.parametrize("form", ["module", "bare", "safetensors", "plain", "legacy", "more", "attributes", "no anchors", "half"])
def test_all_forms_of_the_weights(form, tmp_path, picture, detector):
    state, path = published()["model"], tmp_path / "detectron_model.pth"
    if form == "bare": state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if form == "attributes": state = with_attributes(state)
    if form == "no anchors": state = {key: tensor for key, tensor in state.items() if "anchor" not in key}
    if form == "half": state = {key: tensor.double() for key, tensor in state.items()}
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({key: tensor.clone() for key, tensor in state.items()}, path)
    elif form == "plain": torch.save(state, path)
    else:
        more = {"optimizer": {"state": [torch.ones(3)]}, "iteration": 7, "scheduler": {}} if form == "more" else {}
        torch.save({"model": state, **more}, path, _use_new_zipfile_serialization=form != "legacy")
    again, report = read_detector(path, CONFIG, 200, 320)
    assert set(report.index) == set(state) and set(report.status) == {"mapped", "dropped"}
    assert (report.note != "").equals(report.status == "dropped") and (report.status == "mapped").sum() == 293
    assert np.array_equal(again.detect(picture, 5).features, detector.detect(picture, 5).features)


def test_the_width_of_the_pyramid_stands_in_two_places():
    for place in ({"BACKBONE": {"CONV_BODY": "R-50-FPN", "OUT_CHANNELS": 24}},
                  {"BACKBONE": {"CONV_BODY": "R-50-FPN"}, "RESNETS": {"BACKBONE_OUT_CHANNELS": "24"}}):
        assert published_config({"MODEL": place}).pyramid == 24
    silent = published_config({"MODEL": {"BACKBONE": {"CONV_BODY": "R-101-FPN"}}})
    assert silent == FasterRCNNConfig(blocks=(3, 4, 23, 3)) and (silent.pyramid, silent.feature_dim, silent.groups) == (512, 2048, 1)


@pytest.mark.parametrize("key, value, complaint", [
    ("BACKBONE.CONV_BODY", "R-50-C4", "CONV_BODY is 'R-50-C4'; expected one of R-50-FPN"), ("BACKBONE.CONV_BODY", 7, "CONV_BODY is 7"),
    ("RETINANET_ON", True, "RETINANET_ON is True"), ("MASK_ON", True, "MASK_ON is True"), ("KEYPOINT_ON", True, "KEYPOINT_ON is True"),
    ("META_ARCHITECTURE", "Other", "META_ARCHITECTURE is 'Other'"), ("FPN.USE_GN", True, "USE_GN is True"),
    ("RPN.ANCHOR_STRIDE", "(4, 8", "ANCHOR_STRIDE is"), ("RPN.ANCHOR_STRIDE", "(4, 8)", "expected five of each"),
    ("RPN.ANCHOR_SIZES", "(32, 64, 128, 256, -1)", "ANCHOR_SIZES is"), ("RPN.ASPECT_RATIOS", "(0, 1)", "ASPECT_RATIOS is"),
    ("RPN.ASPECT_RATIOS", "(0.5, 1.0)", "anchors|do not fit"),
    ("RPN.ANCHOR_SIZES", "(16, 32, 64, 128, 256)", "not the anchors of the conf"),
    ("RPN.NMS_THRESH", float("nan"), "NMS_THRESH is nan"), ("RPN.PRE_NMS_TOP_N_TEST", 10 ** 12, "expected at most"),
    ("RPN.PRE_NMS_TOP_N_TEST", -1, "PRE_NMS_TOP_N_TEST is -1"), ("ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 10 ** 6, "expected at most 16"),
    ("ROI_BOX_HEAD.POOLER_SCALES", "(0.25, 0.2)", "each is half"), ("ROI_BOX_HEAD.POOLER_RESOLUTION", 3, "fc6.weight: wrong shape"),
    ("RESNETS.NUM_GROUPS", "__import__('os')", "NUM_GROUPS is"), ("RESNETS.STRIDE_IN_1X1", "perhaps", "STRIDE_IN_1X1 is 'perhaps'"),
    ("RESNETS.WIDTH_PER_GROUP", 8, "wrong shape"), ("RESNETS.STEM_OUT_CHANNELS", 2 ** 62, "settings.yaml: no detector can be built"),
    ("ROI_BOX_HEAD.NUM_CLASSES", 1601, "cls_score.weight: wrong shape"), ("BACKBONE.CONV_BODY", "R-101-FPN", "missing"),
    ("ROI_BOX_HEAD", "(" * 900, "wrong shape")])
def test_a_configuration_that_does_not_fit(key, value, complaint, tmp_path):
    import yaml
    content = yaml.safe_load(CONFIG.read_text())
    *above, last = key.split(".")
    place = content["MODEL"]
    for name in above: place = place.setdefault(name, {})
    place[last] = value
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(CheckpointError, match=complaint): read_detector(WEIGHTS, path)


BOMB = "a: &a [" + ", ".join(["x"] * 9) + "]\n" + "".join(
    f"{there}: &{there} [{', '.join([f'*{here}'] * 9)}]\n" for here, there in zip("abcdefghi", "bcdefghij")) + "MODEL: {MASK_ON: *j}\n"


@pytest.mark.parametrize("text", [
    "", "5", "- MODEL", "MODEL: [", BOMB, "[" * 60_000, "{a: " * 5000, "x" * 100_000, "MODEL: !!python/object/apply:os.system [touch x]",
    "MODEL: !!bool maybe", "\0", "MODEL: {a: 1, <<: 5}", "a: &a {b: *a}"])
def test_a_file_that_is_no_configuration(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(CheckpointError, match="^settings.yaml: (cannot be read|MODEL)") as caught:
        read_config("settings.yaml")
    assert len(str(caught.value)) < 500 and time.process_time() - started < 5 and not Path("x").exists()


class Hostile:
    def __reduce__(self): return os.system, ("touch executed",)


def test_weights_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = published()
    torch.save({"model": whole["model"], "more": Hostile()}, "hostile.pth")
    Path("cut.pth").write_bytes(WEIGHTS.read_bytes()[:200_000])
    Path("empty.pth").touch()
    torch.save({"model": {"a": 5}}, "numbers.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"model": {key: torch.ones(1).expand(tensor.shape) for key, tensor in whole["model"].items()}}, "short.pth")
    torch.save({"model": {key: tensor * torch.nan for key, tensor in whole["model"].items()}}, "nan.pth")
    for name, complaint in {"hostile": "asks for .*system", "cut": "cannot be read", "empty": "cannot be read", "nothing": "no such file",
                            "numbers": "not a dictionary of names and tensors", "list": "not a dictionary of names and tensors",
                            "short": "its shape promises", "nan": "finite numbers"}.items():
        with pytest.raises(CheckpointError, match=f"^{name}.pth: .*{complaint}"): read_detector(f"{name}.pth", CONFIG)
    assert not Path("executed").exists()


@pytest.mark.parametrize("change, complaint", [
    (lambda state: state.pop("module.rpn.head.conv.bias"), "rpn.head.conv.bias: missing"),
    (lambda state: state.update(oops=torch.ones(1)), "oops: unexpected"),
    (lambda state: state.update({"rpn.head.conv.bias": torch.ones(16)}), "rpn.head.conv.bias: unexpected"),  # a second spelling
    (lambda state: state.update({"module.backbone.body.stem.bn1.weight": torch.ones(9)}), r"wrong shape \(9,\) instead of \(8,\)"),
    (lambda state: state.update({"module.rpn.anchor_generator.cell_anchors.2": torch.ones(3, 4)}), "cell_anchors.2 are not the anchors")])
def test_tensors_that_do_not_fit(change, complaint):
    state = published()["model"]
    change(state)
    with pytest.raises(CheckpointError, match=complaint): read_detector({"model": state}, CONFIG)


def test_weights_that_compute_no_numbers_say_so(picture):
    state = published()["model"]
    state["module.backbone.body.stem.bn1.running_var"][0] = 0
    detector, _ = read_detector(state, CONFIG, 64, 96)
    with pytest.raises(ArithmeticError, match="no finite numbers"): detector.describe(picture, [[0, 0, 30, 30]])


@pytest.mark.parametrize("sizes", [(0, 5), (100, 50)])
def test_sizes_of_pictures_that_are_none(sizes):
    with pytest.raises(ValueError, match="expected 1 <= min_size <= max_size"): read_detector(WEIGHTS, CONFIG, *sizes)


def test_the_weights_name_their_neighbours(tmp_path):
    (tmp_path / "detectron_model.pth").write_bytes(WEIGHTS.read_bytes())
    with pytest.raises(ValueError, match="need their configuration beside them.*there: none"):
        open_published(tmp_path / "detectron_model.pth")
    (tmp_path / "detectron_config.yaml").write_text(CONFIG.read_text())
    assert open_published(tmp_path / "detectron_model.pth").class_names[20] == "class 20"
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 21)]
    (tmp_path / "visual_genome_categories.json").write_text(json.dumps({"categories": categories}))
    opened = open_published(tmp_path / "detectron_model.pth")
    assert opened.class_names[20] == "thing 20" and opened.min_size == 800
    with pytest.raises(CheckpointError, match="3 class names with the background; the configuration has 21 classes"):
        read_detector(WEIGHTS, CONFIG, class_names=["background", "a", "b"])


def test_names_of_what_is_shown(detector, picture, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps([f"thing {i}" for i in range(20)]))
    named, _ = read_detector(WEIGHTS, CONFIG, 64, 96, class_names=read_class_names(tmp_path / "names.json"))
    regions = named.detect(picture, regions=4)
    for (name, probability), probs in zip(region_names(regions, named.class_names), regions.class_probs, strict=True):
        assert name == f"thing {probs[1:].argmax()}" and probability == probs[1:].max()
    with pytest.raises(ValueError, match="no probabilities of 3 classes"): region_names(regions, ["a", "b", "c"])


# --- pictures

def test_all_forms_of_a_picture_are_one_picture(detector, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = detector.detect(picture, regions=5)
    assert (expected.width, expected.height) == (90, 60) and expected.features.dtype == np.float32
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture), Image.fromarray(picture).convert("RGBA")):
        assert np.array_equal(detector.detect(form, regions=5).features, expected.features)
    one, other = detector.detect([picture, picture[:30]], 5)
    assert np.array_equal(one.features, expected.features) and other.height == 30  # whatever is beside it


@pytest.mark.parametrize("mode, as_rgb", [("L", "L"), ("P", "P"), ("CMYK", "CMYK"), ("1", "1"), ("LA", "LA"), ("I;16", "L")])
def test_pictures_of_other_modes(mode, as_rgb, detector, picture, tmp_path):
    image = Image.fromarray(picture)
    if mode == "I;16":
        Image.fromarray(np.uint16(image.convert("L")) * 256).save(tmp_path / "a.png")
        expected = np.asarray(image.convert("L").convert("RGB"))
    else:
        image.convert(mode).save(path := tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
        expected = np.asarray(Image.open(path).convert("RGB"))
        path.rename(tmp_path / "a.png")
    assert np.array_equal(detector.detect(tmp_path / "a.png", 5).features, detector.detect(expected, 5).features)
    if mode == "L": assert np.array_equal(detector.detect(expected[..., 0], 5).features, detector.detect(expected, 5).features)


def test_what_a_camera_says_about_turning_is_left_alone(detector, picture, tmp_path):
    image, exif = Image.fromarray(picture), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    regions = detector.detect(tmp_path / "turned.png", 3)
    assert (regions.width, regions.height) == (90, 60)
    assert np.array_equal(regions.features, detector.detect(picture, 3).features)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (10, 20_000), (20_000, 10), (3000, 3000), (799, 801)])
def test_pictures_of_any_size(shape, detector):
    regions = detector.detect(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), regions=10)
    assert 1 <= len(regions.boxes) <= 10 and np.isfinite(regions.features).all()
    assert (regions.boxes >= 0).all() and (regions.boxes <= np.array([shape[1], shape[0]] * 2)).all()


@pytest.mark.parametrize("picture", [np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None, 5])
def test_what_is_no_picture(picture, detector):
    with pytest.raises(ValueError, match="picture"): detector.detect(picture)


def test_files_that_are_no_pictures(detector, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    for name in ("cut.png", "text.jpg", "bomb.png", "nothing.png"):
        with pytest.raises(OSError, match=f"{name}: cannot be read as a picture"): detector.detect(tmp_path / name)


@pytest.mark.parametrize("boxes", [[[5, 5, 2, 9]], [[0, 0, np.nan, 3]], [[0, 0, np.inf, 3]]])
def test_boxes_that_are_none(boxes, detector, picture):
    with pytest.raises(ValueError, match="a box is no box"): detector.describe(picture, boxes)


def test_boxes_are_described_in_their_order_and_none_gives_none(detector, picture):
    boxes = [[0, 0, 89, 59], [10, 10, 20, 20], [3, 3, 3, 3]]
    one, other = detector.describe(picture, boxes), detector.describe(picture, boxes[::-1])
    assert np.allclose(one.features, other.features[::-1], atol=1e-5) and len(detector.describe(picture, []).features) == 0


def test_what_was_found_is_described_alike(detector):
    square = np.random.default_rng(1).integers(0, 256, (100, 100, 3), dtype=np.uint8)  # both sides are enlarged alike
    found = detector.detect(square, regions=10)
    assert difference(detector.describe(square, found.boxes).features, found.features) < 1e-4


def test_half_precision_is_near_and_only_on_request(picture):
    detector, _ = read_detector(WEIGHTS, CONFIG, 200, 320)
    exact = detector.describe(picture, [[0, 0, 50, 50]])
    half = detector.to(torch.bfloat16).describe(picture, [[0, 0, 50, 50]])
    assert 0 < difference(half.features, exact.features) < .1 and detector.record("given")["settings"]["precision"] == "bfloat16"
    assert len(detector.detect(picture, 5).boxes) == 5


# --- stores

def test_a_store_says_which_detector_saw_its_regions(detector, tmp_path):
    rng, images = np.random.default_rng(0), {}
    for i, shape in enumerate([(60, 90), (90, 60), (40, 40)]):
        images[f"coco:{i}"] = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(images[f"coco:{i}"])
    store = extract(detector, images, tmp_path / "detected", batch_size=2)
    given = extract_given(detector, images, {"coco:1": np.array([[0, 0, .5, .5], [.2, .2, .3, .3]])}, tmp_path / "given")
    check_pair(store, given)
    seen = detector.detect(images["coco:1"])
    assert np.array_equal(store["coco:1"].features, np.float16(seen.features)) and len(given["coco:1"].boxes) == 2
    flat = seen.boxes[:, 2:] == seen.boxes[:, :2]
    assert np.array_equal(store["coco:1"].boxes[~flat.any(1)], seen.boxes[~flat.any(1)])
    assert np.allclose(given["coco:1"].boxes[1], [12, 18, 18, 27])
    assert store.manifest["extractor"]["settings"]["groups"] == 4
    state = published()["model"]
    state["module.rpn.head.conv.bias"] += 1
    other = extract(read_detector(state, CONFIG, 200, 320)[0], images, tmp_path / "other")
    with pytest.raises(Exception, match="sha256 differ"): check_pair(other, given)


# --- memory and time

def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_ten_pictures_take_no_more_memory_than_two(detector):
    rng, sizes = np.random.default_rng(0), []
    for _ in range(10):
        detector.detect(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
        sizes.append(resident())
    assert max(sizes[2:]) - sizes[1] < 2 ** 25
