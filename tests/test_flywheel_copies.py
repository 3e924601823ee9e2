from pathlib import Path

from PIL import Image

from tests.rounds import held_out_set
from training.flywheel.copies import copies, held_out_images


def test_copies_are_found_by_their_pixels_in_the_splits_that_are_held_out(tmp_path: Path) -> None:
    dataset = held_out_set(tmp_path / "set")
    val, train = tmp_path / "set/images/val/3.png", tmp_path / "set/images/train/1.png"
    again, turned, broken = (tmp_path / name for name in ("again.bmp", "turned.png", "broken.png"))
    with Image.open(val) as image:
        image.save(again)
        image.transpose(Image.Transpose.ROTATE_180).save(turned)
    broken.write_bytes(b"no picture")
    (tmp_path / "set/images/val/5.png").write_bytes(b"no picture either")
    images = [again, turned, broken, val, train]
    assert copies(images, held_out_images(dataset)) == {again: val, val: val}
    splits = ("train", "val", "val")
    assert copies(images, held_out_images(dataset, splits=splits)) == {again: val, val: val, train: train}
    assert copies(images, held_out_images(dataset, splits=("test",))) == {}
