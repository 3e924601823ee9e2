"""What the supervisor and its workers agree on: the environment variables it gives them, and an archive's layout.

Apart from both, because the supervisor does without torch.
"""

ARTIFACT_FOLDER = "artifact"
"""In an archive: the folder with the artifact."""
ENGINE = "SEGSERVE_ENGINE"
"""The engine to take for every model, whatever its spec says."""
DRAIN_FLAG = "SEGSERVE_DRAIN_FLAG"
"""The file whose existence says that the service is being stopped."""
SAMPLE_FOLDER = "SEGSERVE_SAMPLE_FOLDER"
"""The folder that exists while requests are to be kept, see `segserve.sample`."""
BROWNOUT_MS = "SEGSERVE_BROWNOUT_MS"
"""How long a request may wait until test-time augmentation is left out."""
QUARANTINE_FOLDER = "SEGSERVE_QUARANTINE_FOLDER"
"""Where workers note what they decode, see `segserve.quarantine`."""
DOUBTFUL = "SEGSERVE_DOUBTFUL"
"""`segserve.doubtful.DoubtfulSettings` as JSON."""
