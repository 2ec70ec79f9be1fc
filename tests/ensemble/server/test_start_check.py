"""What is said before a server starts on a GPU: missing artifacts, artifacts of another GPU or TensorRT, too little
memory. No GPU is needed: it is described."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest

from ensemble.server import embedded, gpu, start_check
from ensemble.server import repository as placement
from ensemble.server.gpu import Gpu, decode_tensorrt
from ensemble.server.memory import MB, pool_mb
from ensemble.server.repository import Served
from ensemble.server.requirements import ServerError
from ensemble.server.start_check import Host
from ensemble.server.videos import VideoServed, videos_of
from ensemble.spec import Tracker, Variant
from tests.ensemble.server.repositories import write

H200 = Gpu("NVIDIA H200", "9.0", 143_771, 143_000)
FULL = Gpu("NVIDIA H200", "9.0", 143_771, 3_000)
CARD = Gpu("NVIDIA GeForce RTX 4060", "8.9", 8_188, 7_800)
BUILT_FOR = {"tensorrt": "10.7.0.23", "gpu": "NVIDIA H200", "compute_capability": "9.0"}


@pytest.fixture
def check(caplog):
    """Checks a repository on a host: returns the warnings, or raises ServerError where the server must not start."""

    def run(root: Path, host: Host) -> list[str]:
        caplog.clear()
        start_check.check(root, placement.read(root), host, pool_mb)
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    return run


# ---- memory
def test_the_figures_and_what_does_fit(check, tmp_path):
    write(tmp_path, [1008], built_for={})
    with pytest.raises(ServerError) as refused:
        check(tmp_path, Host(CARD))
    text = str(refused.value)
    assert "sam3_r1008: needs 10,0" in text
    assert all(word in text for word in ("weights 1,650", "activations 4,346", "features 1,025", "memory pool 2,118"))
    assert "NVIDIA GeForce RTX 4060 has 8,188 MB, 7,800 of them free" in text
    assert "1008 exported with --max-batch 5 (" in text
    assert "or 840 with the same limits" not in text, "840 has no fused attention by the rule, and needs more"
    assert "or 672 with the same limits (" in text


@pytest.mark.parametrize(
    ("resolutions", "limits", "megabytes", "sentence"),
    [
        pytest.param([1008, 672], {}, 10_000, "It fits with the resolutions 672 alone (", id="fewer resolutions"),
        pytest.param(
            [1008, 840, 672, 560], {}, 12_000, "with the resolutions 672 560 alone", id="the committed repository"
        ),
        pytest.param([672], {"max_batch": 1}, 2_000, "Even 560 with --max-batch 1 needs 2,", id="nothing fits"),
        pytest.param([560], {}, 4_000, "560 exported with --max-batch", id="no lower resolution"),
    ],
)
def test_the_nearest_that_fits(check, tmp_path, resolutions, limits, megabytes, sentence):
    write(tmp_path, resolutions, **limits)
    with pytest.raises(
        ServerError, match=r"modelled \(fitted by sam3-perf to .*\); the GPU has .* as stated"
    ) as refused:
        check(tmp_path, Host(None, stated_mb=megabytes))
    assert sentence in str(refused.value)


def test_packages_need_no_export_for_smaller_batches(check, tmp_path):
    write(tmp_path, [1008], "aoti")
    with pytest.raises(ServerError, match=r"What fits: 1008 served with --max-batch 5 \("):
        check(tmp_path, Host(None, stated_mb=14_000))
    found = placement.adjusted(placement.read(tmp_path), {"max_batch": 5})
    start_check.check(tmp_path, found, Host(None, stated_mb=14_000), pool_mb)


def test_what_is_proposed_is_accepted(check, tmp_path):
    """The sentence is no guess: the variant that it names passes the check that it comes from."""
    write(tmp_path / "five", [1008], max_batch=5)
    assert check(tmp_path / "five", Host(CARD))
    write(tmp_path / "six", [1008], max_batch=6)
    with pytest.raises(ServerError, match="--max-batch 5"):
        check(tmp_path / "six", Host(CARD))


def test_a_stated_amount_is_taken_in_place_of_what_is_free(check, tmp_path):
    write(tmp_path, [1008])
    check(tmp_path, Host(CARD, stated_mb=11_000))
    with pytest.raises(ServerError, match="the GPU has 9,000 MB, as stated"):
        check(tmp_path, Host(H200, stated_mb=9_000))


def videos_in(root: Path, megabytes: float) -> tuple[list[Served], tuple[VideoServed, ...]]:
    served = placement.read(root)
    return served, tuple(videos_of(served, served, megabytes, None))


def test_what_videos_take_is_not_there_for_the_models(tmp_path):
    write(tmp_path, [1008], "aoti", tracker=Tracker())
    served, videos = videos_in(tmp_path, 3_000)
    start_check.check(tmp_path, served, Host(CARD, stated_mb=9_200, videos=videos), None)
    with pytest.raises(
        ServerError, match=r"objects of videos 2,998.*as stated; videos take 3,045 MB of them \(--video-memory\)"
    ):
        start_check.check(tmp_path, served, Host(CARD, stated_mb=6_000, videos=videos), None)


def test_what_the_tracker_computes_in_counts_where_it_is_more_than_pictures_take(tmp_path):
    write(tmp_path, [1008], "aoti", tracker=Tracker(), max_batch=1, max_pairs=4)
    served, videos = videos_in(tmp_path, 100)
    pictures, both = (start_check.need_of(served, None, v).activations for v in ((), videos))
    assert pictures < both == pytest.approx(33 * 72**2 / 1e3 * 8)
    (few,) = videos_in(tmp_path, 20)[1]
    assert few.slots == 3
    assert start_check.need_of(served, None, [few]).activations == pytest.approx(33 * 72**2 / 1e3 * 3)


@pytest.mark.parametrize(
    ("cards", "refused"),
    [
        pytest.param([H200, FULL], False, id="room on the first"),
        pytest.param([FULL, H200], True, id="room on the second"),
    ],
)
def test_the_first_of_several_gpus_decides(check, tmp_path, monkeypatch, cards, refused):
    write(tmp_path, [672], built_for=BUILT_FOR)
    monkeypatch.setattr(gpu, "gpus", lambda: cards)
    with pytest.raises(ServerError, match="3,000 of them free") if refused else nullcontext():
        check(tmp_path, Host.here())


@pytest.fixture
def pools(tmp_path, monkeypatch):
    """The pools in the command with which a server of packages would be started, on a machine with two GPUs."""
    root = write(tmp_path, [672], "aoti", built_for=BUILT_FOR)
    monkeypatch.setattr(gpu, "gpus", lambda: [H200, H200])

    def words(*arguments: str, **options) -> list[str]:
        commands: list[list[str]] = []

        def start(command, environment):
            commands.append(command)
            raise OSError("not started here")

        monkeypatch.setattr(embedded, "ServerProcess", start)
        with pytest.raises(OSError, match="not started here"):
            embedded.EmbeddedServer(root, arguments=arguments, **options).start()
        return [word.removeprefix("--cuda-memory-pool-byte-size=") for word in commands[0] if "memory-pool" in word]

    return words


def test_the_embedded_server_asks_for_one_pool(pools):
    """On the GPU that its models are placed on, whatever the others are; a pool of the caller's own stays the only
    one."""
    needed = round(pool_mb([Variant(resolution=672)]) * MB)
    assert pools(sub_models=True) == [f"0:{needed}"]
    assert pools("--cuda-memory-pool-byte-size=0:1000", sub_models=True) == ["0:1000"]


def test_the_engine_model_needs_no_pool(pools):
    """Its sub-models hand over nothing through Triton: Triton's own 64 MB would be nobody's."""
    assert pools() == ["0:0"]
    assert pools(gpus=[0, 1]) == ["0:0", "1:0"]
    assert pools("--cuda-memory-pool-byte-size=1:1000", gpus=[0, 1]) == ["0:0", "1:1000"]


def test_a_pool_of_another_gpu_is_not_the_models():
    other, own = (f"--cuda-memory-pool-byte-size={number}:{size << 20}" for number, size in ((1, 512), (0, 256)))
    assert start_check.stated_pool_mb([other, own]) == pytest.approx((256 << 20) / MB)
    assert start_check.stated_pool_mb([other]) is None


def test_shared_weights_count_once(tmp_path):
    root = write(tmp_path, [1008, 672])
    weights = start_check.need_of(placement.read(root), pool_mb).weights
    assert weights == pytest.approx(2 * (880 + 20 + 60 + 10) + 680)


def test_without_a_gpu_the_sentence_says_so(check, tmp_path):
    assert any("memory is not checked" in line for line in check(write(tmp_path, [1008]), Host(None)))


def test_models_for_the_cpu_are_not_checked(check, tmp_path):
    root = write(tmp_path, [1008], "onnxruntime")
    assert check(root, Host(CARD, stated_mb=1.0)) == []


def test_the_embedded_server_refuses_before_anything_runs(tmp_path):
    server = embedded.EmbeddedServer(write(tmp_path, [1008], "aoti"), gpu_memory_mb=2_500)
    with pytest.raises(ServerError, match=r"sam3_r1008: needs .* the GPU has 2,500 MB, as stated"):
        server.start()
    assert server.pid is None


@pytest.mark.parametrize(
    ("megabytes", "outcome"),
    [
        pytest.param(6_500, "", id="a full load fits"),
        pytest.param(6_000, "larger batches are split, which costs time", id="a smaller one fits"),
        pytest.param(3_700, "larger batches are split, which costs time", id="a frame and a class at a time"),
        pytest.param(3_600, "Even 560 with --max-batch 1 needs 3,", id="not even that"),
    ],
)
def test_the_engine_model_keeps_a_stated_amount(caplog, tmp_path, megabytes, outcome):
    served, host = placement.read(write(tmp_path, [1008], "aoti")), Host(None, stated_mb=megabytes)
    if megabytes < 3_700:
        with pytest.raises(ServerError, match=outcome):
            start_check.check(tmp_path, served, host, None)
        return
    start_check.check(tmp_path, served, host, None)
    said = [record.getMessage() for record in caplog.records if "modelled" in record.getMessage()]
    assert len(said) == bool(outcome)
    assert all(outcome in line and f"the GPU has {megabytes:,} MB, as stated" in line for line in said)


# ---- what was built
def test_artifacts_that_were_never_built(check, tmp_path):
    """The committed repository as it comes: configurations and no plans."""
    committed = Path(__file__).parents[3] / "model_repository"
    for path in committed.glob("*/config.pbtxt"):
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / "config.pbtxt").write_text(path.read_text())
    with pytest.raises(ServerError) as refused:
        check(tmp_path, Host(None))
    assert "model.plan, found no such file; not built yet: sam3_vision_encoder_r1008" in str(refused.value)
    last = str(refused.value).splitlines()[-1]
    assert last == "docker compose run --rm build --checkpoint facebook/sam3 --resolution 1008 840 672 560"


def test_the_command_repeats_what_is_not_usual(tmp_path):
    served = placement.read(write(tmp_path, [672], "aoti", queries=50, max_batch=4))
    command = placement.build_command(served, tmp_path, force=True)
    assert (
        command
        == f"sam3-export --engine aoti --repository {tmp_path} --checkpoint facebook/sam3 --queries 50 --max-batch 4"
        " --resolution 672 --force"
    )


@pytest.mark.parametrize(
    ("engine", "built_for", "card", "tensorrt", "sentence"),
    [
        pytest.param("tensorrt", BUILT_FOR, H200, "10.7.0", None, id="the same: the build number is not told"),
        pytest.param("tensorrt", BUILT_FOR, H200, "11.2.0", "TensorRT 11.2.0 on NVIDIA H200", id="another TensorRT"),
        pytest.param(
            "tensorrt", BUILT_FOR, Gpu("NVIDIA L4", "8.9", 23_000, 22_000), "10.7.0", "on NVIDIA L4", id="another GPU"
        ),
        pytest.param(
            "tensorrt", BUILT_FOR, Gpu("NVIDIA H100", "9.0", 81_000, 80_000), "10.7.0", "NVIDIA H100", id="its sister"
        ),
        pytest.param(
            "tensorrt", BUILT_FOR | {"gpu": "NVIDIA H200 MIG 1g.18gb"}, H200, "10.7.0", None, id="a slice of it"
        ),
        pytest.param("tensorrt", BUILT_FOR | {"gpu": "unknown"}, H200, "10.7.0", None, id="nobody knew"),
        pytest.param(
            "aoti", BUILT_FOR, Gpu("NVIDIA H100", "9.0", 81_000, 80_000), None, None, id="packages fit sisters"
        ),
        pytest.param(
            "aoti", BUILT_FOR, Gpu("NVIDIA L4", "8.9", 23_000, 22_000), None, "capability 8.9", id="not cousins"
        ),
    ],
)
def test_artifacts_of_another_machine(check, tmp_path, engine, built_for, card, tensorrt, sentence):
    root = write(tmp_path, [672], engine, built_for=built_for)
    if sentence is None:
        assert check(root, Host(card, tensorrt)) == []
        return
    with pytest.raises(ServerError) as refused:
        check(root, Host(card, tensorrt))
    text = str(refused.value)
    assert f"expected artifacts for {f'TensorRT {tensorrt} on ' if engine == 'tensorrt' else ''}{card.name}" in text
    assert sentence in text
    assert "sam3_vision_encoder_r672 was built for " in text
    assert text.endswith("--resolution 672 --force")
    assert ("docker compose run --rm build" in text) == (engine == "tensorrt")


def test_what_cannot_be_compared_is_said(check, tmp_path):
    said = check(write(tmp_path, [672], built_for=BUILT_FOR), Host(H200, None))
    assert said == ["not compared with this TensorRT, since its library (libnvinfer) cannot be loaded here"]
    said = check(write(tmp_path / "old", [672]), Host(H200, "10.7.0"))
    assert "manifests do not say what they were built for: sam3_vision_encoder_r672" in said[0]


@pytest.mark.parametrize(
    ("number", "version"),
    [(8600, "8.6.0"), (8601, "8.6.1"), (100_700, "10.7.0"), (101_401, "10.14.1"), (110_200, "11.2.0")],
)
def test_tensorrt_counts_its_version_in_two_ways(number, version):
    assert decode_tensorrt(number) == version
