"""Imports CVAT files with datumaro and draws their shapes: FILE.answer ... -> FILE.npz ...

Runs in an environment of its own, see conftest.py.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from datumaro.util import mask_tools
from PIL import Image

Image.MAX_IMAGE_PIXELS = None


def decode(answer: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(answer, Path(folder) / "annotations.xml")
        _write_image(Path(folder))
        dataset = Dataset.import_from(folder, "cvat")
        (item,) = dataset
        names = dataset.categories()[AnnotationType.label]
        height, width = item.media.size
        masks = {
            f"{number} {names[shape.label].name}": _draw(shape, height, width)
            for number, shape in enumerate(item.annotations)
        }
    np.savez_compressed(answer.with_suffix(".npz"), **masks)


def _write_image(folder: Path) -> None:
    """Datumaro wants the image to be there."""
    image = ElementTree.parse(folder / "annotations.xml").find("image")
    size = int(image.attrib["width"]), int(image.attrib["height"])
    (folder / "images").mkdir()
    Image.new("L", size).save(folder / "images" / image.attrib["name"])


def _draw(shape, height: int, width: int) -> np.ndarray:
    if shape.type == AnnotationType.mask:
        return np.asarray(shape.image, dtype=bool)
    assert shape.type == AnnotationType.polygon
    return np.asarray(mask_tools.rles_to_mask([shape.points], width, height), dtype=bool)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        decode(Path(argument))
