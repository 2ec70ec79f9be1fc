"""Requests follow the specification, and every response is parsed."""

import numpy as np
import pytest
from tritonclient.utils import triton_to_np_dtype

from clients.errors import InvalidRequest, WrongVersion
from clients.message import FRONT, build_request, parse_response
from clients.transport import front_models
from ensemble.records import Axis
from ensemble.spec import STAGES, Variant

PIXELS = np.zeros((48, 64, 3), np.uint8)
BOX = [[0.1, 0.2, 0.3, 0.4]]

REQUESTS = {
    "encoded image": {"image": b"jpeg", "classes": ["cat"]},
    "pixels": {"image": PIXELS, "classes": ["cat", "dog"]},
    "no class at all": {"image": b"jpeg", "classes": []},
    "boxes only": {"image": b"jpeg", "classes": [], "boxes": BOX},
    "everything": {
        "image": b"jpeg",
        "classes": ("a", "b"),
        "boxes": BOX,
        "box_labels": [0],
        "box_classes": [1],
        "threshold": 0,
        "mask_format": "rle",
        "max_detections": 5,
    },
    "name that is not ASCII": {"image": b"jpeg", "classes": ["Straßenbahn 電車"]},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_request_has_every_input_of_the_specification(case):
    request = build_request(**REQUESTS[case])
    assert list(request) == [tensor.name for tensor in FRONT.inputs]
    for tensor in FRONT.inputs:
        array = request[tensor.name]
        assert array.dtype == triton_to_np_dtype(tensor.dtype), tensor.name
        assert (array.shape[0], array.ndim) == (1, 1 + len(tensor.dims)), tensor.name
        assert all(
            isinstance(want, Axis) or want == have for want, have in zip(tensor.dims, array.shape[1:], strict=True)
        ), tensor.name


def test_request_values():
    request = build_request(
        PIXELS, ["a", "b"], boxes=BOX, box_classes=[1], threshold=0.25, mask_format="bits", max_detections=7
    )
    assert request["image"].tolist() == [[b""]]
    assert request["frame"].shape == (1, 48, 64, 3)
    assert request["classes"].tolist() == [[b"a", b"b"]]
    assert request["box_labels"].tolist() == [[1]]
    assert request["box_classes"].tolist() == [[1]]
    assert request["threshold"].item() == 0.25
    assert request["mask_format"].item() == b"bits"
    assert request["max_detections"].item() == 7


def test_path_is_read_as_an_encoded_file(tmp_path, jpeg):
    (tmp_path / "a.jpg").write_bytes(jpeg)
    for path in (tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
        assert build_request(path, ["a"])["image"].item() == jpeg


REFUSED = {
    "one string for classes": ({"image": b"x", "classes": "red circle"}, "list of names"),
    "a number as class": ({"image": b"x", "classes": [7]}, "must be text"),
    "float pixels": ({"image": PIXELS.astype(np.float32), "classes": ["a"]}, "uint8 [height, width, 3]"),
    "grey pixels": ({"image": PIXELS[..., 0], "classes": ["a"]}, "uint8 [height, width, 3]"),
    "empty pixels": ({"image": PIXELS[:0], "classes": ["a"]}, "uint8 [height, width, 3]"),
    "missing file": ({"image": "nowhere.jpg", "classes": ["a"]}, "nowhere.jpg"),
    "something else": ({"image": 3, "classes": ["a"]}, "got int"),
    "boxes of five numbers": (
        {"image": b"x", "classes": ["a"], "boxes": [[0, 0, 1, 1, 1]]},
        "boxes must have the shape [n, 4]",
    ),
    "ragged boxes": ({"image": b"x", "classes": ["a"], "boxes": [[0, 0, 1], [0, 0, 1, 1]]}, "boxes"),
    "boxes of unknown class": ({"image": b"x", "classes": ["a", "b"], "boxes": BOX}, "box_classes"),
    "threshold that is not a number": ({"image": b"x", "classes": ["a"], "threshold": "high"}, "threshold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sent_is_refused(case):
    arguments, says = REFUSED[case]
    with pytest.raises(InvalidRequest) as refusal:
        build_request(**arguments)
    assert says in str(refusal.value)


def test_response(response):
    found = parse_response(response().get, ["blue square", "red circle"], model="sam3_r252", latency_ms=12.5)
    assert found.labels == ("red circle", "blue square")
    assert found.boxes_in_pixels.tolist() == [[160, 90, 320, 270], [320, 0, 640, 180]]
    assert found.stage_ms == {stage: float(i) for i, stage in enumerate(STAGES)}
    assert (found.batch, found.frame_size, found.latency_ms, found.mask_size) == (3, (360, 640), 12.5, 72)
    assert found.summary() == "1 red circle, 1 blue square"


def test_response_without_detections_has_the_right_dtypes(response):
    """Over HTTP tritonclient returns zero-size outputs as float64."""
    arrays = {name: array.astype(np.float64) if not array.size else array for name, array in response(0).items()}
    found = parse_response(arrays.get, ["blue square", "red circle"], model="sam3_r252")
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 72, 72)
    assert found.rle == ()
    assert found.labels == ()
    assert (found.boxes.dtype, found.class_ids.dtype, found.mask_bits.dtype) == (np.float32, np.int32, np.uint8)
    assert found.summary() == "nothing"


def test_boxes_alone_are_called_visual(response):
    assert set(parse_response(response(1, class_ids=np.zeros(1, np.int32)).get, [], model="m").labels) == {"visual"}


def test_a_server_of_another_version_is_named(response):
    with pytest.raises(WrongVersion, match=r"1 stage times, expected \d+; client and server are of different versions"):
        parse_response(response(stage_ms=np.zeros(1, np.float32)).get, ["a", "b"], model="m")


def test_a_missing_output_is_named(response):
    arrays = response()
    del arrays["presence"]
    with pytest.raises(WrongVersion, match="presence"):
        parse_response(arrays.get, ["a", "b"], model="other")


@pytest.mark.parametrize(
    ("name", "front"),
    [
        (Variant(252).front_name, True),
        (Variant(1008, precision="int8").front_name, True),
        (Variant(252).vision_encoder.name, False),
        (Variant(252).text_encoder.name, False),
        (Variant(252).decoder.name, False),
        ("resnet_r50", False),
        ("sam3_r250", False),
        ("sam3_r1000", False),
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_front_models_of_a_repository_index(name, front, protocol):
    """Over HTTP the index is a list, over gRPC a record that contains the list."""
    entries = [{"name": name, "state": "READY"}, {"name": "sam3_r560", "state": "UNAVAILABLE"}]
    index = entries if protocol == "http" else {"models": entries}
    assert front_models(index) == ((name,) if front else ())
