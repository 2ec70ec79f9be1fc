"""Stand-ins for sub-models and tokenizer: outputs spell out which image, class and query they belong to."""

import numpy as np

from ensemble.pipeline import Job
from ensemble.request import FrameRequest
from ensemble.spec import Checkpoint, Variant

VARIANT = Variant(
    resolution=28,
    queries=6,
    precision="fp32",
    max_batch=4,
    max_pairs=3,
    max_boxes=2,
    max_picks=2,
    checkpoint=Checkpoint("test", 28, 14, 4, 6, 5),
)


class Words:
    """A tokenizer: the id of a word is its length."""

    def __call__(self, name):
        ids = np.zeros(5, np.int32)
        ids[0] = len(name)
        return ids, (ids > 0).astype(np.int32)


class SubModels:
    """Answers every call from its inputs alone and remembers them.

    Image i has pixel value i. A class of k letters is found k-1 times (queries 0..k-2) in odd images, never in even
    ones. Box coordinates say [image, letters, query] / 10; the first mask byte says image * 100 + letters * 10 + query.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, model, inputs, outputs):
        self.calls.append((model.part, {k: np.shape(v) for k, v in inputs.items()}, tuple(outputs)))
        for tensor in model.inputs:
            array = inputs[tensor.name]
            assert array.ndim == len(tensor.dims), tensor.name
            for axis, limits in tensor.axes.items():
                assert limits.minimum <= array.shape[axis] <= limits.maximum, (tensor.name, array.shape)
        made = getattr(self, model.part)(model, **inputs)
        return {name: made[name] for name in outputs}

    def vision_encoder(self, model, pixel_values):
        value = pixel_values[:, 0, 0, 0].astype(np.float32)
        return {t.name: np.broadcast_to(value[:, None, None, None], (len(value), *t.dims[1:])) for t in model.outputs}

    def text_encoder(self, model, input_ids):
        return {"text_features": np.repeat(input_ids[:, :, None], 4, axis=2).astype(np.float32)}

    def geometry_encoder(self, model, fpn_2, image_index, boxes, box_labels):
        assert (box_labels[:, 0] >= 0).all()
        assert set(np.unique(box_labels)) <= {-10, 0, 1}
        return {"geometry_features": np.full((len(boxes), boxes.shape[1] + 1, 4), 7, np.float32)}

    def decoder(self, model, fpn_2, image_index, prompt_features, prompt_mask):
        image = fpn_2[image_index, 0, 0, 0]
        letters = prompt_features[:, 0, 0]
        query = np.arange(6)
        there = (query[None] < letters[:, None] - 1) & (image[:, None] % 2 == 1)
        boxes = np.stack(
            np.broadcast_arrays(image[:, None] / 10, letters[:, None] / 10, query[None] / 10, 1.0), axis=-1
        )
        return {
            "pred_logits": np.where(there, 4.0 - query[None] / 10, -9.0).astype(np.float32),
            "pred_boxes": boxes.astype(np.float32),
            "presence_logits": np.where(there.any(1, keepdims=True), 9.0, -9.0).astype(np.float32),
            "query_features": np.broadcast_to(query[None, :, None], (len(image), 6, 4)).astype(np.float32),
            "memory": np.broadcast_to((image * 100 + letters * 10)[:, None, None], (len(image), 4, 4)),
        }

    def mask_head(
        self,
        model,
        fpn_0,
        fpn_1,
        memory,
        query_features,
        prompt_features,
        prompt_mask,
        image_index,
        pair_index,
        query_index,
    ):
        np.testing.assert_array_equal(memory[pair_index, 0, 0] // 100, fpn_0[image_index, 0, 0, 0])
        value = memory[pair_index, 0, 0][:, None] + query_features[pair_index[:, None], query_index, 0]
        return {"mask_bits": np.broadcast_to(value[..., None, None], (*value.shape, 8, 1)).astype(np.uint8)}


WORDS = Words()


def job(image, classes, **request):
    """A frame whose pixels all have the value `image`."""
    wanted = FrameRequest(classes=classes, frame=np.full((28, 28, 3), image, np.uint8), **request)
    return Job(wanted, [WORDS(name) for name in classes], (28, 28))
