"""The whole server against `Sam3Model` and its processor's own post-processing, on the same drawn frames: same
detections, boxes, scores and masks."""

import numpy as np
import pytest
from PIL import Image

from clients.connection import Client
from ensemble.preprocess.cpu import to_pixel_values
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import render

pytestmark = pytest.mark.server

FRAMES = [
    render(random_scene(seed), *size)
    for seed, size in zip(validation_seeds(4), [(252, 252), (360, 640), (480, 360), (300, 400)], strict=True)
]


@pytest.fixture(scope="module")
def reference(checkpoint):
    """(frame, class, boxes, labels) -> (scores, boxes xyxy in 0..1, masks bool [D,4p,4p]), by transformers alone. The
    latest frame's features serve all classes that are asked of it, as transformers documents it."""
    import torch
    from transformers import Sam3Model, Sam3Processor

    model = Sam3Model.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = Sam3Processor.from_pretrained(checkpoint)
    features = {}

    def run(frame, name, boxes=None, labels=None):
        shown = {} if boxes is None else {"input_boxes": [boxes], "input_boxes_labels": [labels]}
        inputs = processor(images=Image.fromarray(frame), text=name, return_tensors="pt", **shown)
        pixels, key = inputs.pop("pixel_values"), frame.tobytes()
        with torch.inference_mode():
            if key not in features:
                features.clear()
                features[key] = model.get_vision_features(pixel_values=pixels)
            outputs = model(vision_embeds=features[key], **inputs)
        found = processor.post_process_instance_segmentation(outputs, threshold=0.5, mask_threshold=0.5)[0]
        return found["scores"].numpy(), found["boxes"].numpy(), found["masks"].numpy().astype(bool)

    return run


def box_iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def compare(found, class_id, scores, boxes, masks, tolerance=1e-3, iou=0.99):
    """Every detection of one side has its equal on the other, scores within `tolerance`, boxes and masks overlapping by
    `iou`; returns how many there were."""
    mine = np.flatnonzero(found.class_ids == class_id)
    assert len(mine) == len(scores)
    ours = found.masks
    for i in mine:
        best = max(range(len(scores)), key=lambda j: box_iou(found.boxes[i], boxes[j]))
        assert box_iou(found.boxes[i], boxes[best]) >= iou
        assert abs(found.scores[i] - scores[best]) <= tolerance
        differ, union = (ours[i] ^ masks[best]).sum(), (ours[i] | masks[best]).sum()
        assert differ <= max(2, (1 - iou) * union)  # two pixels: a mask of nine cannot agree to 0.99
    return len(mine)


LIMITS = {"same pixels": (1e-3, 0.99), "processor's own resize": (1e-2, 0.97)}
CASES = [
    pytest.param(each, pixels, id=f"{pixels}-{each.frame.shape[1]}x{each.frame.shape[0]}")
    for pixels in LIMITS
    for each in (FRAMES if pixels == "same pixels" else FRAMES[1:])  # the first is not resized
]


@pytest.mark.parametrize(("rendering", "pixels"), CASES)
def test_text_prompts(server, reference, rendering, pixels):
    """On the same pixels scores agree to 1e-3 and boxes and masks overlap by 0.99. Where the processor stretches the
    frame itself, torchvision's 16-bit filter weights leave up to a fifth of the pixels one grey level off Pillow's at
    some sizes, and that is what the wider limits are for."""
    classes = (*sorted({f"{i.colour} {i.shape}" for i in rendering.instances}), "object", "purple hexagon")
    frame = rendering.frame
    with Client(server.grpc_url, model="sam3_r252") as client:
        found = client.detect(frame, classes, mask_format="bits")
    if pixels == "same pixels":
        frame = to_pixel_values(Image.fromarray(frame), 252).transpose(1, 2, 0)
    total = sum(compare(found, i, *reference(frame, name), *LIMITS[pixels]) for i, name in enumerate(classes))
    assert total >= len(rendering.instances) / 2  # there was something to compare


def test_exemplar_boxes(server, reference):
    """A box with text, and a box alone (prompt "visual"), of the same frame."""
    rendering = FRAMES[1]
    height, width = rendering.frame.shape[:2]
    largest = max(rendering.instances, key=lambda i: i.area)
    box = [float(v) for v in largest.box]
    pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    name = f"{largest.colour} {largest.shape}"
    with Client(server.grpc_url, model="sam3_r252") as client:
        both = client.detect(
            rendering.frame, (name, "object"), boxes=[box], box_labels=[1], box_classes=[0], mask_format="bits"
        )
        alone = client.detect(rendering.frame, (), boxes=[box], mask_format="bits")
    compare(both, 0, *reference(rendering.frame, name, [pixels], [1]))
    compare(both, 1, *reference(rendering.frame, "object"))
    compare(alone, 0, *reference(rendering.frame, "visual", [pixels], [1]))
