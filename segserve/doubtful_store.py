"""How a worker keeps the images that its model was least sure of, in the folder that `segserve.doubtful` describes."""

import contextlib
import hashlib
import logging
import os
import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel

from segserve.api import ModelInfo
from segserve.doubtful import NAMES, PARTS, DoubtfulSettings
from segserve.png import encode_index_png, encode_png
from segserve.prediction import ClassificationPrediction, Prediction, Query, SegmentationPrediction
from segserve.spec import ModelSpec, Plan
from segserve.whole import write_whole

logger = logging.getLogger(__name__)


class Scores(BaseModel):
    """How sure the model was, from 0 to 1, and which one it was."""

    model: ModelInfo
    tta: Plan
    label: str | None
    """Of a classifier."""
    mean_entropy: float
    mutual_information: float
    view_agreement: float


class DoubtfulStore:
    """One worker's way to the folder of its model, which all workers of the model share.

    Args:
        settings: of the service.
        spec: of the model.
        model: likewise.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, settings: DoubtfulSettings, spec: ModelSpec, model: ModelInfo) -> None:
        self.settings = settings
        self.spec = spec
        self.model = model
        self.folder = settings.folder / model.name
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in PARTS:
            (self.folder / part).mkdir(exist_ok=True)
        self._let_go = _LetGo(doubt=0.0, changed_at=0)
        self._is_writing = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segserve-doubtful")
        self.flush()  # starts the thread: later, when memory is short, that could fail

    def offer(self, query: Query, prediction: Prediction) -> None:
        """Keep an answered image if it is doubtful enough. A thread writes; what comes while it does is passed over."""
        if random.random() < self.settings.share and self._is_writing.acquire(blocking=False):
            self._thread.submit(self._keep, query, prediction)

    def flush(self) -> None:
        """Wait until what was offered is on disk."""
        self._thread.submit(lambda: None).result()

    def _keep(self, query: Query, prediction: Prediction) -> None:
        try:
            if prediction.mean_entropy > self._bar():
                self._write(query, prediction)
                self._make_room()
        except Exception:  # nobody looks at what a thread raises
            logger.warning("a doubtful image could not be kept", exc_info=True)
        finally:
            self._is_writing.release()

    def _bar(self) -> float:
        """A doubt that would not find room: nothing has changed since the last one that did not."""
        return self._let_go.doubt if self._let_go.changed_at == self._changed_at() else 0.0

    def _changed_at(self) -> int:
        return os.stat(self.folder / "images").st_mtime_ns

    def _write(self, query: Query, prediction: Prediction) -> None:
        digest = hashlib.sha256(query.image_HWC.tobytes()).hexdigest()[:16]
        if any((self.folder / "images").glob(f"*-{digest}.png")):
            return
        name = f"{prediction.mean_entropy:.4f}-{digest}"
        if isinstance(prediction, SegmentationPrediction):
            mask = encode_index_png(prediction.mask_HW, self.spec.classes)
            write_whole(self.folder / "masks" / f"{name}.png", mask)
        scores = self._scores(query, prediction).model_dump_json(exclude_none=True)
        write_whole(self.folder / "scores" / f"{name}.json", scores)
        write_whole(self.folder / "images" / f"{name}.png", encode_png(Image.fromarray(query.image_HWC)))

    def _scores(self, query: Query, prediction: Prediction) -> Scores:
        label = None
        if isinstance(prediction, ClassificationPrediction):
            label = self.spec.class_names[int(prediction.probs_K.argmax())]
        return Scores(
            model=self.model,
            tta=query.tta,
            label=label,
            mean_entropy=prediction.mean_entropy,
            mutual_information=prediction.mutual_information,
            view_agreement=prediction.view_agreement,
        )

    def _make_room(self) -> None:
        """Let the least doubtful ones go, where there are too many."""
        kept = self._kept()
        left, size = len(kept), sum(sum(files.values()) for files in kept.values())
        for name in sorted(kept):
            if left <= self.settings.most_images and size <= self.settings.most_megabytes * 10**6:
                break
            for path in kept[name]:
                path.unlink(missing_ok=True)
            left, size = left - 1, size - sum(kept[name].values())
            self._let_go = _LetGo(doubt=float(name.split("-")[0]), changed_at=self._changed_at())

    def _kept(self) -> dict[str, dict[Path, int]]:
        """The files by their names, and their bytes; of each name the image comes first."""
        kept: dict[str, dict[Path, int]] = defaultdict(dict)
        for part in reversed(PARTS):
            for path in (self.folder / part).glob(NAMES):
                with contextlib.suppress(FileNotFoundError):  # another worker deleted it
                    kept[path.stem][path] = path.stat().st_size
        return kept


class _LetGo(NamedTuple):
    """The last image for which there was no room."""

    doubt: float
    changed_at: int
    """When the folder of images was changed by that; `st_mtime_ns`."""
