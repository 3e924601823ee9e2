import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.config import load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "training" / "recipes").glob("*.toml"))

MINIMAL = """
name = "small"
task = "segmentation"
[data]
root = "somewhere"
[preprocess]
working_side = 64
[augment]
crop = [64, 64]
[optim]
epochs = 10
batch_size = 4
learning_rate = 1e-3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(MINIMAL)
    return tmp_path / "small.toml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_load_and_are_named_like_their_files(recipe: Path) -> None:
    assert load_recipe(recipe).name == recipe.stem


def test_the_shipped_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"wbc", "camvid", "clothing", "demo-segmentation", "demo-classification"}


def test_defaults_change_nothing(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.network.encoder == "resnet50"
    assert recipe.augment.model_dump(exclude={"crop"}) == {
        "scale": (1.0, 1.0),
        "hflip": False,
        "vflip": False,
        "quarter_turns": False,
        "policy": "none",
        **dict.fromkeys(("rotation", "brightness", "contrast", "saturation", "hue", "blur"), 0.0),
        **dict.fromkeys(("foreground", "erasing", "mixup", "cutmix"), 0.0),
    }


def test_overrides_are_toml_or_words(path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "optim.epochs=3",
            "augment.crop=[32, 96]",
            "network.encoder=resnet18",
            "data.root=a/b c",
            "augment.hflip=true",
        ],
    )
    assert recipe.optim.epochs == 3
    assert recipe.augment.crop == (32, 96)
    assert recipe.augment.hflip is True
    assert recipe.network.encoder == "resnet18"
    assert recipe.data.root == Path("a/b c")


def test_overrides_reach_sections_the_file_does_not_have(path: Path) -> None:
    assert load_recipe(path, ["serving.batch_size=3"]).serving.batch_size == 3


def test_a_recipe_is_frozen(path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(path).optim.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.epoch=3", "'optim.epoch' is not a known key: .*; known are epochs, batch_size, learning_rate"),
        ("colour=red", "'colour' is not a known key: .*; known are name, task, seed"),
        ("optim.epochs=many", "expected 'optim.epochs' to be a valid integer.*but got 'many'"),
        ("task=detection", "expected 'task' to be 'segmentation' or 'classification', but got 'detection'"),
        ("network.encoder=resnet5", "an encoder of unet, resnet18, .*, but got 'resnet5': did you mean resnet50[?]"),
        ("network.encoder=vgg", "an encoder of unet, resnet18, .*, but got 'vgg': choose one of these"),
        ("network.architecture=lraspp", "an encoder of lraspp, mobilenet_v3_large, but got 'resnet50'"),
        ("network.architecture=unet++", "to be 'unet', 'fcn', 'deeplabv3', 'lraspp' or 'classifier', but got 'unet"),
        ("network.architecture=classifier", "for segmentation to be unet or fcn or .*, but got classifier"),
        ("network.auxiliary_heads=5", "auxiliary_heads of unet to be 0 or 1 or 2 or 3 or 4, but got 5"),
        ("distillation.teacher_=3", "'distillation.teacher_' is not a known key: .*; known are teacher, weight, temp"),
        ("distillation.weight=1", "expected a value for 'distillation.teacher', but none was given"),
        ("optim.warmup_epochs=10", r"warmup_epochs to be less than epochs \(10\), but got 10"),
        ("augment.scale=[1.2, 0.8]", r"scale to be \[low, high\] with 0 < low <= high, but got \[1.2, 0.8\]"),
        ("augment.crop=[16, 64]", r"a crop of at least 32 x 32 pixels, but got \[16, 64\]"),
        ("augment.mixup=0.2", "segmentation without policy, erasing, mixup, cutmix .*, but got mixup: remove"),
        ("augment.policy=randaugment", "change images but not their masks.*, but got policy: remove"),
        ("augment.policy=autoaugment", "to be 'none', 'randaugment' or 'trivialaugment', but got 'autoaugment'"),
        ("optim.grad_clip=inf", "expected 'optim.grad_clip' to be a finite number, but got inf"),
        ("augment.scale=[1.0,inf]", r"expected 'augment.scale.1' to be a finite number, but got inf"),
        ("optim.batch_size=1", "expected 'optim.batch_size' to be greater than or equal to 2, but got 1"),
        (
            'loss.terms=[{kind="dice"}, {kind="lovasz", gamma=2}]',
            "'loss.terms.1.lovasz.gamma' is not a known key: .*; known are weight, begin, end, ramp, kind, per$",
        ),
        (
            'loss.terms=[{kind="hausdorff"}]',
            "expected 'loss.terms.0.kind' to be one of 'cross-entropy', 'focal'.*, but got 'hausdorff'",
        ),
        ("loss.terms=[{weight=1}]", "expected a value for 'loss.terms.0.kind', but none was given"),
        ("loss.class_weights=balanced", "'loss.class_weights': expected 'none', 'median-.*, but got 'balanced'"),
    ],
)
def test_a_wrong_value_names_the_file_the_key_and_what_came(path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"small.toml .with --set {re.escape(override)}.: .*{sentence}"):
        load_recipe(path, [override])


def test_foreground_is_refused_without_masks(path: Path) -> None:
    with pytest.raises(ValueError, match=r"augment.foreground only with masks, but got 0.5 for classification: remove"):
        load_recipe(path, ["task=classification", 'loss.terms=[{kind="cross-entropy"}]', "augment.foreground=0.5"])


def test_losses_on_masks_are_refused_for_classification(path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"loss.terms of classification to be cross-entropy or focal .*, but got dice:"
    ):
        load_recipe(path, ["task=classification", 'loss.terms=[{kind="focal"}, {kind="dice"}]'])


def test_a_missing_key_is_named(path: Path) -> None:
    path.write_text(MINIMAL.replace('root = "somewhere"', ""))
    with pytest.raises(ValueError, match=r"small.toml: expected a value for 'data.root', but none was given"):
        load_recipe(path)


@pytest.mark.parametrize("override", ["optim.epochs", "=3"])
def test_an_override_needs_a_key_and_a_value(path: Path, override: str) -> None:
    with pytest.raises(ValueError, match="expected --set key=value, but got"):
        load_recipe(path, [override])


def test_an_override_cannot_enter_a_value(path: Path) -> None:
    with pytest.raises(ValueError, match=r"'name' in 'name.first' holds no keys"):
        load_recipe(path, ["name.first=x"])


def test_what_is_no_toml_is_said(path: Path) -> None:
    path.write_text("name: small\n")
    with pytest.raises(ValueError, match=r"expected .*small.toml to be TOML, but it is not"):
        load_recipe(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.toml cannot be read \(No such file or directory\)"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("overrides", "architecture", "heads"),
    [
        ([], "unet", 0),
        (["network.auxiliary_heads=true"], "unet", 1),
        (["network.architecture=fcn", "network.auxiliary_heads=1"], "fcn", 1),
        (["task=classification"], "classifier", 0),
        (["task=classification", "network.encoder=googlenet"], "classifier", 2),
        (["task=classification", "network.encoder=googlenet", "network.auxiliary_heads=0"], "classifier", 0),
    ],
)
def test_what_a_recipe_does_not_say_of_its_network(
    path: Path, overrides: list[str], architecture: str, heads: int
) -> None:
    recipe = load_recipe(path, overrides)
    assert recipe.network.architecture_for(recipe.task) == architecture
    assert recipe.network.auxiliary_heads_for(recipe.task) == heads


def test_a_classifier_that_torchvision_does_not_have_is_refused_with_near_names(path: Path) -> None:
    with pytest.raises(ValueError, match=r"but got 'vgg61': choose for example vgg19, vgg16"):
        load_recipe(path, ["task=classification", "network.encoder=vgg61"])
