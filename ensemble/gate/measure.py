"""Measures artifacts by the truths that the export stored: each sub-model alone, on the inputs that its truths are of.

A fault shows in the sub-model that has it and in no other, since none is given another's answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensemble.engines import SubModel
from ensemble.gate.compare import OutputCheck, compare, unpack
from ensemble.gate.limits import Limits
from ensemble.gate.tracker import measure_stored
from ensemble.gate.truths import Arrays, Truths, chosen, feature_maps, typed
from ensemble.spec import Variant

SAMPLES = ("text", "boxes")
"""Pairs without exemplar boxes, and pairs with them."""


def measure(run: SubModel, part: str, name: str, truths: Truths, limits: Limits) -> list[OutputCheck]:
    """Every output of one sub-model, over all samples that its part has; `name` is what the checks call it.

    Raises GateError where an answer has another shape than the truth, and whatever the artifact raises.
    """
    names = [tensor.name for tensor in getattr(truths.variant, part).outputs]

    def answer(feed: Arrays) -> dict[str, np.ndarray]:
        return {n: on_host(value) for n, value in run(typed(truths.variant, part, feed), names).items()}

    if part in {model.part for model in truths.variant.tracker_parts}:
        return measure_stored(answer, part, truths)
    groups: dict[str, list[tuple[float, float]]] = {}
    for feed, wanted, counted in feeds(part, truths):
        found = answer(feed)
        found |= {name: found[name] * mask for name, mask in counted.items()}
        for output, figures in compared(part, found, wanted, truths.variant, limits).items():
            groups.setdefault(output, []).append(figures)
    return [
        OutputCheck(name, output, float(np.min([c for c, _ in all_])), float(np.max([r for _, r in all_])))
        for output, all_ in groups.items()
    ]


def failures(checks: Sequence[OutputCheck], limits: Limits) -> list[str]:
    """A sentence for each output that is off."""
    return [sentence for check in checks if (sentence := check.failure(limits))]


Wanted = Mapping[str, tuple[np.ndarray, float]]
"""Output -> the kept values of its truth, and the largest magnitude of all of them."""


def feeds(part: str, truths: Truths) -> list[tuple[Arrays, Wanted, Arrays]]:
    """For each sample that a sub-model takes part in: its inputs, what it should answer, and masks of the outputs of
    which not every token counts, by which they are multiplied."""
    arrays = truths.arrays
    if part == "vision_encoder":
        names = [t.name for t in truths.variant.vision_encoder.outputs if f"want/{t.name}/values" in arrays]
        wanted = {name: truths.wanted(f"want/{name}") for name in names}
        return [({"pixel_values": arrays["pixel_values"]}, wanted, {})]
    if part == "text_encoder":
        wanted = {"text_features": truths.wanted("want/text_features")}
        return [({"input_ids": arrays["input_ids"]}, wanted, {"text_features": arrays["text_mask"][..., None]})]
    samples = {"geometry_encoder": SAMPLES[1:], "decoder": SAMPLES, "mask_head": SAMPLES[1:]}[part]
    found: list[tuple[Arrays, Wanted, Arrays]] = []
    for sample in samples:
        given = truths.below(f"{sample}/")
        maps = feature_maps(truths.below("features/"), int(arrays["images"]))
        outputs = getattr(truths.variant, part).outputs
        named = [t.name for t in outputs if f"want/{sample}/{t.name}/values" in arrays]
        wanted = {name: truths.wanted(f"want/{sample}/{name}") for name in named}
        feed = {**maps, **given}
        if part == "mask_head":  # its rows have images of their own
            feed["image_index"] = given["image_index"][given["pair_index"]]
        counted = {}
        if part == "geometry_encoder":
            tokens = given["box_labels"].shape[1] + 1
            counted = {"geometry_features": given["prompt_mask"][:, -tokens:, None]}
        found.append((feed, wanted, counted))
    return found


def compared(
    part: str, found: Mapping[str, np.ndarray], wanted: Wanted, variant: Variant, limits: Limits
) -> dict[str, tuple[float, float]]:
    """Cosine and relative error of each output. Of packed masks those pixels count whose logit is not within the
    margin, on either side of which an undecided pixel may fall."""
    figures = {}
    for name, (values, peak) in wanted.items():
        figures[name] = compare(chosen(found[name]), values, peak)
    if part == "mask_head":
        logits, _ = wanted["mask_logits"]
        decided = np.abs(logits) >= limits.mask_margin
        bits = chosen(unpack(found["mask_bits"], variant.mask_size))
        if bits.shape != logits.shape:
            figures["mask_bits"] = compare(bits, logits)  # raises, with the shapes
        figures["mask_bits"] = compare(bits[decided], (logits > 0)[decided])
    return figures


def on_host(value: Any) -> np.ndarray:
    """A NumPy array of an engine's tensor: of NumPy, CuPy or PyTorch."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "get"):
        value.device.synchronize()  # it may be under way, on a stream that no other waits for
        return value.get()
    return value.cpu().numpy()
