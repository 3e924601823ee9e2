import pytest
import torch
import torchvision

from segserve.engines.torch_engine import TorchEngine
from segserve.networks import Segmenter
from segserve.prediction import Query
from segserve.predictor import SegmentationPredictor
from segserve.spec import Architecture, ModelSpec
from tests.conftest import random_image
from tests.test_networks import randomise_batch_norm, torchvision_backbone

CASES: list[tuple[Architecture, str, int]] = [
    ("fcn", "resnet50", 1),
    ("deeplabv3", "mobilenet_v3_large", 1),
    ("lraspp", "mobilenet_v3_large", 0),
]


def segmenter(architecture: str, encoder: str, auxiliary_heads: int = 0) -> Segmenter:
    network = Segmenter(architecture, encoder, num_classes=4, auxiliary_heads=auxiliary_heads)  # type: ignore[arg-type]
    randomise_batch_norm(network)
    return network.eval()


@pytest.mark.parametrize(("architecture", "encoder", "auxiliary_heads"), CASES)
@torch.no_grad()
def test_with_the_same_weights_it_is_torchvisions_own(architecture: str, encoder: str, auxiliary_heads: int) -> None:
    ours = segmenter(architecture, encoder, auxiliary_heads)
    options = {"aux_loss": True} if auxiliary_heads else {}
    theirs = torchvision.models.get_model(
        f"{architecture}_{encoder}", weights=None, weights_backbone=None, num_classes=4, **options
    ).eval()
    names = (("head.", "classifier."), ("auxiliary.", "aux_classifier."))
    state = ours.state_dict()
    for mine, their in names:
        state = {their + name.removeprefix(mine) if name.startswith(mine) else name: t for name, t in state.items()}
    theirs.load_state_dict(state)
    images_BCHW = torch.randn(2, 3, 65, 90)
    expected = theirs(images_BCHW)
    assert torch.equal(ours(images_BCHW), expected["out"])
    if auxiliary_heads:
        for network in (ours, theirs):
            network.train()
            for module in network.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
        outputs, expected = ours(images_BCHW), theirs(images_BCHW)
        assert torch.equal(outputs[0], expected["out"])
        assert torch.equal(outputs[1], expected["aux"])


@pytest.mark.parametrize(("architecture", "encoder", "_"), CASES)
@torch.no_grad()
def test_answers_at_the_size_of_its_input(architecture: str, encoder: str, _: int) -> None:
    network = segmenter(architecture, encoder)
    for size in ((1, 1), (1, 50), (33, 47), (64, 32)):
        logits_BKHW = network(torch.randn(2, 3, *size))
        assert logits_BKHW.shape == (2, 4, *size)
        assert logits_BKHW.isfinite().all()


def test_the_predictor_answers_for_any_size_and_batches_change_nothing(spec: ModelSpec) -> None:
    predictor = SegmentationPredictor(spec, TorchEngine(segmenter("deeplabv3", "mobilenet_v3_large")))
    queries = [Query(image_HWC=random_image(*size)) for size in ((1, 1), (40, 7), (64, 48), (64, 48))]
    for query, together in zip(queries, predictor.predict(queries), strict=True):
        (alone,) = predictor.predict([query])
        assert together.mask_HW.shape == query.image_HWC.shape[:2]
        assert (together.mask_HW == alone.mask_HW).mean() > 0.99


@pytest.mark.parametrize(("architecture", "encoder", "_"), CASES)
def test_the_backbone_takes_the_classification_networks_weights(architecture: str, encoder: str, _: int) -> None:
    backbone = torchvision_backbone(encoder)  # type: ignore[arg-type]
    network = segmenter(architecture, encoder)
    network.take_backbone(backbone)
    theirs = backbone.state_dict()
    prefix = "" if encoder.startswith("resnet") else "features."
    state = network.backbone.state_dict()
    assert all(torch.equal(tensor, theirs[prefix + name]) for name, tensor in state.items())
    assert len(state) > 0.9 * len([name for name in theirs if name.startswith(prefix)])
