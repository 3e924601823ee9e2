"""What one prediction says of one image, in the shape every form of the answer draws from; found when first asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segserve import regions
from segserve.api import ModelInfo, Options
from segserve.png import NO_CLASS
from segserve.polygons import MultiPolygon, trace
from segserve.prediction import SegmentationPrediction
from segserve.regions import Region
from segserve.spec import ClassSpec, ModelSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """One image, what was asked about it, and what was found."""

    image_HWC: NDArray[np.uint8]
    """Upright RGB, (H, W, 3)."""
    options: Options
    prediction: SegmentationPrediction
    spec: ModelSpec
    model: ModelInfo

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.prediction.mask_HW.shape
        return height, width

    @cached_property
    def asked(self) -> tuple[ClassSpec, ...]:
        """The classes asked for, in the order of the spec."""
        names = self.options.classes or self.spec.class_names
        return tuple(entry for entry in self.spec.classes if entry.name in names)

    @cached_property
    def mask_HW(self) -> NDArray[np.uint8]:
        """Class indices without regions below `min_area`; `NO_CLASS` where the class was not asked for."""
        mask_HW = regions.sieve(self.prediction.mask_HW, self.options.min_area)
        if len(self.asked) == self.spec.num_classes:
            return mask_HW
        table = np.full(256, NO_CLASS, dtype=np.uint8)
        ids = [entry.id for entry in self.asked]
        table[ids] = ids
        return table[mask_HW]

    @cached_property
    def classes(self) -> tuple[Region, ...]:
        """The classes asked for that are present."""
        return regions.find_classes(self.mask_HW, self.prediction.confidence_HW)

    @cached_property
    def objects(self) -> tuple[Region, ...]:
        return regions.find_objects(
            self.mask_HW, self.prediction.confidence_HW, split=self.options.split, min_area=self.options.min_area
        )

    @property
    def regions(self) -> tuple[Region, ...]:
        """What forms that are lists have an entry for: objects where they were asked for, else classes."""
        return self.objects if self.options.objects else self.classes

    def name(self, region: Region) -> str:
        """Of its class."""
        return self.spec.classes[region.class_id].name

    def polygons(self, region: Region) -> MultiPolygon:
        """The region's outlines, simplified as asked."""
        is_class = bool(self.classes) and region.map is self.classes[0].map
        return (self._class_polygons if is_class else self._object_polygons)[region.label]

    @cached_property
    def _class_polygons(self) -> Mapping[int, MultiPolygon]:
        return trace(self.classes[0].map, outside=NO_CLASS, simplify=self.options.simplify)

    @cached_property
    def _object_polygons(self) -> Mapping[int, MultiPolygon]:
        return trace(self.objects[0].map, outside=regions.NO_OBJECT, simplify=self.options.simplify)
