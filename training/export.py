"""Turn a finished run into an artifact."""

from pathlib import Path

from segserve.artifact import Artifact, save_artifact
from segserve.networks import build_network
from segserve.spec import ModelSpec
from training.data import read_image
from training.evaluate import Evaluation
from training.run import EXAMPLE, SCORES, Run


def export_run(run_dir: Path, out: Path) -> Artifact:
    """Write the artifact of a run: the averaged weights, the spec with the val scores, an image of val as the example.

    Args:
        run_dir: a folder that `segserve train` has finished. Its data set is not needed any more.
        out: the artifact's folder; an artifact that is there already is replaced.

    Raises:
        ValueError: the run is not there or not finished, or `out` is something else than an artifact.
    """
    run = Run(run_dir)
    recipe, checkpoint = run.recipe(), run.load()
    if checkpoint is None or not run.is_finished:
        raise ValueError(f"expected a finished run, but {run_dir} is not: go on with `segserve train`")
    spec = _with_scores(checkpoint.spec, Evaluation.model_validate_json((run_dir / SCORES).read_bytes()))
    network = build_network(spec.network, task=recipe.task, num_classes=spec.num_classes)
    network.load_state_dict(checkpoint.averaged)
    return save_artifact(out, spec, network, example_HWC=read_image(run_dir / EXAMPLE))


def _with_scores(spec: ModelSpec, evaluation: Evaluation) -> ModelSpec:
    """The spec, its provenance completed: `val_miou` and so on."""
    scores = {f"{evaluation.split}_{name}": score for name, score in evaluation.scores.items()}
    return spec.model_copy(update={"provenance": spec.provenance.model_copy(update={"scores": scores})})
