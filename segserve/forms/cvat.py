"""`format=cvat`: "CVAT for images 1.1", with one shape for each region (https://docs.cvat.ai/docs/manual/advanced/xml_format/)."""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from segserve.findings import Findings
from segserve.forms.part import Part
from segserve.polygons import MultiPolygon
from segserve.regions import Region
from segserve.rle import cvat_rle

NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document may hold, not even escaped."""


def cvat_part(findings: Findings) -> Part:
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    root.append(_meta(findings))
    root.append(_image(findings))
    body = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return Part(name="cvat", filename="annotations.xml", content_type="application/xml", body=body)


def _meta(findings: Findings) -> Element:
    meta = Element("meta")
    task = SubElement(meta, "task")
    SubElement(task, "size").text = "1"
    labels = SubElement(task, "labels")
    for entry in findings.asked:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = _text(entry.name)
        SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*entry.color)
        SubElement(label, "attributes")
    return meta


def _image(findings: Findings) -> Element:
    height, width = findings.size
    image = Element("image", id="0", name=_text(findings.options.name), width=str(width), height=str(height))
    for group, region in enumerate(findings.regions, start=1):
        polygons = findings.polygons(region) if findings.options.masks == "polygons" else []
        has_holes = any(len(rings) > 1 for rings in polygons)
        image.extend(
            [_mask(findings, region)] if has_holes or not polygons else _polygons(findings, region, polygons, group)
        )
    return image


def _mask(findings: Findings, region: Region) -> Element:
    left, top, width, height = map(str, region.box)
    rle = ", ".join(map(str, cvat_rle(region)))
    return Element("mask", _shared(findings, region), rle=rle, left=left, top=top, width=width, height=height)


def _polygons(findings: Findings, region: Region, polygons: MultiPolygon, group: int) -> list[Element]:
    """CVAT's polygons are one ring each; a group holds those of one region together."""
    grouped = {"group_id": str(group)} if len(polygons) > 1 else {}
    return [
        Element("polygon", _shared(findings, region), points=";".join(f"{x},{y}" for x, y in outline[:-1]), **grouped)
        for [outline] in polygons
    ]


def _shared(findings: Findings, region: Region) -> dict[str, str]:
    return {"label": _text(findings.name(region)), "source": "auto", "occluded": "0", "z_order": "0"}


def _text(name: str) -> str:
    return NOT_IN_XML.sub("\ufffd", name)
