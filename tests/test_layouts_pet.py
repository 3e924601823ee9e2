from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import data_digest, read_truth
from training.layouts import open_dataset
from training.layouts.pet import VAL_NOTE

TRIMAP_HW = np.array([[2, 2, 2, 2], [2, 3, 3, 2], [2, 3, 1, 3]], dtype=np.uint8)
MASK_HW = [[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 1, 2]]

TRAINVAL = [("Abyssinian", number, 1, 1) for number in range(1, 8)] + [("great_pyrenees", n, 2, 2) for n in range(1, 6)]
TEST = [("Abyssinian", 90, 1, 1), ("great_pyrenees", 91, 2, 2)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations/trimaps").mkdir(parents=True)
    for name, entries in (("trainval", TRAINVAL), ("test", TEST)):
        lines = [f"{breed}_{number} {label} {species} {number}\n" for breed, number, label, species in entries]
        (folder / f"annotations/{name}.txt").write_text("".join(lines))
        for breed, number, *_ in entries:
            Image.new("RGB", (4, 3), (number, 0, 0)).save(folder / f"images/{breed}_{number}.jpg")
            Image.fromarray(TRIMAP_HW).save(folder / f"annotations/trimaps/{breed}_{number}.png")
    return tmp_path


def _stems(root: Path, task: str) -> dict[str, list[str]]:
    dataset = open_dataset(root, task, layout="pet")  # type: ignore[arg-type]
    return {split: [sample.image.stem for sample in samples] for split, samples in dataset.splits.items()}


def test_trimaps_become_background_pet_and_border(root: Path) -> None:
    dataset = open_dataset(root, "segmentation", layout="pet")
    assert [entry.name for entry in dataset.classes] == ["background", "pet", "border"]
    assert (dataset.ignore_index, dataset.complaints) == (None, ())
    for sample in dataset.split("test"):
        assert read_truth(sample, ignore_index=None).tolist() == MASK_HW


def test_breeds_become_labels(root: Path) -> None:
    dataset = open_dataset(root, "classification", layout="pet")
    assert [entry.name for entry in dataset.classes] == ["Abyssinian", "Great Pyrenees"]
    assert [(sample.image.stem, sample.truth) for sample in dataset.split("test")] == [
        ("Abyssinian_90", 0),
        ("great_pyrenees_91", 1),
    ]


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_each_fifth_of_a_breed_is_held_out_and_a_note_says_so(root: Path, task: str) -> None:
    stems = _stems(root, task)
    assert stems["val"] == ["Abyssinian_5", "great_pyrenees_5"]
    assert stems["train"] == [
        *(f"Abyssinian_{number}" for number in (1, 2, 3, 4, 6, 7)),
        *(f"great_pyrenees_{number}" for number in (1, 2, 3, 4)),
    ]
    (note,) = open_dataset(root, task, layout="pet").notes  # type: ignore[arg-type]
    assert note == VAL_NOTE and "has no val split: each 5th image of a breed in trainval.txt is taken for it" in note


def test_the_digest_covers_the_labels_and_the_trimaps(root: Path) -> None:
    def digests() -> tuple[str, str]:
        masks = open_dataset(root, "segmentation", layout="pet")
        labels = open_dataset(root, "classification", layout="pet")
        return data_digest(masks, ["train"]), data_digest(labels, ["train"])

    masks, labels = digests()
    Image.fromarray(TRIMAP_HW.T).save(root / "oxford-iiit-pet/annotations/trimaps/Abyssinian_1.png")
    assert (digests()[0] != masks, digests()[1] == labels) == (True, True)
    table = root / "oxford-iiit-pet/annotations/trainval.txt"
    table.write_text(table.read_text().replace("Abyssinian_1 1 1 1", "Abyssinian_1 1 2 1"))
    assert digests()[1] != labels


def test_listed_files_that_are_missing_are_complained_of(root: Path) -> None:
    (root / "oxford-iiit-pet/annotations/trimaps/Abyssinian_2.png").unlink()
    assert open_dataset(root, "classification", layout="pet").complaints == ()
    (complaint,) = open_dataset(root, "segmentation", layout="pet").complaints
    assert complaint.startswith(
        "oxford-iiit-pet/annotations/trainval.txt: expected oxford-iiit-pet/annotations/trimaps"
    )
    assert "Abyssinian_2" not in _stems(root, "segmentation")["train"]


def test_wrong_lists_are_refused(root: Path) -> None:
    table = root / "oxford-iiit-pet/annotations/trainval.txt"
    table.write_text("Abyssinian_1 2 1 1\n")
    with pytest.raises(ValueError, match=r"trainval.txt: expected breeds numbered 1, 2, 3 and so on, a name each"):
        open_dataset(root, "segmentation", layout="pet")
    table.write_text("Abyssinian_1 1\n")
    with pytest.raises(
        ValueError, match=r"trainval.txt: expected lines of name, breed, species and number: .*; correct"
    ):
        open_dataset(root, "segmentation", layout="pet")
    table.unlink()
    with pytest.raises(ValueError, match=r"Pet, but there is no oxford-iiit-pet/annotations/trainval.txt: unpack"):
        open_dataset(root, "segmentation", layout="pet")
