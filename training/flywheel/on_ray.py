"""Label images on the workers of a Ray cluster, which all reach artifact, images and round under the same paths."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from segserve.cluster import deal_out
from training.flywheel.pseudolabel import Labeller, one_by_one
from training.flywheel.round import Entry, Round

_BATCH_SIZE = 4
"""Few, as each image is seen alone, in all views: more would only be more to do again where a worker dies."""


def label_on_ray(labeller: Labeller, found: Round, paths: Sequence[Path], *, workers: int) -> Iterator[Entry]:
    """What `one_by_one` yields, as it comes; see `segserve.cluster`."""
    unloaded = replace(labeller, artifact=replace(labeller.artifact))
    told = unloaded, found, Path.cwd()
    names = [str(path) for path in paths]
    for _, line in deal_out(names, _Lines, told=told, workers=workers, batch_size=_BATCH_SIZE):
        yield Entry.model_validate_json(line)


class _Lines:
    """Those of one worker, which works in the folder of the call: its paths may be relative."""

    def __init__(self, labeller: Labeller, found: Round, folder: Path) -> None:
        os.chdir(folder)
        self.label = partial(one_by_one, labeller, found)

    def __call__(self, names: Sequence[str]) -> list[str]:
        return [entry.model_dump_json() for entry in self.label([Path(name) for name in names])]
