"""Which resolutions so many videos get in a stated amount of memory."""

import pytest

from ensemble.server import cli, gpu
from ensemble.server import repository as placement
from ensemble.server.fit_videos import Load, candidates, fit
from ensemble.server.requirements import ServerError
from ensemble.server.videos import videos_of
from ensemble.spec import Tracker
from tests.ensemble.server.repositories import write


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write(tmp_path_factory.mktemp("packages"), [1008, 840, 672, 560], "aoti", tracker=Tracker())


@pytest.fixture(scope="module")
def known(packages):
    return placement.read(packages)


@pytest.mark.parametrize(
    ("megabytes", "load", "chosen"),
    [
        pytest.param(8_192, (8, 16), (1008, 1008, 8, "auto"), id="eight videos, 8 GB: all that there is"),
        pytest.param(6_144, (8, 16), (1008, 1008, 4, "cpu"), id="text encoder and batch come before the resolution"),
        pytest.param(8_192, (8, 128), (1008, 672, 2, "cpu"), id="many objects: the tracker comes before the detector"),
        pytest.param(4_096, (8, 16), (672, 672, 4, "cpu"), id="eight videos, 4 GB"),
        pytest.param(4_096, (1, 16), (1008, 1008, 1, "cpu"), id="one video, 4 GB"),
    ],
)
def test_the_finest_that_fits(known, megabytes, load, chosen):
    def shown(one):
        return one.resolution, one.tracker_resolution, one.max_batch, one.text_encoder

    found = fit(known, Load(*load), megabytes)
    assert shown(found) == chosen
    every = list(candidates(known, Load(*load)))
    assert all(one.need.total > megabytes for one in every[: every.index(found)])
    assert found.need.total <= megabytes
    served = placement.choose(known, [found.resolution])
    (video,) = videos_of(served, known, found.video_memory_mb, found.tracker_resolution)
    assert video.slots == load[0] * load[1]


def test_where_nothing_fits_the_least_is_said(known):
    with pytest.raises(
        ServerError,
        match=r"expected 2 videos of 16 objects to fit into 2,000 MB, got at least 3,.* MB "
        r"\(weights .*objects of videos .*\), with the detector at 560 and the tracker at 560; take fewer",
    ):
        fit(known, Load(2, 16), 2_000)


def test_a_repository_for_pictures_is_refused(tmp_path):
    with pytest.raises(ServerError, match="got one for pictures alone; write it again with sam3-export --video"):
        fit(placement.read(write(tmp_path, [672], "aoti")), Load(2, 16), None)


def settings(packages, *words):
    return cli.fitting(cli._parser().parse_args(["--repository", str(packages), *words]))


def test_sam3_serve_chooses_for_a_number_of_videos(packages):
    told = settings(packages, "--videos", "1", "--gpu-memory", "4GB", "--queue-delay-us", "100")
    assert told["resolutions"] == [1008]
    assert told["front"] == {"max_batch": 1, "queue_delay_us": 100}
    assert settings(packages, "--videos", "2", "--gpu-memory", "8GB", "--resolution", "672")["resolutions"] == [672]


def test_what_is_free_counts_where_nobody_states_an_amount(packages, monkeypatch):
    monkeypatch.setattr(gpu, "serving", lambda: gpu.Gpu("NVIDIA GeForce RTX 3050", "8.6", 8_192, 4_096))
    assert settings(packages, "--videos", "8", "--video-objects", "16")["resolutions"] == [672]


@pytest.mark.parametrize("words", [("--video-memory", "1GB"), ("--tracker-resolution", "560"), ("--sub-models",)])
def test_what_is_chosen_cannot_be_given(packages, words):
    with pytest.raises(ServerError, match="--videos chooses --video-memory and --tracker-resolution"):
        settings(packages, "--videos", "2", *words)


def test_memory_is_that_of_a_gpu(video_repository):
    with pytest.raises(ServerError, match="expected models for a GPU, got a repository for the CPU; leave it out"):
        settings(video_repository, "--videos", "2", "--gpu-memory", "4GB")
    told = settings(video_repository, "--videos", "2", "--video-objects", "4")
    assert told["resolutions"] == [told["tracker_resolution"]] == [140]
