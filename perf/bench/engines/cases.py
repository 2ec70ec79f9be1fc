"""The cases that engines are timed on, and their answers in fp32: vision encoder, text encoder, then decoder and mask
head together, over batches, classes and shares of pairs that get masks.

Inputs are random, never zeros, on which a GPU is faster, and the same for every engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model

from ensemble.spec import Variant
from export import checkpoint
from perf.bench.engines.candidates import Candidate, Outputs, Work, reference
from perf.bench.timing import cosine

PICKS = 20
MOST_PAIRS = Variant.max_pairs
"""Pairs of one decoder call, as the server makes them."""
PROMPTS = 4
CONTEXT = 32
VISION, TEXT, DECODER = "vision_encoder", "text_encoder", "decoder+masks"
COLUMNS = (
    *("part", "engine", "resolution", "batch", "classes", "present"),
    *("ms_per_frame", "cosine", "peak_mb"),
)
"""Of a row, those that the table shows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One measurement of one part: `works` are its calls, more than one where the pairs exceed one call's, `features`
    what the decoder reads, `wanted` the first call's outputs in fp32. `present` is the share of pairs with masks."""

    part: str
    batch: int
    classes: int
    present: float
    works: list[Work]
    features: Outputs
    wanted: Outputs

    def run(self, candidate: Candidate) -> Outputs:
        """All calls; the outputs of the first."""
        if self.part == VISION:
            return candidate.encode(self.works[0])
        if self.part == TEXT:
            assert candidate.text is not None, "asked for only where there is one"
            return candidate.text(self.works[0])
        return [candidate.decode(self.features, work) for work in self.works][0]  # noqa: RUF015

    def cosines(self, found: Mapping[str, Tensor]) -> dict[str, float]:
        """Of an engine's outputs with `wanted`, by name; packed masks have none."""
        same = [name for name in self.wanted if name in found and name != "mask_bits"]
        return {name: round(cosine(found[name], self.wanted[name]), 7) for name in same}

    def row(
        self, engine: str, resolution: int, cosines: dict[str, float], ms: float, peak_mb: float, **more: Any
    ) -> Row:
        """The result: `ms` of all calls together, `peak_mb` what they need beside weights and inputs."""
        row: Row = {"engine": engine, "part": self.part, "resolution": resolution, "batch": self.batch}
        row |= {"classes": self.classes, "present": self.present, "precision": "fp16"}
        row |= {"ms_per_frame": round(ms / self.batch, 4), "cosine": min(cosines.values()), "cosines": cosines}
        return row | {"peak_mb": round(peak_mb, 1)} | more


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """What `cases` is called with."""
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="frames of one call; default 1 8")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 4, 16], help="of each frame; default 1 4 16")
    parser.add_argument(
        "--present",
        type=float,
        nargs="+",
        default=[1.0, 0.25],
        help="share of the (image, class) pairs that get masks; default 1 0.25",
    )


def sized(source: Sam3Model, resolution: int) -> Sam3Model:
    """`source` at that resolution, with all its queries."""
    return checkpoint.at_size(source, resolution, source.config.detr_decoder_config.num_queries)


class Truth:
    """The inputs of every case at one resolution, and the outputs in fp32, made when first asked for."""

    def __init__(self, source: Sam3Model, resolution: int, batch: int, device: str) -> None:
        self.queries: int = source.config.detr_decoder_config.num_queries
        self.device = device
        self.model = reference(sized(source, resolution), device)
        generator = torch.Generator(device).manual_seed(resolution)
        coarse = torch.rand(batch, 3, 16, 16, device=device, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bilinear")
        noise = torch.rand(batch, 3, resolution, resolution, device=device, generator=generator)
        self.pixel_values = (178 * smooth + 77 * noise).to(torch.uint8)
        ids = {"device": device, "dtype": torch.int32, "generator": generator}
        self.input_ids = torch.randint(3, 200, (PROMPTS, CONTEXT), **ids)  # type: ignore[call-overload]
        self.prompts = self.text(self.work(1, 1, 1.0, prompts=False))["text_features"].half()
        self._features: dict[int, Outputs] = {}

    def work(self, batch: int, classes: int, present: float, chunk: int = 0, prompts: bool = True) -> Work:
        """Pairs `chunk * 32` and following of `batch` frames times `classes`; every 1/present-th of them gets masks."""
        pairs = torch.arange(batch * classes, device=self.device, dtype=torch.int32)
        pairs = pairs[chunk * MOST_PAIRS : (chunk + 1) * MOST_PAIRS]
        step = round(1 / present) if present else len(pairs) + 1
        rows = torch.arange(0 if present else len(pairs), len(pairs), step, device=self.device, dtype=torch.int32)
        picks = (torch.arange(PICKS, device=self.device, dtype=torch.int32) * 7 + rows[:, None]) % self.queries
        features = self.prompts[(pairs % PROMPTS).long()] if prompts else torch.empty(0, device=self.device)
        mask = (torch.arange(CONTEXT, device=self.device)[None] < 3 + (pairs % PROMPTS)[:, None]).int()
        return Work(self.pixel_values[:batch], self.input_ids, pairs // classes, features, mask, rows, picks)

    def features(self, batch: int) -> Outputs:
        if batch not in self._features:
            self._features[batch] = self.model.encode(self.work(batch, 1, 1.0))
        return self._features[batch]

    def half_features(self, batch: int) -> Outputs:
        """In fp16, as an engine's decoder gets them."""
        return {name: tensor.half() for name, tensor in self.features(batch).items()}

    def text(self, work: Work) -> Outputs:
        assert self.model.text is not None, "the reference has every part"
        return self.model.text(work)

    def decoded(self, features: Outputs, work: Work) -> Outputs:
        return self.model.decode({name: features[name] for name in ("fpn_0", "fpn_1", "fpn_2")}, work)


def cases(
    truth: Truth,
    batches: Sequence[int],
    classes: Sequence[int],
    present: Sequence[float],
    *,
    prompts: int = PROMPTS,
    features: Callable[[Work], Outputs] | None = None,
) -> Iterator[Case]:
    """The largest batch first; the text encoder only there, with `prompts` names (none of it for 0). `features` makes
    what the decoder reads, where that is not the vision encoder's outputs in fp16."""
    for batch in sorted(batches, reverse=True):
        work = truth.work(batch, 1, 1.0)
        yield Case(VISION, batch, 0, 1.0, [work], {}, truth.features(batch))
        if prompts and batch == max(batches):
            asked = replace(work, input_ids=work.input_ids[:prompts])
            yield Case(TEXT, batch, prompts, 1.0, [asked], {}, truth.text(asked))
        read = features(work) if features else truth.half_features(batch)
        for count in classes:
            for share in present:
                chunks = range(-(-batch * count // MOST_PAIRS))
                works = [truth.work(batch, count, share, chunk) for chunk in chunks]
                yield Case(DECODER, batch, count, share, works, read, truth.decoded(read, works[0]))
