"""Every metric of the handlers, declared once. Durations in seconds; labels bounded.

Under `segserve serve` the environment names PROMETHEUS_MULTIPROC_DIR, so that the ops port can add up the values of all
workers; prometheus-client reads it when it is imported.
"""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MEGAPIXELS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 1)
BATCH = (1, 2, 4, 8, 16, 32, 64)

REQUESTS = Counter(
    "segserve_requests_total", "Requests answered; outcome is ok, rejected (4xx) or failed (5xx)", ["model", "outcome"]
)
REJECTED = Counter("segserve_rejected_total", "Requests answered with a problem, by its kind", ["model", "reason"])
DEGRADED = Counter(
    "segserve_degraded_total",
    "Requests that waited too long to get all they asked for, by what was left out",
    ["model", "what"],
)
DECODER_CRASHES = Counter(
    "segserve_decoder_crashes_total", "Workers that a fatal signal ended while they decoded images"
)
REQUEST_SECONDS = Histogram(
    "segserve_request_seconds", "From the batch's arrival in the worker to its answers", ["model"], buckets=SECONDS
)
STAGE_SECONDS = Histogram(
    "segserve_stage_seconds",
    "decode and encode: of one image; the other stages: of one batch",
    ["model", "stage"],
    buckets=SECONDS,
)
BATCH_IMAGES = Histogram("segserve_batch_images", "Requests in a batch", ["model"], buckets=BATCH)
IMAGE_MEGAPIXELS = Histogram(
    "segserve_image_megapixels", "Size of the images decoded, in millions of pixels", ["model"], buckets=MEGAPIXELS
)
CLASS_PIXELS = Counter("segserve_class_pixels_total", "Pixels answered, by class", ["model", "version", "class"])
CLASS_IMAGES = Counter(
    "segserve_class_images_total",
    "Images answered with labels, by the most probable class",
    ["model", "version", "class"],
)
CONFIDENCE = Histogram(
    "segserve_confidence", "Mean probability of the chosen class, of one image", ["model"], buckets=SHARES
)
CONFIDENCE_IMAGES = Counter(
    "segserve_confidence_images_total",
    "Images answered, by the bin of their confidence; it is named by its upper bound",
    ["model", "version", "bin"],
)
REFERENCE_CLASS_SHARE = Gauge(
    "segserve_reference_class_share",
    "Share of each class in the answers on held-out images",
    ["model", "version", "class"],
    multiprocess_mode="livemostrecent",
)
REFERENCE_CONFIDENCE_SHARE = Gauge(
    "segserve_reference_confidence_share",
    "Share of the held-out images in each bin of confidence",
    ["model", "version", "bin"],
    multiprocess_mode="livemostrecent",
)
IN_FLIGHT = Gauge("segserve_in_flight", "Requests in the workers", ["model"], multiprocess_mode="livesum")
MODEL_INFO = Gauge(
    "segserve_model_info",
    "1 for each model a worker has loaded",
    ["model", "version", "digest", "engine", "device"],
    multiprocess_mode="livemax",
)
