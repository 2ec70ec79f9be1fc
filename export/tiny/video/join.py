"""A trained tracker and the small checkpoint joined to one folder in the layout of `Sam3VideoModel`, which serves
images and videos, as facebook/sam3 does. `Sam3Model.from_pretrained` takes it too, and leaves the tracker out."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from transformers import Sam3VideoModel

from export.tiny import CHECKPOINT
from export.tiny.configuration import name_float32
from export.tiny.video.configuration import load_tracker_weights, random_video_model

EXAMPLE = "example: python -m export.tiny.video.join --tracker build/tracker"


def joined(tracker: Path, checkpoint: Path = CHECKPOINT) -> Sam3VideoModel:
    """The model of a checkpoint's detector and of a training's tracker, fp32. Raises ValueError where `tracker` holds
    another's weights."""
    model = random_video_model(checkpoint)
    load_tracker_weights(model, tracker)
    return model


def save(model: Sam3VideoModel, folder: Path) -> None:
    """Writes configuration and weights (fp16 on disk, loaded as fp32) beside tokenizer and processor in `folder`."""
    weights = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["Sam3VideoModel"]
    model.config.detector_config.dtype = model.config.tracker_config.dtype = "float32"
    model.config.save_pretrained(folder)
    name_float32(folder / "config.json")


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser("python -m export.tiny.video.join", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--tracker", type=Path, required=True, help="folder of a training, or its weights' file")
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="to join it to, in place; default: the small one"
    )
    options = parser.parse_args(argv)
    model = joined(options.tracker, options.checkpoint)
    save(model, options.checkpoint)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    summary = {"output": str(options.checkpoint), "parameters": counts}
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
