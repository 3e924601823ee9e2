"""How much of the bare engine's throughput arrives over HTTP, with the client on the same machine: `make bench`.

Runs on the demo's segmentation model (`make demo` first). It is a benchmark, not a test: figures go to
runs/bench/report.json, and into docs/benchmarks/ by hand, dated.
"""

import json
import os
import platform
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from handlers.local_service import LocalService, local_service
from segserve.artifact import load_artifact
from segserve.codec import decode_image
from segserve.engines.torch_engine import TorchEngine
from segserve.prediction import Query
from segserve.predictor import SegmentationPredictor

DEMO = Path("runs/demo")
MODEL = "demo-segmentation"
REPORT = Path("runs/bench/report.json")
BATCH, CLIENTS, REQUESTS, REPEATS = 8, 16, 320, 5


def main() -> int:
    """Measure, print, write the report; returns the exit code."""
    if not (DEMO / "report.json").is_file():
        print(
            "bench: expected the demo's models in runs/demo, but there are none: run `make demo` first", file=sys.stderr
        )
        return 2
    image = (DEMO / "input.png").read_bytes()
    engine = _in_process(image)
    with local_service(DEMO / "model_store") as service:
        address = service.predictions(MODEL)
        _load(address, image, requests=REQUESTS // 4)
        served = [_load(address, image, requests=REQUESTS) for _ in range(REPEATS)]
        batch_images = _mean_batch(service)
    throughput = statistics.median(rate for rate, _ in served)
    latencies = sorted(latency for _, values in served for latency in values)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "image": "128x128 PNG in, index PNG out",
        "predictor_images_per_second": round(engine, 1),
        "http_images_per_second": round(throughput, 1),
        "http_over_predictor": round(throughput / engine, 3),
        "clients": CLIENTS,
        "mean_batch": round(batch_images, 2),
        "latency_ms": {"p50": _quantile(latencies, 0.5), "p95": _quantile(latencies, 0.95)},
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


def _in_process(image: bytes) -> float:
    """Images a second of the predictor alone, in batches, median of the repeats."""
    artifact = load_artifact(DEMO / "artifacts" / MODEL)
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network))
    queries = [Query(image_HWC=decode_image(image))] * BATCH
    predictor.predict(queries)
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(4):
            predictor.predict(queries)
        rates.append(4 * BATCH / (time.perf_counter() - start))
    return statistics.median(rates)


def _load(address: str, image: bytes, *, requests: int) -> tuple[float, list[float]]:
    """Images a second with all clients at once, and each request's milliseconds."""

    def ask(_: int) -> float:
        start = time.perf_counter()
        request = urllib.request.Request(address, data=image, headers={"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
        return (time.perf_counter() - start) * 1000

    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        latencies = list(pool.map(ask, range(requests)))
    return requests / (time.perf_counter() - start), latencies


def _mean_batch(service: LocalService) -> float:
    with urllib.request.urlopen(f"{service.ops}/metrics") as response:
        lines = response.read().decode().splitlines()
    label = f'{{model="{MODEL}"}}'
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("segserve_batch_images_") and label in line)
    return float(values[f"segserve_batch_images_sum{label}"]) / float(values[f"segserve_batch_images_count{label}"])


def _quantile(ordered: list[float], share: float) -> float:
    return round(ordered[int(share * (len(ordered) - 1))], 1)


if __name__ == "__main__":
    sys.exit(main())
