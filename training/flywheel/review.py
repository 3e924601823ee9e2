"""The review page of a round: every mask to be looked at, the most doubtful first, in one file that needs no server.

Dimensions: H, W, C channels.
"""

import io
import json
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segserve.png import to_base64
from segserve.spec import ClassSpec
from segserve.whole import write_whole
from training.data import IGNORE, read_image
from training.flywheel.review_look import SCRIPT, STYLE
from training.flywheel.round import Entry, Round, RoundOrder
from training.flywheel.soft import SoftMask
from training.markup import heat_map

PAGE = "review.html"
LONGER_SIDE = 320
"""Of the pictures on the page: a few hundred of them are some megabytes."""
FAINT = 90
"""Opacity, of 255, of pixels that are not trained on."""


def write_review(found: Round) -> None:
    """Write the page of a round whose images are all done."""
    write_whole(found.path / PAGE, review_page(found))


def review_page(found: Round) -> str:
    """HTML: the model's masks in the order of the round's score, the least first; what a person made is left out."""
    order = found.order
    entries = [entry for entry in found.entries().values() if not entry.fault and entry.source == "model"]
    entries.sort(key=lambda entry: entry.scores.get(order.thresholds.score, 0.0))
    pictures = [_Pictures(found, entry, order) for entry in entries]
    data = {
        "round": order.number,
        "artifact": order.artifact,
        "images": [_facts(found, entry, each) for entry, each in zip(entries, pictures, strict=True)],
    }
    cards = "".join(_card(entry, each, order) for entry, each in zip(entries, pictures, strict=True))
    # Inside a script element, only what could end it must be written otherwise.
    text = json.dumps(data).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Review: round {order.number}, {escape(order.model)}</title><style>{STYLE}</style></head><body>"
        f'{_header(order, len(entries))}<main><div><div class="grid">{cards}</div>'
        f'<p class="empty" id="empty" hidden>None of these. Choose others above.</p></div>{_detail()}</main>'
        f'<script type="application/json" id="data">{text}</script><script>{SCRIPT}</script></body></html>\n'
    )


def _header(order: RoundOrder, count: int) -> str:
    legend = "".join(
        f'<li><span style="background:rgb{tuple(entry.color)}"></span>{escape(entry.name)}</li>'
        for entry in order.classes
    )
    counts = "".join(
        f'<li class="{name}"><b id="count-{name}">0</b> {word}</li>'
        for name, word in (
            ("left", "to judge"),
            ("accept", "accepted"),
            ("work", "needs work"),
            ("reject", "rejected"),
        )
    )
    return (
        f'<header><div class="bar"><h1>Round {order.number}</h1><p class="note">{escape(order.model)}, {count} images, '
        f'the most doubtful first</p><ul class="counts" aria-live="polite">{counts}</ul></div><div class="bar">'
        '<label>Show <select id="filter"><option value="all">all</option><option value="open">not judged</option>'
        '<option value="review">review</option><option value="relabel">relabel</option>'
        '<option value="accept">accept</option></select></label>'
        '<label>Mask <input type="range" id="opacity" min="0" max="100" value="50"></label>'
        f'<ul class="legend">{legend}</ul>'
        '<div class="end"><label>Reviewer <input type="text" id="reviewer" size="10"></label>'
        '<button id="undo">Undo <kbd>U</kbd></button>'
        '<button id="save" class="main">Save decisions <kbd>S</kbd></button></div></div></header>'
    )


def _detail() -> str:
    actions = "".join(
        f'<button class="{name}" data-verdict="{name}">{word} <kbd>{key}</kbd></button>'
        for name, word, key in (("accept", "Accept", "A"), ("work", "Needs work", "W"), ("reject", "Reject", "R"))
    )
    return (
        '<aside class="detail"><div id="detail"><h2><span id="name"></span><small id="guess"></small></h2>'
        '<div class="stack"><img id="large" alt="the image"><img id="large-mask" class="mask" alt="its mask"></div>'
        f'<div class="actions">{actions}</div><div class="small"><figure><img id="plain" class="stack" '
        'alt="the image without its mask"><figcaption>Image</figcaption></figure><figure><img id="views" class="stack" '
        'alt="share of the views that say something else"><figcaption>Where the views disagree'
        '</figcaption></figure></div><p class="note"><kbd>←</kbd> <kbd>→</kbd> move, <kbd>space</kbd> mask on and off. '
        'Faint pixels of a mask are not trained on.</p><table id="scores"></table></div>'
        '<p class="note" id="none" hidden>No image is chosen.</p></aside>'
    )


def _card(entry: Entry, pictures: "_Pictures", order: RoundOrder) -> str:
    score = entry.scores.get(order.thresholds.score, 0.0)
    name = escape(entry.name)
    return (
        f'<button class="card"><span class="stack"><img src="{pictures.photo}" alt="{name}">'
        f'<img class="mask" src="{pictures.mask}" alt="its mask"><span class="badge"></span></span>'
        f'<span class="label"><span>{name}</span><span>{score:.3f}</span></span></button>'
    )


def _facts(found: Round, entry: Entry, pictures: "_Pictures") -> dict[str, Any]:
    return {
        "name": entry.name,
        "looked_at": found.looked_at(entry),
        "verdict": entry.verdict,
        "by": "by the thresholds" if entry.decided_by == "thresholds" else f"by {entry.decided_by}",
        "scores": entry.scores,
        "views": pictures.views,
        "aspect": round(pictures.size[0] / pictures.size[1], 4),
    }


class _Pictures:
    """The addresses of one image's pictures, all of one small size."""

    def __init__(self, found: Round, entry: Entry, order: RoundOrder) -> None:
        image_HWC, soft = read_image(found.image(entry)), SoftMask.read(found.soft(entry.name))
        height, width = soft.mask_HW.shape
        factor = min(1.0, LONGER_SIDE / max(height, width))
        self.size = max(1, round(factor * width)), max(1, round(factor * height))
        self.photo = _address(self._small(Image.fromarray(image_HWC)), "jpeg", quality=80)
        trainable_HW = order.pixels.trainable(soft)
        self.mask = self._mask(soft.mask_HW, trainable_HW == IGNORE, order.classes)
        self.views = _address(self._small(Image.fromarray(heat_map(soft.disagreement_HW))), "jpeg", quality=75)

    def _small(self, image: Image.Image) -> Image.Image:
        return image.resize(self.size, Image.Resampling.BOX)

    def _mask(self, mask_HW: NDArray[np.uint8], ignored_HW: NDArray[np.bool_], classes: tuple[ClassSpec, ...]) -> str:
        """Colours of the classes, fainter where pixels are ignored, as a palette PNG."""
        count = len(classes)
        can_fade = 2 * count <= 256
        index_HW = mask_HW + np.uint8(count) * ignored_HW if can_fade else mask_HW
        image = Image.fromarray(index_HW.astype(np.uint8))
        image.putpalette([channel for entry in classes for channel in entry.color] * (2 if can_fade else 1))
        opacity = bytes([255] * count + [FAINT] * count * can_fade)
        small = image.resize(self.size, Image.Resampling.NEAREST)
        return _address(small, "png", optimize=True, transparency=opacity)


def _address(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{to_base64(buffer.getvalue())}"
