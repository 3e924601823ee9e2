import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segserve.api import Request, Response
from segserve.sample import Views, ask, count_kept, keep, kept


def request(image: bytes = b"image", **options: str) -> Request:
    return Request(headers={f"x-segserve-{name}": value for name, value in options.items()}, fields={"body": image})


def answered(status: int = 200) -> Response:
    return Response(status=status, content_type="image/png", headers={}, body=b"mask")


def test_what_was_answered_well_is_kept_up_to_the_number_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    ask(folder, count=2)
    keep(
        folder,
        [request(b"broken"), request(b"a\nb", tta="flips"), request(b"c")],
        [answered(422), answered(), answered()],
    )
    keep(folder, [request(b"late")], [answered()])
    assert count_kept(folder) == 2
    assert sorted(kept(folder), key=lambda image: image[0]) == [(b"a\nb", Views(tta="flips")), (b"c", Views())]


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    keep(tmp_path / "sample", [request()], [answered()])
    assert list(tmp_path.iterdir()) == []


def test_the_image_is_kept_however_it_was_sent(tmp_path: Path) -> None:
    ask(tmp_path / "sample", count=1)
    body = json.dumps({"image": "aW1hZ2U=", "aggregate": "max"}).encode()
    sent = Request(headers={"content-type": "application/json"}, fields={"body": body})
    keep(tmp_path / "sample", [sent], [answered()])
    assert list(kept(tmp_path / "sample")) == [(b"image", Views(aggregate="max"))]


def test_tensors_are_not_kept(tmp_path: Path) -> None:
    ask(tmp_path / "sample", count=1)
    keep(tmp_path / "sample", [request(b'{"inputs": []}')], [answered()])
    assert count_kept(tmp_path / "sample") == 0


def test_of_many_workers_each_ticket_is_taken_by_one(tmp_path: Path) -> None:
    ask(tmp_path / "sample", count=20)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: keep(tmp_path / "sample", [request(b"%d" % n)], [answered()]), range(60)))
    images = [image for image, _ in kept(tmp_path / "sample")]
    assert len(images) == len(set(images)) == 20


@pytest.mark.parametrize(("error", "warnings"), [(errno.ENOSPC, 1), (errno.ENOENT, 0)])
def test_a_full_disk_or_a_deployment_that_ended_costs_nobody_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int, warnings: int
) -> None:
    ask(tmp_path / "sample", count=1)

    def fail(path: Path, content: bytes) -> int:
        raise OSError(error, "cannot")

    monkeypatch.setattr(Path, "write_bytes", fail)
    keep(tmp_path / "sample", [request()], [answered()])
    assert [record.message for record in caplog.records] == ["a request could not be kept for comparison"] * warnings


def test_only_its_user_may_look(tmp_path: Path) -> None:
    ask(tmp_path / "sample", count=1)
    assert (tmp_path / "sample").stat().st_mode & 0o777 == 0o700
