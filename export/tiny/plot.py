"""The plot of a training curve: the loss, and the figures on held-out scenes, over the steps of all runs that led to
the checkpoint."""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FIGURES = (("box", "AP50"), ("mask", "AP50"), ("box", "AP"), ("mask", "AP"))


def points_of(runs: Sequence[dict]) -> list[dict]:
    """The points of all runs one after another, with steps counted from the beginning of the first."""
    points, offset = [], 0
    for run in runs:
        points += [{**point, "step": point["step"] + offset} for point in run["points"]]
        offset += run["points"][-1]["step"] if run["points"] else 0
    return points


def plot(curve: Path, picture: Path) -> dict:
    """Draws `curve` (the file that the trainer writes) as `picture` (PNG); returns the last point."""
    runs = json.loads(curve.read_text())["runs"]
    points = points_of(runs)
    steps = [point["step"] for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    left.semilogy(steps, [point["loss"] for point in points], color="black")
    left.set(xlabel="steps", ylabel="loss, mean since the last point", title="training")
    judged = [point for point in points if "validation" in point]
    for kind, name in FIGURES:
        values = [point["validation"]["252"]["text"][kind][name] for point in judged]
        right.plot([p["step"] for p in judged], values, "-" if name == "AP50" else "--", label=f"{kind} {name}")
    presence = [point["validation"]["252"]["text"]["presence_accuracy"] for point in judged]
    right.plot([point["step"] for point in judged], presence, ":", label="presence")
    right.set(xlabel="steps", ylim=(0, 1), title="held-out scenes at 252, prompts in words")
    right.legend(fontsize=7, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        for run_end in [p["step"] for p, n in pairwise(points) if n["seconds"] < p["seconds"]]:
            axes.axvline(run_end, color="grey", linewidth=0.8)
    figure.savefig(picture, dpi=90)
    plt.close(figure)
    return points[-1]


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tiny.plot",
        description="Draw the training curve.",
        epilog="example: python -m export.tiny.plot",
    )
    parser.add_argument("--curve", type=Path, default=HERE / "training_curve.json")
    parser.add_argument("--output", type=Path, default=HERE / "training_curve.png")
    options = parser.parse_args(argv)
    last = plot(options.curve, options.output)
    print(json.dumps({"output": str(options.output), "steps": last["step"], "loss": last["loss"]}))
    return last


if __name__ == "__main__":
    main()
