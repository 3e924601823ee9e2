"""CVAT: "CVAT for images 1.1", https://docs.cvat.ai/docs/manual/advanced/xml_format/; one mask shape a class."""

import json
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from segserve.answers import Region, read_cvat
from segserve.regions import find_classes
from segserve.rle import cvat_rle
from segserve.spec import ClassSpec
from training.flywheel.task import Task

FILE = "annotations.xml"
SHAPES = ("mask", "polygon")


def write(tasks: Sequence[Task], classes: Sequence[ClassSpec], model: str) -> bytes:
    """The file for "Upload annotations" of a CVAT task with these images; `model` is not told, CVAT has no place."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    meta = SubElement(SubElement(root, "meta"), "task")
    SubElement(meta, "size").text = str(len(tasks))
    labels = SubElement(meta, "labels")
    for entry in classes:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = entry.name
        SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*entry.color)
        SubElement(label, "attributes")
    for number, task in enumerate(tasks):
        height, width = task.size
        image = SubElement(root, "image", id=str(number), name=task.file, width=str(width), height=str(height))
        if task.mask_HW is not None:
            for region in find_classes(task.mask_HW, np.zeros_like(task.mask_HW)):
                left, top, box_width, box_height = map(str, region.box)
                SubElement(
                    image,
                    "mask",
                    label=classes[region.class_id].name,
                    source="auto",
                    occluded="0",
                    rle=", ".join(map(str, cvat_rle(region))),
                    left=left,
                    top=top,
                    width=box_width,
                    height=box_height,
                    z_order="0",
                )
    body: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return body


def labels_for(classes: Sequence[ClassSpec]) -> str:
    """What a new CVAT task wants in the "Raw" field of its labels."""
    return json.dumps(
        [
            {"name": entry.name, "color": "#{:02x}{:02x}{:02x}".format(*entry.color), "attributes": []}
            for entry in classes
        ]
    )


def read(body: bytes) -> Iterator[tuple[str, Sequence[Region]]]:
    """File names and shapes, the lowest first; a ValueError where the file or a shape is of another kind."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise ValueError(f"expected CVAT's XML, but it is broken: {error}; export it again") from None
    if root.tag != "annotations":
        raise ValueError(f"expected CVAT's annotations, but got {root.tag}: export as CVAT for images 1.1")
    for image in root.iter("image"):
        strange = sorted({shape.tag for shape in image} - {*SHAPES, "tag"})
        if strange:
            raise ValueError(
                f"expected shapes of kind {' or '.join(SHAPES)}, but {image.get('name')} has {', '.join(strange)}: "
                "redraw them"
            )
        shapes = sorted(
            (shape for shape in image if shape.tag in SHAPES), key=lambda shape: int(shape.get("z_order", 0))
        )
        alone = Element("annotations")
        alone.append(Element("image", image.attrib))
        alone[0].extend(map(_alone, shapes))
        yield image.attrib["name"], read_cvat(ElementTree.tostring(alone))


def _alone(shape: Element) -> Element:
    """Out of its group, which `read_cvat` would paint as one region, in the place of its first shape."""
    return Element(shape.tag, {name: value for name, value in shape.attrib.items() if name != "group_id"})
