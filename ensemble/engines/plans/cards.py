"""Which cards TensorRT for RTX runs on, and what to do where it does not: sentences, from facts alone.

Standard library only; nothing is loaded.
"""

from __future__ import annotations

CARDS = {
    "7.5": "RTX 20 series, T4",
    "8.0": "A100, A30",
    "8.6": "RTX 30 series, A10",
    "8.9": "RTX 40 series, L4, L40",
    "12.0": "RTX 50 series",
    "12.1": "GB10",
}
"""Compute capabilities that it knows, and cards that have them."""
OLDEST = (7, 5)
INSTALL = 'pip install "sam3-triton[rtx]"'
DIAGNOSTICS = {
    1: "it is of another version of TensorRT for RTX; export it again, or install the version that its manifest names",
    2: "it was not built for this card; export it again with --compute-capability",
    4: "NVIDIA's driver is too old for this version of TensorRT for RTX; update the driver",
    8: "the CUDA runtime is too old for this version of TensorRT for RTX; install tensorrt-rtx-cu13-libs again",
    16: "the card has too little free memory; free some, or serve a lower resolution",
    32: "it is no whole plan; export it again with --force",
    64: "CUDA does not work here; see whether nvidia-smi shows the card",
}
"""Bits of `EngineInvalidityDiagnostics`, and what each means for a user."""


def why_not_here(name: str, compute_capability: str) -> str | None:
    """Why TensorRT for RTX runs on no such card, and what does; None where it does."""
    if compute_capability in CARDS:
        return None
    known = ", ".join(f"{number} ({cards})" for number, cards in CARDS.items())
    if tuple(map(int, compute_capability.split("."))) < OLDEST:
        return (
            f"{name} (compute capability {compute_capability}) is too old for TensorRT for RTX, which knows {known};"
            " serve on the CPU with sam3-export --engine onnxruntime"
        )
    return (
        f"TensorRT for RTX has no kernels for {name} (compute capability {compute_capability}), as for cards of data"
        f" centres; it knows {known}. Export with --engine aoti, or serve plans in the container (docker compose up)"
    )


def why_not_built_for(model: str, built_for: str, card: str, compute_capability: str) -> str | None:
    """Why a plan that was built for these compute capabilities ("8.6 8.9") is not for that card; None where it is."""
    if not built_for or compute_capability in built_for.split():
        return None  # a manifest that does not say: TensorRT for RTX looks when the plan is opened
    number = compute_capability.replace(".", "")
    return (
        f"{model} was built for cards of compute capability {', '.join(built_for.split())}, {card} has"
        f" {compute_capability}; export again with --compute-capability {number}"
    )


def diagnosis(bits: int) -> str:
    """The sentence of what `get_engine_validity` finds wrong with a plan."""
    found = [sentence for bit, sentence in DIAGNOSTICS.items() if bits & bit]
    return "; ".join(found) or "TensorRT for RTX gives no reason"
