"""The networks: U-Net, torchvision's segmentation networks and its classifiers, built by name from a spec."""

from segserve.networks.build import Network, auxiliary_choices, build_network, served_weights
from segserve.networks.classifier import Classifier, PooledClassifier, check_classifier, classifier_names
from segserve.networks.encoder import Encoder
from segserve.networks.segmenter import Segmenter
from segserve.networks.unet import UNet
from segserve.networks.weights import load_encoder_weights, pretrained_statistics

__all__ = [
    "Classifier",
    "Encoder",
    "Network",
    "PooledClassifier",
    "Segmenter",
    "UNet",
    "auxiliary_choices",
    "build_network",
    "check_classifier",
    "classifier_names",
    "load_encoder_weights",
    "pretrained_statistics",
    "served_weights",
]
