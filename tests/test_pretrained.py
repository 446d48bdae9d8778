"""Regions from models of `transformers`: small random ones, saved in folders, no network. And pictures of any kind."""
import itertools
import json
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from fuzz import tries
from vl12in1.regions import Regions, RegionStore, StoreError, verify
from vl12in1.regions import extraction
from vl12in1.regions.detector import read_picture
from vl12in1.regions.extraction import check_pair, extract, extract_given, picture_batches
from vl12in1.regions.pretrained import (PretrainedBackbone, PretrainedDetector, Preprocessing, cell_size,
                                        class_distribution, grid_boxes, pool_average, query_boxes)

transformers = pytest.importorskip("transformers", reason="the extra vl12in1[bert] is not installed")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
pytestmark = [pytest.mark.filterwarnings("ignore:.*not the paper's features"),
              pytest.mark.filterwarnings("ignore:Truncated File Read")]

QUERIES, NAMES = 15, {0: "ball", 1: "box", 2: "mug"}
FREE, SQUARE = {"shortest_edge": 64, "longest_edge": 96}, {"height": 64, "width": 64}


def resnet(*stages):
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1] * 4, layer_type="basic",
                                     out_features=[f"stage{stage}" for stage in stages])


DETR = dict(use_timm_backbone=False, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=QUERIES, id2label=NAMES)
RT = dict(encoder_hidden_dim=16, encoder_in_channels=[8, 12, 16], feat_strides=[8, 16, 32], encoder_ffn_dim=16,
          encoder_attention_heads=2, d_model=16, num_queries=QUERIES, decoder_in_channels=[16] * 3, decoder_layers=2,
          decoder_ffn_dim=16, decoder_attention_heads=2, id2label=NAMES)
VIT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
# name -> what of transformers, its settings, size, class head of the last layer's states (None: not compared)
DETECTORS = {
    "detr": ("Detr", lambda: DETR | dict(backbone_config=resnet(4)), FREE, lambda m: m.class_labels_classifier),
    "conditional": ("ConditionalDetr", lambda: DETR | dict(backbone_config=resnet(4)), FREE,
                    lambda m: m.class_labels_classifier),
    "deformable": ("DeformableDetr", lambda: DETR | dict(backbone_config=resnet(2, 3, 4), num_feature_levels=4,
                                                         d_model=64), FREE, lambda m: m.class_embed[-1]),
    "rt": ("RTDetr", lambda: RT | dict(backbone_config=resnet(2, 3, 4)), SQUARE,
           lambda m: m.model.decoder.class_embed[-1]),
    "yolos": ("Yolos", lambda: VIT | dict(image_size=[64, 96], patch_size=16, num_detection_tokens=QUERIES,
                                          id2label=NAMES), FREE, lambda m: m.class_labels_classifier)}
BACKBONES = {
    "vit": ("ViT", VIT | dict(image_size=32, patch_size=16), FREE),
    "dinov2": ("Dinov2", VIT | dict(image_size=28, patch_size=14), {"shortest_edge": 70}),
    "registers": ("Dinov2WithRegisters", VIT | dict(image_size=28, patch_size=14, num_register_tokens=4), FREE),
    "swin": ("Swin", dict(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 2], num_heads=[1, 2, 2],
                          window_size=4), SQUARE),
    "resnet": ("ResNet", dict(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"), FREE),
    "convnext": ("ConvNext", dict(hidden_sizes=[8, 12, 16], depths=[1, 1, 1], num_stages=3), FREE),
    "clip": ("CLIPVision", VIT | dict(image_size=32, patch_size=16, projection_dim=8), SQUARE)}


def save(folder, model, size):
    "Write the model as those on the hub are, with no two weights alike."
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters(): weight += (.3 if weight.ndim == 2 else .05) * torch.randn_like(weight)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"size": size, "image_mean": [.5, .4, .3], "image_std": [.2, .3, .25], "rescale_factor": 1 / 255}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "name -> folder of a small model."
    root, found = tmp_path_factory.mktemp("models"), {}
    torch.manual_seed(0)
    for name, (kind, config, size, _) in DETECTORS.items():
        model = getattr(transformers, f"{kind}ForObjectDetection")(getattr(transformers, f"{kind}Config")(**config()))
        found[name] = save(root / name, model, size)
    for name, (kind, config, size) in BACKBONES.items():
        model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))
        found[name] = save(root / name, model, size)
    return found


def fresh(folders, name, **options):
    return (PretrainedDetector if name in DETECTORS else PretrainedBackbone).open(folders[name], **options)


networks = {}


def opened(folders, name, **options):
    "As `fresh`, from a network that other tests have used before."
    if name not in networks: networks[name] = fresh(folders, name)
    return replace(networks[name], **options)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in [(6, 8), (9, 7), (6, 8), (3, 30), (5, 5)]]
    return [np.asarray(Image.fromarray(each).resize((each.shape[1] * 9, each.shape[0] * 9))) for each in small]


@pytest.fixture
def images(pictures, tmp_path):
    "key -> file, more than there are pictures in a batch."
    files = {f"coco:{number}": tmp_path / f"{number}.png" for number in range(11)}
    for number, file in enumerate(files.values()):
        Image.fromarray(np.roll(pictures[number % len(pictures)], number, axis=1)).save(file)
    return files


def assert_close(one: Regions, other: Regions, tolerance=1e-4):
    scale = max(1, np.abs(other.features).max())
    np.testing.assert_allclose(one.features, other.features, atol=tolerance * scale)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=tolerance * max(other.width, other.height))
    if other.class_probs is not None: np.testing.assert_allclose(one.class_probs, other.class_probs, atol=tolerance)
    assert (one.width, one.height) == (other.width, other.height)


# what is detected

@pytest.mark.parametrize("features", ["pooled", "decoder"])
@pytest.mark.parametrize("name", DETECTORS)
def test_detected_regions_are_valid_and_do_not_depend_on_the_batch(folders, pictures, name, features):
    detector = opened(folders, name, features=features, regions=12)
    together = detector.detect(pictures)
    for picture, regions in zip(pictures, together):
        height, width = picture.shape[:2]
        assert (regions.width, regions.height) == (width, height)
        assert regions.boxes.shape == (12, 4) and len(regions.features) == 12
        assert (regions.boxes >= 0).all() and (regions.boxes <= [width, height] * 2).all()
        assert (regions.boxes[:, 2:] - regions.boxes[:, :2] > .49).all()
        np.testing.assert_allclose(regions.class_probs.sum(1), 1, atol=1e-5)
        assert regions.class_probs.shape == (12, 4) and (np.diff(regions.class_probs[:, 1:].max(1)) <= 0).all()
        assert_close(detector.detect([picture])[0], regions)
    assert np.abs(together[0].features - together[2].features).max() > 1e-3  # of one size, but two pictures


@pytest.mark.parametrize("name", DETECTORS)
def test_decoder_states_and_boxes_belong_to_their_classes(folders, pictures, name):
    "The model's own class head reads the stored probabilities off the stored features; a query keeps its box."
    detector = opened(folders, name, features="decoder", regions=12)
    regions = detector.detect(pictures)[1]
    head = DETECTORS[name][3](detector.network.model)
    with torch.no_grad(): logits = head(torch.from_numpy(regions.features))
    np.testing.assert_allclose(class_distribution(logits, 3), regions.class_probs, atol=1e-4)
    seen = detector.network(pictures[1:2])[0]
    for feature, box in zip(regions.features, regions.boxes):
        query = (seen["states"] - torch.from_numpy(feature)).abs().sum(1).argmin()
        corners = query_boxes(seen["boxes"][query][None], regions.width, regions.height)
        np.testing.assert_allclose(corners[0], box, atol=.01)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_convention_of_the_classes_is_that_of_the_model(folders, name):
    detector = opened(folders, name)
    outputs = detector.network(np.zeros((1, 64, 64, 3), np.uint8))[0]["logits"].shape[1]
    assert outputs - len(NAMES) == (name in ("detr", "yolos"))
    assert detector.class_names == ["background", "ball", "box", "mug"]


@pytest.mark.parametrize("name", [*DETECTORS, *BACKBONES])
def test_what_is_found_and_then_described_is_described_alike(folders, pictures, name):
    detector = opened(folders, name)
    found = detector.detect(pictures)
    described = detector.describe(pictures, [regions.boxes for regions in found])
    for one, other in zip(described, found):
        assert one.class_probs is None
        assert_close(one, Regions(other.features, other.boxes, other.width, other.height))


@pytest.mark.parametrize("name", [*DETECTORS, *BACKBONES])
def test_features_are_of_the_place_that_the_box_is_at(folders, name):
    "What colour one quarter of a picture has shows in the features of that quarter the most, if no token sees others."
    detector, rng = fresh(folders, name), np.random.default_rng(1)
    with torch.no_grad():
        for key, weight in detector.network.model.named_parameters(): weight *= 0 if "att" in key else 1
    detector.network.preprocessing = replace(detector.network.preprocessing, size={"width": 448, "height": 224})
    quarters = grid_boxes(2) * [448, 224, 448, 224]
    for quarter, (x1, y1, x2, y2) in enumerate(quarters.astype(int)):
        pictures = np.full((4, 224, 448, 3), 120, np.uint8)
        pictures[1:, y1 + 8:y2 - 8, x1 + 8:x2 - 8] = rng.integers(0, 256, (3, 1, 1, 3))
        plain, *coloured = (regions.features for regions in detector.describe(list(pictures), [quarters] * 4))
        assert np.linalg.norm(np.stack(coloured) - plain, axis=2).mean(0).argmax() == quarter


@pytest.mark.parametrize("name", [*DETECTORS, "vit", "swin"])
def test_half_precision_sees_about_the_same(folders, pictures, name):
    exact, half = opened(folders, name), fresh(folders, name, dtype=torch.float16)
    boxes = [grid_boxes(3) * (picture.shape[1::-1] * 2) for picture in pictures]
    for one, other in zip(half.describe(pictures, boxes), exact.describe(pictures, boxes)):
        assert_close(one, other, .05)
    assert np.isfinite(half.detect(pictures)[0].features).all()
    assert half.record("detected")["settings"]["precision"] == "float16"


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_sees_all_of_the_picture_in_any_batch(folders, pictures, name):
    backbone = opened(folders, name, grid=3)
    for picture, regions in zip(pictures, backbone.detect(pictures)):
        np.testing.assert_allclose(regions.boxes, grid_boxes(3) * (picture.shape[1::-1] * 2), rtol=1e-5)
        assert_close(backbone.detect([picture])[0], regions)
        rows, columns = backbone.network([picture])[0]["map"].shape[1:]
        width, height = backbone.network.preprocessing.resized(picture, cell_size(backbone.network.model.config))
        assert rows * width == columns * height and rows * columns > 1


def test_a_detector_lends_its_backbone(folders, pictures):
    one = PretrainedBackbone.open(folders["detr"]).detect(pictures)
    boxes = [regions.boxes for regions in one]
    for regions, other in zip(PretrainedDetector.open(folders["detr"]).describe(pictures, boxes), one):
        assert_close(regions, other)


# arithmetic

boxes_inside = st.tuples(*[st.floats(0, .9)] * 2, *[st.floats(1e-3, 1)] * 2).map(
    lambda b: [b[0], b[1], b[0] + (1 - b[0]) * b[2], b[1] + (1 - b[1]) * b[3]])


@given(st.lists(boxes_inside, min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 9))
@tries(30)
def test_the_average_of_a_constant_is_constant_and_never_leaves_the_range(boxes, height, width):
    boxes = torch.tensor(boxes)
    torch.testing.assert_close(pool_average(torch.full((2, height, width), 3.), boxes), torch.full((len(boxes), 2), 3.))
    map = torch.rand(4, height, width)
    pooled = pool_average(map, boxes)
    assert (pooled >= map.amin((1, 2)) - 1e-4).all() and (pooled <= map.amax((1, 2)) + 1e-4).all()


def test_the_average_is_that_of_very_many_points():
    map = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[.1, .15, .9, .8], [.2, .3, .25, .31], [.5, .1, .75, .9]])
    steps = (torch.arange(500) + .5) / 500
    for box, pooled in zip(boxes, pool_average(map, boxes)):
        x, y = (2 * (box[low] + (box[low + 2] - box[low]) * steps) - 1 for low in (0, 1))
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        torch.testing.assert_close(pooled, F.grid_sample(map[None], points, align_corners=False)[0].mean((1, 2)),
                                   atol=1e-4, rtol=0)


@given(boxes_inside)
@tries(30)
def test_the_average_of_coordinates_is_the_middle(box):
    rows, columns = torch.meshgrid((torch.arange(12) + .5) / 12, (torch.arange(10) + .5) / 10, indexing="ij")
    inner = torch.tensor([box]) * .8 + .1  # beyond the centres of the outer cells, the map goes on as it is there
    middle = (inner[:, :2] + inner[:, 2:]) / 2
    torch.testing.assert_close(pool_average(torch.stack([columns, rows]), inner), middle, atol=2e-4, rtol=0)


def test_sigmoids_become_a_distribution_given_that_at_most_one_holds():
    logits = torch.tensor([1.3, -.4, -2.])
    chance = {}
    for holds in itertools.product([0, 1], repeat=3):
        place = holds.index(1) + 1 if sum(holds) else 0
        signs = 2 * torch.tensor(holds) - 1
        if sum(holds) <= 1: chance[place] = (signs * logits).sigmoid().prod()
    expected = torch.stack([chance[place] for place in range(4)]) / sum(chance.values())
    torch.testing.assert_close(class_distribution(logits[None], 3)[0], expected)
    torch.testing.assert_close(class_distribution(logits[None], 2)[0], logits.softmax(0)[[2, 0, 1]])


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1), st.integers(1, 3000), st.integers(1, 3000))
@tries(30)
def test_boxes_of_queries_are_inside_and_have_an_area(boxes, width, height):
    corners = query_boxes(torch.tensor(boxes), width, height)
    assert (corners >= 0).all() and (corners <= torch.tensor([width, height] * 2)).all()
    assert (corners[:, 2:] - corners[:, :2] > .49).all()


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([14, 16, 32]))
@tries(30)
def test_pictures_are_resized_to_whole_cells_of_a_bounded_number(width, height, step):
    preprocessing = Preprocessing.of({"size": {"shortest_edge": 256}, "do_normalize": False})
    picture = np.broadcast_to(np.uint8(0), (height, width, 3))
    found = preprocessing.resized(picture, step)
    assert all(side % step == 0 and 0 < side <= 512 + step for side in found)
    if 1 / 2 < width / height < 2: assert abs(min(found) - 256) <= step / 2


@pytest.mark.parametrize("size, expected", [
    (224, (224, 224)), ({"height": 30, "width": 50}, (50, 30)), ({"shortest_edge": 64, "longest_edge": 80}, (80, 64))])
def test_sizes_as_old_and_new_files_have_them(size, expected):
    preprocessing = Preprocessing.of({"size": size, "image_mean": [0] * 3, "image_std": [1] * 3})
    assert preprocessing.resized(np.zeros((400, 500, 3)), step=16) == expected


def test_pixels_are_those_of_the_librarys_own_processor(pictures):
    size = {"height": 48, "width": 64}
    own = transformers.ViTImageProcessorPil(size=size, image_mean=[.5, .4, .3], image_std=[.2] * 3)
    expected = own(pictures, return_tensors="pt").pixel_values
    found = Preprocessing.of(own.to_dict()).pixels(pictures, (64, 48))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# extraction

def test_an_interrupted_extraction_goes_on_to_the_same_bytes(folders, images, tmp_path, monkeypatch):
    detector, look = opened(folders, "detr"), PretrainedDetector.detect
    extract(detector, images, tmp_path / "whole", batch_size=2)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for number, calls in enumerate((1, 2, 4)):
        left = iter(range(calls))
        def until(self, pictures):
            if next(left, None) is None: raise KeyboardInterrupt
            return look(self, pictures)
        with monkeypatch.context() as patch:
            patch.setattr(PretrainedDetector, "detect", until)
            with pytest.raises(KeyboardInterrupt): extract(detector, images, tmp_path / str(number), batch_size=2)
            with pytest.raises(StoreError, match="no manifest.json"): RegionStore.open(tmp_path / str(number))
        read = []
        with monkeypatch.context() as patch:
            patch.setattr(extraction, "read_picture", lambda path: read.append(path) or read_picture(path))
            extract(detector, images, tmp_path / str(number), batch_size=2)
        assert len(read) == len(images) - 2 * calls
        assert {path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()} == files


def test_half_a_batch_is_computed_again_in_its_company(images):
    order = list(picture_batches(images, batch_size=3, ahead=2))
    done = {*order[0][0], order[1][0][0], *order[3][0]}
    rest = list(picture_batches(images, batch_size=3, ahead=2, done=done))
    assert [keys for keys, _ in rest] == [keys for keys, _ in order[1:3]]
    assert sorted(key for keys, _ in order for key in keys) == sorted(images)


def test_no_picture_is_touched_if_all_are_done(images):
    for file in images.values(): file.unlink()
    assert list(picture_batches(images, batch_size=3, done=images)) == []


def test_another_model_does_not_continue(folders, images, tmp_path):
    broken = {**images, "coco:99": tmp_path / "no.jpg"}
    with pytest.raises(OSError, match="no.jpg: cannot be read"):
        extract(opened(folders, "detr"), broken, tmp_path / "store", batch_size=1)
    with pytest.raises(StoreError, match="delete the folder"):
        extract(opened(folders, "conditional"), images, tmp_path / "store", batch_size=1)


def test_stores_say_what_made_them(folders, images, tmp_path):
    detector = opened(folders, "yolos")
    detected = extract(detector, images, tmp_path / "detected")
    boxes = {key: np.array([[0, 0, .5, 1], [.2, .3, .9, .8]]) for key in images}
    given = extract_given(detector, images, boxes, tmp_path / "given")
    for store in (detected, given):
        verify(store.folder)
        said = store.manifest["extractor"]["settings"]
        assert "not the paper's features" in said["notice"] and len(said["sha256"]) == 64
        assert (said["source"], said["model"], said["features"]) == ("yolos", "YolosForObjectDetection", "pooled")
        assert said["preprocessing"]["size"] == FREE and said["precision"] == "float32"
        assert str(folders["yolos"]) not in json.dumps(store.manifest)
    assert detected.manifest["class_names"][0] == "background" and given.manifest["class_names"] == []
    check_pair(detected, given)
    other = extract_given(opened(folders, "detr"), images, boxes, tmp_path / "other")
    with pytest.raises(StoreError, match="given|detected.*sha256.*differ"): check_pair(detected, other)


def test_decoder_states_of_given_boxes_are_refused_at_once(folders, images, tmp_path):
    detector = opened(folders, "detr", features="decoder")
    with pytest.raises(ValueError, match="features='pooled'"):
        extract_given(detector, images, {"coco:1": np.array([[0, 0, 1, 1]])}, tmp_path / "given")
    assert not (tmp_path / "given").exists()
    with pytest.raises(ValueError, match="features='pooled'"): detector.describe([], [])
    decoded, pooled = (extract(each, images, tmp_path / each.features) for each in (detector, opened(folders, "detr")))
    with pytest.raises(StoreError, match="features differ"): check_pair(decoded, pooled)


def test_a_given_box_without_area_is_named(folders, images, tmp_path):
    with pytest.raises(StoreError, match="image 'coco:1': a box without area"):
        extract_given(opened(folders, "vit"), images, {"coco:1": np.array([[.2, .2, .2, .5]])}, tmp_path / "given")


def test_memory_that_is_too_small_halves_the_batch(folders, pictures, monkeypatch):
    network = fresh(folders, "vit").network
    look, sizes = network.look, []
    def limited(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 1: raise torch.OutOfMemoryError
        return look(pixels)
    monkeypatch.setattr(network, "look", limited)
    assert len(network(pictures[:1] * 4)) == 4 and sizes == [4, 2, 1, 1, 1, 1]
    sizes.clear()
    network(pictures[:1] * 3)
    assert sizes == [1, 1, 1]  # it is remembered
    monkeypatch.setattr(network, "look", lambda pixels: limited(torch.zeros(2)))
    with pytest.raises(torch.OutOfMemoryError): network(pictures[:1])


# models that cannot be used

def copied(folders, name, folder):
    folder.mkdir()
    for file in folders[name].iterdir(): (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_opening_warns_and_asks_nobody(folders, monkeypatch):
    def no_network(*_, **__): raise AssertionError("asks the network")
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.warns(UserWarning, match="detr: not the paper's features"): PretrainedDetector.open(folders["detr"])
    with pytest.warns(UserWarning, match="vit: not the paper's features"): PretrainedBackbone.open(folders["vit"])


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_file_that_is_missing(folders, tmp_path, lacking):
    folder = copied(folders, "detr", tmp_path / "model")
    (folder / lacking).unlink()
    with pytest.raises(ValueError, match="model: no AutoModelForObjectDetection can be read here.*Give a folder with"):
        PretrainedDetector.open(folder)


def test_damaged_weights(folders, tmp_path):
    folder = copied(folders, "detr", tmp_path / "model")
    weights = folder / "model.safetensors"
    tensors, whole = load_file(weights), weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="model: no AutoModelForObjectDetection can"): PretrainedDetector.open(folder)
    name = "class_labels_classifier.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing, such as {name}"): PretrainedDetector.open(folder)
    save_file({**tensors, name: tensors[name][:2]}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="model: no AutoModelForObjectDetection can"): PretrainedDetector.open(folder)


def test_models_of_the_wrong_kind(folders, tmp_path):
    with pytest.raises(ValueError, match="vit: no AutoModelForObjectDetection can be read"):
        PretrainedDetector.open(folders["vit"])
    bert = transformers.BertModel(transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    folder = save(tmp_path / "bert", bert, SQUARE)
    with pytest.raises(ValueError, match="a bert sees no pictures"): PretrainedBackbone.open(folder)
    with pytest.raises(ValueError, match="no such folder"): PretrainedBackbone.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no AutoModel can be read"): PretrainedBackbone.open(str(tmp_path / "nothing"))


def test_wrong_wishes(folders):
    with pytest.raises(ValueError, match="'pooled' or 'decoder'"): PretrainedDetector.open(folders["detr"], "encoder")
    with pytest.raises(ValueError, match="at least 10"): PretrainedDetector.open(folders["detr"], regions=5)


def test_a_classifier_without_pooler_lends_its_backbone(tmp_path, pictures):
    config = transformers.ViTConfig(**VIT, image_size=32, patch_size=16, num_labels=4)
    folder = save(tmp_path / "vit", transformers.ViTForImageClassification(config), FREE)
    assert PretrainedBackbone.open(folder, grid=2).detect(pictures)[0].features.shape == (4, 16)


# pictures

@pytest.mark.parametrize("mode, suffix, expected", [
    ("L", "png", 200), ("LA", "png", 200), ("RGBA", "png", 200), ("P", "gif", 200), ("CMYK", "jpg", 200),
    ("CMYK", "tif", 200), ("I;16", "png", 200), ("I;16", "tif", 200), ("I", "tif", 200), ("YCbCr", "jpg", 200)])
def test_pictures_of_any_mode_become_rgb(tmp_path, mode, suffix, expected):
    picture, file = Image.new("RGB", (30, 20), (200, 200, 200)), tmp_path / f"a.{suffix}"
    if mode.startswith("I"): Image.fromarray(np.full((20, 30), 200 * 257, np.uint16)).convert(mode).save(file)
    else: (picture.quantize(8) if mode == "P" else picture.convert(mode)).save(file)
    found = read_picture(file)
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 4


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        assert read_picture(tmp_path / f"a.{suffix}")[10, 10, 0] > 240


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: b"not a picture", lambda whole: whole[:-200],
                                    lambda whole: whole[:60]])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif"])
def test_a_damaged_picture_is_named(tmp_path, suffix, damage):
    file = tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(OSError, match=f"broken.{suffix}: cannot be read as a picture"): read_picture(file)
    with pytest.raises(OSError, match=f"broken.{suffix}: cannot be read as a picture"):
        list(picture_batches({"coco:1": file}, batch_size=1))
