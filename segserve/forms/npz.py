"""`format=npz`: arrays for `numpy.load`, without pickle."""

import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from segserve.findings import Findings
from segserve.forms.part import Part


def npz_part(findings: Findings) -> Part:
    """`probabilities` (K, H, W), 255 = 1 or float16, of the `classes` and `class_ids` (K,); `mask` (H, W)."""
    probs_KHW = findings.prediction.probs_KHW
    assert probs_KHW is not None, "the query must ask for the probabilities"
    ids = np.array([entry.id for entry in findings.asked])
    arrays = {
        "probabilities": probs_KHW if len(ids) == len(probs_KHW) else probs_KHW[ids],
        "mask": findings.mask_HW,
        "classes": np.array([entry.name for entry in findings.asked]),
        "class_ids": ids,
    }
    return Part(name="npz", filename="answer.npz", content_type="application/x-npz", body=_zipped(arrays))


def _zipped(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """As `numpy.savez_compressed` does, but at zlib's fastest level: a fifth of the time, and hardly more bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()
