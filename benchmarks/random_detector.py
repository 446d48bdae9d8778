"""A detector of any size with random weights, and its configuration in the published form: what tests and benchmarks look with."""
import torch

from vl12in1.regions.faster_rcnn import FasterRCNN
from vl12in1.regions.pyramid import FasterRCNNConfig

X152 = FasterRCNNConfig(blocks=(3, 8, 36, 3), groups=32, width=8, stride_in_1x1=False)  # the published body, ResNeXt-152


@torch.no_grad()
def invent(config, seed=0) -> FasterRCNN:
    "A detector with random weights, scaled so that it hesitates between proposals and is sure of some classes."
    torch.manual_seed(seed)
    detector = FasterRCNN(config).eval()
    for name, tensor in detector.state_dict().items():
        if "running_var" in name: tensor.uniform_(.5, 1.5)
        elif name.endswith(("bn3.weight", "downsample.1.weight")): tensor.uniform_(.3, .6)
        elif tensor.ndim == 1: tensor.normal_(.5 if name.endswith("weight") else 0, .1)
        else: tensor.normal_(0, (2 / tensor[0].numel()) ** .5)
    maps = detector.backbone.fpn(detector.backbone.body(60 * torch.randn(1, 3, 96, 128)))
    head, box = detector.rpn.head, detector.roi_heads.box
    x = torch.cat([head.conv(map).relu().flatten(2) for map in maps], dim=2)[..., None]
    for layer, spread in ((head.cls_logits, 2), (head.bbox_pred, .4)): layer.weight.mul_(spread / layer(x).std())
    boxes = torch.tensor([[x, y, x + 30, y + 20] for x in range(0, 90, 30) for y in range(0, 70, 20)], dtype=torch.float32)
    logits = box.predictor.cls_score(box.feature_extractor.fc7(box(maps, boxes)[0]).relu())
    box.predictor.cls_score.weight.mul_(2 / (logits - logits.mean(0)).std())
    return detector


def as_yaml(config: FasterRCNNConfig, body: str, attr=False) -> dict:
    "The content of a published file, tuples as text."
    return {"MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN", "BACKBONE": {"CONV_BODY": body},
        "RESNETS": {"NUM_GROUPS": config.groups, "WIDTH_PER_GROUP": config.width, "STRIDE_IN_1X1": config.stride_in_1x1,
                    "STEM_OUT_CHANNELS": config.stem, "RES2_OUT_CHANNELS": config.out, "BACKBONE_OUT_CHANNELS": config.pyramid},
        "RPN": {"USE_FPN": True, "ANCHOR_SIZES": str(config.anchor_sizes), "ASPECT_RATIOS": str(config.aspect_ratios),
                "ANCHOR_STRIDE": str(config.anchor_strides), "PRE_NMS_TOP_N_TEST": config.before_nms,
                "POST_NMS_TOP_N_TEST": config.after_nms, "FPN_POST_NMS_TOP_N_TEST": config.proposals, "NMS_THRESH": config.overlap,
                "MIN_SIZE": config.smallest},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": config.bins, "POOLER_SCALES": str(config.scales), "POOLER_SAMPLING_RATIO": config.samples,
                         "MLP_HEAD_DIM": config.feature_dim, "NUM_CLASSES": config.classes, "ATTR": attr}}}
