"""The files that results are written to: annotated videos and images, JSON lines, COCO results.

Each raises what goes wrong with its file. Whoever writes may go on then: what cannot be mended raises again.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clients.detections import Detections
from clients.draw import annotate
from clients.video.encode import VideoWriter
from clients.video.frames import Frame

SUFFIXES = (".mp4", ".png", ".jpg", ".jsonl", ".json")
"""An annotated video, the annotated frame with the most detections, JSON lines, COCO results."""


class JsonLines:
    """A file with one JSON object per line, replaced unless `append`. Several processes may append to one file: each
    line is one write, so none is cut by another one. A file that is deleted or moved meanwhile is made anew."""

    def __init__(self, path: Path, append: bool = True) -> None:
        self.path = path
        self._cut = False
        self._file = self._open(0 if append else os.O_TRUNC)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line, whole or not at all where the file is a plain one."""
        line = (json.dumps(record) + "\n").encode()
        self._follow()
        if self._cut:
            line = b"\n" + line
        before, done = os.fstat(self._file), 0
        try:
            while done < len(line):
                done += os.write(self._file, line[done:])
        except OSError:
            if done and stat.S_ISREG(before.st_mode) and os.fstat(self._file).st_size == before.st_size + done:
                os.ftruncate(self._file, before.st_size)
            else:
                self._cut = self._cut or done > 0
            raise
        self._cut = False

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _open(self, flags: int = 0) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # a pipe that nobody reads is refused at once, and waits for a slow reader from then on
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | flags, 0o644)
        os.set_blocking(file, True)
        return file

    def _follow(self) -> None:
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            same = False
        if not same:
            new = self._open()
            os.close(self._file)
            self._file, self._cut = new, False


class CocoResults:
    """A JSON array of COCO result records, as pycocotools' `loadRes` reads it: `image_id` is the frame's number,
    `category_id` the index of the class in the camera's list, masks are RLE at the frame's size. The array is complete
    once it is closed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._separator = "["

    def write(self, frame: int, found: Detections) -> None:
        """Appends the detections of one frame, all or none of them."""
        _still_there(self.path)
        text, separator = "", self._separator
        for item in found.to_coco(frame):
            if "segmentation" in item:
                item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
            text += f"{separator}\n{json.dumps(item)}"
            separator = ","
        self._append(text)
        self._separator = separator

    def close(self) -> None:
        """Completes the array."""
        with self._file:
            self._append("[]\n" if self._separator == "[" else "\n]\n")
        _still_there(self.path)

    def _append(self, text: str) -> None:
        data, start = text.encode(), self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):  # a device; the first failure is the one to tell
                self._file.seek(start)
                self._file.truncate()
            raise


class Drawing:
    """An annotated video of all frames, or for an image's suffix the annotated frame with the most detections."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._most = -1
        self._video = VideoWriter(path, fps) if path.suffix == ".mp4" else None
        self._broken: Exception | None = None
        self._began = False  # the encoder has handed out a packet, and so there is a file

    def write(self, frame: Frame, found: Detections, tracks: Sequence[int] = ()) -> None:
        """Draws the detections of one frame, with their `tracks` [D] if there are any. A frame of another size than a
        video's first one is scaled into it. A video that has failed cannot go on: it fails each time from then on."""
        if self._broken is not None:
            raise self._broken
        if self._video:
            picture = annotate(frame.rgb, found, tracks=tracks)
            try:
                if self._began:
                    _still_there(self.path)
                self._began = self.path.exists()
                self._video.write(_fitted(picture, self._video.size))
            except Exception as error:
                self._broken = error
                raise
        elif len(found) > self._most:
            self._save(annotate(frame.rgb, found, tracks=tracks))
            self._most = len(found)

    def close(self) -> None:
        """Completes the video."""
        if self._video and self._video.frames:
            self._video.close()
            _still_there(self.path)

    def _save(self, picture: NDArray[np.uint8]) -> None:
        """Replaces the file by a whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.stem}.new{self.path.suffix}")
        try:
            Image.fromarray(picture).save(new)
            new.replace(self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _fitted(picture: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The picture scaled into `size`, width and height, with black bars; as it is where they are equal or None."""
    if size is None or (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2) == size:
        return picture
    return np.asarray(ImageOps.pad(Image.fromarray(picture), size))


def _still_there(path: Path) -> None:
    """Raises FileNotFoundError where the file was deleted while it was written: the system would go on without a
    word."""
    if not path.exists():
        raise FileNotFoundError(f"{path} was deleted while it was written")
