"""Entry point of classification archives. TorchServe wants exactly one class defined in this module."""

from handlers.adapter import Adapter


class ClassificationHandler(Adapter):
    """Images to labels."""

    task = "classification"
