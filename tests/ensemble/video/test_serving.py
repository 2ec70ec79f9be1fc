"""Front models of pictures and of videos in one engine model, with stand-ins for their sub-models."""

from concurrent.futures import ThreadPoolExecutor

from ensemble import engine
from ensemble.spec import Tracker, Variant
from ensemble.video.variant import VideoVariant


def test_pixels_of_a_resolution_are_read_by_one_pre_processor(sub_models, tmp_path, monkeypatch):
    """Whether they are a picture's or a video's: on a GPU, each holds memory and is checked when it is opened."""
    opened, read = [], engine.open_preprocessor
    monkeypatch.setattr(
        engine, "open_preprocessor", lambda mode, size, *rest: opened.append(size) or read(mode, size, *rest)
    )
    small, large = (Variant(resolution=resolution, tracker=Tracker()) for resolution in (28, 42))
    video = VideoVariant(small, small)
    engines = {model.part: "onnxruntime" for model in video.sub_models}
    told = {"variant": video.to_dict(), "slots": 2}
    fronts = {one.front_name: {"variant": one.to_dict(), "engines": engines} for one in (small, large)}
    fronts[video.front_name] = {"variant": small.to_dict(), "engines": engines, "video": told}
    with ThreadPoolExecutor(1) as readers:
        made = engine.open_fronts(tmp_path, fronts, None, "cpu", readers)
    assert made.keys() == {"sam3_r28", "sam3_r42", "sam3_video_r28"}
    assert opened == [28, 42]
