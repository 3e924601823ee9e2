"""Checks tasks as Label Studio's import does and decodes them by its converter: FILE.answer ... -> FILE.npz ...

Runs in an environment of its own, see conftest.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_from_annotation
from label_studio_sdk.label_interface import LabelInterface

CONFIG = """
<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="tag" toName="image">
    <Label value="sky"/><Label value="road"/><Label value="tree"/><Label value="car"/>
  </BrushLabels>
</View>
"""


def decode(answer: Path) -> None:
    (task,) = json.loads(answer.read_text())
    (prediction,) = task["predictions"]
    errors = LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True)
    assert errors == [], errors
    # The converter is given a result's value and the rest of it as one, see Converter.annotation_result_from_task.
    results = [{**result, **result["value"]} for result in prediction["result"]]
    masks = {}
    for number, result in enumerate(results):
        (layer_HW,) = decode_from_annotation(result["from_name"], [result]).values()
        assert set(np.unique(layer_HW)) <= {0, 255}
        masks[f"{number} {result['brushlabels'][0]}"] = layer_HW == 255
    np.savez_compressed(answer.with_suffix(".npz"), **masks)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        decode(Path(argument))
