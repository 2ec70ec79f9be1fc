"""The gain of each exact rewrite: on the CPU with the small checkpoint both forms of all of them agree, and forms that
do not are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Model

from export.checkpoint import load
from perf.bench.rewrites import cli as rewrites
from perf.bench.rewrites import forms as rewrite_forms
from perf.bench.rewrites.case import Case, Form, Forms, Rewrite

EXACT = 1e-5

EVERY = (*rewrite_forms.REWRITES, rewrite_forms.PADDED)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where results go that no test names."""
    monkeypatch.chdir(tmp_path)


def arguments(checkpoint: Path, *more: str) -> list[str]:
    """168 fills its windows, 140 pads them."""
    sizes = ["--resolution", "168", "--padded", "140", "--frames", "3", "--classes", "2"]
    return ["--device", "cpu", "--checkpoint", str(checkpoint), *sizes, *more]


def test_both_forms_of_every_rewrite_agree(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rewrites.json"
    assert rewrites.main(arguments(checkpoint, "--output", str(output))) == 0
    written = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == written
    rows = written["rows"]
    assert [row["rewrite"][0] for row in rows] == list("1234556678")
    assert [row["resolution"] for row in rows] == [168] * 9 + [140]
    for row in rows:
        assert row["fp32_error"] < EXACT, row
        assert min(row["ms_before"], row["ms_after"], row["gain"]) > 0, row
        assert "fp16_cosine" not in row  # nothing ran in fp16
    assert {"torch", "triton", "transformers"} <= set(written["versions"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_in_half_precision(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rewrites.main(["--device", "cuda", *arguments(checkpoint)[2:]]) == 0
    for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]:
        assert row["fp16_cosine"] > 0.999, row
        assert min(row["ms_before"], row["ms_after"], row["mb_before"], row["mb_after"]) > 0, row


class Calls(TorchDispatchMode):
    """Counts operations, and the products of those that multiply matrices or convolve (attention's own are not
    counted)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.count = 0
        with torch.no_grad(), FlopCounterMode(display=False) as products, self:
            form()
        self.products = products.get_total_flops()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Sam3Model:
    """At 140: p = 10, windows of 6, 128 channels, 50 queries."""
    return rewrites.sized(load(str(checkpoint)).model, 140)


@pytest.fixture(scope="module")
def forms(model: Sam3Model) -> dict[str, Forms]:
    """Rewrite -> its forms for one frame of four classes."""
    case = Case(model, "cpu", "fp32", 1, 4)
    return {rewrite.name: rewrite.forms(case) for rewrite in EVERY}


@pytest.mark.parametrize("rewrite", EVERY, ids=lambda rewrite: rewrite.name)
def test_forms_agree_in_half_precision(model: Sam3Model, rewrite: Rewrite) -> None:
    with torch.no_grad():
        written, rewritten = (form() for form in rewrite.forms(Case(model, "cpu", "fp16", 2, 2)))
    assert {t.dtype for t in written + rewritten} == {torch.float16}
    assert rewrites.compare(rewrites.cosine, rewritten, written).min() > 0.99999


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param("3 first attention of the DETR encoder", 1 / 4, id="once for four classes"),
        pytest.param(
            "4 instance projection, 20 masks",
            (20 * 128 + 20 * 1600 + 20) / (1600 * 128 + 20 * 1600),
            id="twenty queries for 1600 pixels",
        ),
        pytest.param("5 convolution of an upsampled map", 4 / 9 + 1 / 4, id="4/9, and the skip maps once"),
        pytest.param("5 the same, this project's kernel", 4 / 9 + 1 / 4, id="the same"),
        pytest.param("6 mask product", 20 / 50, id="20 of 50 queries"),
        pytest.param("8 attention in padded windows", 100 / 144, id="100 tokens of 144 are real"),
    ],
)
def test_products_are_saved_as_the_arithmetic_says(forms: dict[str, Forms], name: str, share: float) -> None:
    written, rewritten = map(Calls, forms[name])
    assert rewritten.products / written.products == pytest.approx(share)


def test_absent_pairs_cost_what_the_skip_maps_do(forms: dict[str, Forms]) -> None:
    every, some = map(Calls, forms["6 mask head, 20 masks"])
    skips = 2 * 9 * 128 * 128 * (20**2 + 40**2)  # convolved once per image in both
    assert (some.products - skips) / (every.products - skips) == pytest.approx(1 / 4, rel=1e-3)


@pytest.mark.parametrize("name", ["1 positions, RoPE tables", "2 image features", "7 uint8 frames"])
def test_passes_over_memory_are_saved(forms: dict[str, Forms], name: str) -> None:
    written, rewritten = map(Calls, forms[name])
    assert written.products == rewritten.products
    assert rewritten.count < written.count


def test_forms_that_differ_are_told(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shift of the normalisation is left out."""
    fold = rewrite_forms.fold_normalisation
    monkeypatch.setattr(rewrite_forms, "fold_normalisation", lambda module: (fold(module)[0], torch.zeros(1)))
    assert rewrites.main(arguments(checkpoint)) == 1
    (sentence,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("sam3-perf bench rewrites: ")
    ]
    assert "7 uint8 frames at 168: expected an error of at most 0.0001 in fp32, got " in sentence


@pytest.mark.parametrize(
    ("figures", "bad"),
    [
        pytest.param({"fp32_error": 1e-4, "fp16_cosine": 0.999}, 0, id="at the limits"),
        pytest.param({"fp32_error": 1.1e-4, "fp16_cosine": 1.0}, 1, id="fp32"),
        pytest.param({"fp32_error": 0.0, "fp16_cosine": 0.9989}, 1, id="fp16"),
        pytest.param({"fp32_error": float("nan"), "fp16_cosine": float("nan")}, 2, id="not a number"),
    ],
)
def test_limits(figures: dict[str, float], bad: int) -> None:
    assert len(rewrites.failures([{"rewrite": "some", "resolution": 168, **figures}])) == bad


def test_a_lone_nan_is_not_lost() -> None:
    pairs = [torch.ones(2), torch.tensor([1.0, float("nan")]), torch.ones(2)]
    assert torch.isnan(rewrites.compare(rewrites.relative, pairs, [torch.ones(2)] * 3).max())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        pytest.param(
            ["--padded", "168"],
            "at 168 windows of 6 patches fill the map; take one that is not a multiple of 84",
            id="not padded",
        ),
        pytest.param(["--resolution", "170"], "resolution must be a multiple of 14, got 170", id="no multiple"),
        pytest.param(["--classes", "0"], "expected at least one frame and one class, got 3 and 0", id="no pairs"),
        pytest.param(["--checkpoint", "nowhere"], "expected a checkpoint folder", id="no checkpoint"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    checkpoint: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        rewrites.main(arguments(checkpoint, *more))
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        rewrites.main([])
    assert stopped.value.code == 2
    assert "expected a CUDA GPU, PyTorch finds none" in capsys.readouterr().err
