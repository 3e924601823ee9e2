"""Predict the images of a folder or an object store, millions of them, on the workers of a Ray cluster.

Each answer is written whole and under its image's name, and its JSON last: so there is one answer an image however
often it is begun, and the same call goes on where another one was ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs
from pydantic import BaseModel, ValidationError

from segserve.api import ModelInfo, TtaInfo
from segserve.artifact import SPEC, read_spec
from segserve.cluster import deal_out
from segserve.codec import may_be_image
from segserve.digest import sha256_of
from segserve.offline import answers, check_stems, load_predictor
from segserve.spec import Plan
from segserve.whole import write_whole


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told."""

    artifact: Path
    """Every machine reaches it there."""
    images: str
    """A folder, or what pyarrow takes for one: s3://BUCKET/PATH, gs://, hdfs://, with their subfolders."""
    out: str
    """Likewise; the answers lie in the same subfolders."""
    tta: Plan = "none"


def find_images(job: Job) -> tuple[list[str], list[str]]:
    """The names, below the folder, of the images that have no answer yet, and of those that have.

    Raises:
        ValueError: there are no images, two would have the same answer, or answers would lie among the images.
    """
    images, out = _Place.at(job.images), _Place.at(job.out)
    if type(out.system) is type(images.system) and f"{out.root}/".startswith(f"{images.root}/"):
        raise ValueError(
            f"expected a place outside of {job.images}, where answers would count as images, but got {job.out}: "
            "choose another"
        )
    names = [name for name in images.files() if may_be_image(PurePosixPath(name))]
    if not names:
        raise ValueError(f"expected images in {job.images}, but there are none: correct it")
    check_stems([_stem(name) for name in names])
    answered = {_stem(name) for name in out.files() if name.endswith(".json")}
    there = [name for name in names if _stem(name) in answered]
    return [name for name in names if _stem(name) not in answered], there


def check_answers(job: Job, names: Sequence[str]) -> None:
    """A ValueError where the first of these, which are answered, is by another model or has other views.

    Without it, another job in the same place would end at once, or half of its answers would be the other one's. What
    somebody else wrote there stays, as it always does.
    """
    for name in names[:1]:
        file = f"{_stem(name)}.json"
        try:
            answer = _Answer.model_validate_json(_Place.at(job.out).read(file))
        except ValidationError:
            continue
        if (answer.model.digest, answer.tta.plan) != (sha256_of(job.artifact / SPEC), job.tta):
            raise ValueError(
                f"expected answers of {job.artifact} with tta {job.tta} in {job.out}, but {file} is by model "
                f"{answer.model.name} {answer.model.digest[:12]} with tta {answer.tta.plan}: choose another --out, or "
                "delete the answers to have them made anew"
            )


class _Answer(BaseModel):
    """What is looked at of one."""

    model: ModelInfo
    tta: TtaInfo


def predict_all(job: Job, names: Sequence[str], *, workers: int) -> Iterator[tuple[str, str | None]]:
    """Predict images on a cluster; see `segserve.cluster`.

    Args:
        job: what is to be done.
        names: of which images.
        workers: how many processes.

    Yields:
        Each image when it is done, with what was wrong with it or None.
    """
    told = job, _Place.at(job.images), _Place.at(job.out)
    batch_size = read_spec(job.artifact).serving.batch_size
    for name, fault in deal_out(names, _Answers, told=told, workers=workers, batch_size=batch_size):
        yield name, fault or None


class _Answers:
    """Those of one worker. It is told the places, as a relative path is another one in its own folder."""

    def __init__(self, job: Job, images: "_Place", out: "_Place") -> None:
        self.job, self.images, self.out = job, images, out
        self.artifact, self.predictor = load_predictor(job.artifact)

    def __call__(self, names: Sequence[str]) -> list[str]:
        """What was wrong with each, or nothing."""
        faults = dict.fromkeys(names, "")
        for name, answer in answers(
            names, self.images.read, artifact=self.artifact, predictor=self.predictor, tta=self.job.tta
        ):
            if isinstance(answer, str):
                faults[name] = answer
                continue
            for suffix, body in answer.items():
                self.out.write(f"{_stem(name)}{suffix}", body)
        return list(faults.values())


@dataclass(frozen=True)
class _Place:
    """A folder of a file system or an object store."""

    system: fs.FileSystem
    root: str

    @classmethod
    def at(cls, name: str) -> "_Place":
        return cls(*fs.FileSystem.from_uri(name if "://" in name else str(Path(name).resolve())))

    def files(self) -> list[str]:
        """Their names below the root, in order."""
        everything = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        try:
            paths = [info.path for info in self.system.get_file_info(everything) if info.is_file]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"expected names in UTF-8 below {self.root}, but one has the bytes {error.object!r}: rename the file"
            ) from None
        return sorted(path.removeprefix(self.root).lstrip("/") for path in paths)

    def read(self, name: str) -> bytes:
        with self.system.open_input_stream(f"{self.root}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all, which an object store sees to itself."""
        if isinstance(self.system, fs.LocalFileSystem):
            write_whole(Path(self.root) / name, content)
            return
        with self.system.open_output_stream(f"{self.root}/{name}") as stream:
            stream.write(content)


def _stem(name: str) -> str:
    """Without the suffix, but with the folders."""
    return str(PurePosixPath(name).with_suffix(""))
