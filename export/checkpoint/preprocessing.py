"""Whether a checkpoint wants its pictures as this project prepares them: stretched to a square, values from -1 to 1."""

from __future__ import annotations

from pathlib import Path

from export.checkpoint.error import CheckpointError
from export.checkpoint.folder import read_json

FILES = ("processor_config.json", "preprocessor_config.json")
EXPECTED = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
}


def check_preprocessing(folder: Path) -> None:
    """Raises CheckpointError where the folder says that pictures were prepared otherwise in training; the vision
    encoder has the normalisation folded in."""
    for path in (folder / name for name in FILES):
        if not path.is_file():
            continue
        said = read_json(path)
        said = said.get("image_processor", said)
        for name, wanted in EXPECTED.items():
            if said.get(name, wanted) != wanted:
                raise CheckpointError(
                    f"{path}: {name} is {said[name]}, expected {wanted}, SAM3's own, which every client's frames are"
                    " prepared with; train with SAM3's image processor"
                )
