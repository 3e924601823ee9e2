"""Entry point of segmentation archives. TorchServe wants exactly one class defined in this module."""

from handlers.adapter import Adapter


class SegmentationHandler(Adapter):
    """Images to masks."""

    task = "segmentation"
