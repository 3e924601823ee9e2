"""The `segserve` command: parses, delegates, prints. It and the demo alone see segserve, handlers and training.

A command imports what it needs when it runs, so that `segserve serve` starts without the training packages.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

from pydantic import ValidationError

from segserve.settings import explain
from segserve.spec import Aggregate, EngineChoice, EngineName, Plan
from segserve.whole import check_place, write_whole

if TYPE_CHECKING:
    from segserve.spec import ModelSpec
    from training.config import Recipe
    from training.flywheel.pseudolabel import Label

Command = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the work failed or a check did not hold, 2 wrong usage or bad input.
    """
    given = _parser().parse_args(arguments)
    command: Command = given.command
    try:
        return command(given)
    except ValidationError as error:
        return _complain(explain(error), code=2)
    except OSError as error:
        return _complain(_of_system(error), code=2)
    except ValueError as error:
        return _complain(str(error), code=2)
    except RuntimeError as error:
        return _complain(str(error), code=1)
    except KeyboardInterrupt:
        return 130


def _of_system(error: OSError) -> str:
    path = error.filename2 or error.filename
    if path is None:
        return str(error)
    return f"expected to use {path}, but the system says: {error.strerror}; correct the path, or what is there"


def _complain(sentence: str, *, code: int) -> int:
    print(f"segserve: {sentence}", file=sys.stderr)
    return code


def _check_places(*files: Path | None) -> None:
    for file in filter(None, files):
        check_place(file)


def _lint(given: argparse.Namespace) -> int:
    from training.layouts import detect_task
    from training.lint.inspection import inspect
    from training.lint.page import write_page

    _check_places(given.json, given.html)
    report = inspect(given.dataset, detect_task(given.dataset, layout=given.layout), layout=given.layout)
    if given.json:
        report.write(given.json)
    if given.html:
        write_page(report, given.html)
    print(report.text())
    return 1 if report.of("error") else 0


def _convert(given: argparse.Namespace) -> int:
    from training.convert import Rule, convert, parse_map

    rule = Rule(
        colors=given.colors,
        map=None if given.map is None else parse_map(given.map),
        threshold=given.threshold,
        class_from=given.class_from,
        tolerance=given.tolerance,
    )
    changes = convert(given.source, given.out, rule, masks=given.masks)
    for change in changes:
        print(change.line())
    num_rounded = sum(change.rounded > 0 for change in changes)
    print(f"{given.out}: {len(changes)} masks, {num_rounded} of them rounded; next: segserve lint {given.out}")
    return 0


def _train(given: argparse.Namespace) -> int:
    from training.config import load_recipe
    from training.engine import train
    from training.ranks import is_first_process

    recipe = load_recipe(given.recipe, overrides=given.set)
    if given.seeds:
        return _train_seeds(recipe, given.seeds)
    run = train(recipe, run_dir=Path("runs") / recipe.name)
    if is_first_process():
        print(f"{run}: done; next: segserve export {run} --out artifacts/{recipe.name}")
    return 0


def _train_seeds(recipe: "Recipe", seeds: tuple[int, ...]) -> int:
    from training.ranks import is_first_process
    from training.seeds import train_seeds

    report = train_seeds(recipe, seeds=seeds, runs_dir=Path("runs"))
    if is_first_process():
        print(report.table())
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from segserve.artifact import load_artifact
    from training.evaluate import evaluate
    from training.held_out import SPLIT, note_evaluation
    from training.layouts import open_dataset
    from training.report import write_page

    _check_places(given.json, given.html)
    artifact = load_artifact(given.artifact)
    result = evaluate(
        artifact,
        given.dataset,
        layout=given.layout,
        split=given.split,
        tta=given.tta,
        aggregate=given.aggregate,
        engine=given.engine,
    )
    if given.split == SPLIT:
        dataset = open_dataset(given.dataset, artifact.spec.task, layout=given.layout)
        print(note_evaluation(artifact, result, dataset))
    print(result.table())
    if given.json:
        write_whole(given.json, result.model_dump_json(indent=1) + "\n")
    if given.html:
        dataset = open_dataset(given.dataset, artifact.spec.task, layout=given.layout)
        write_page(given.html, artifact, dataset, result)
    return 0


def _export(given: argparse.Namespace) -> int:
    from segserve.artifact import SPEC, load_artifact
    from training.export import add_engine, export_run

    if not (given.run / SPEC).is_file():
        artifact = export_run(given.run, given.out, calibrate=not given.no_calibration, engine=given.engine)
    elif given.engine == "torch":
        raise ValueError(
            f"expected a run, or --engine for the artifact {given.run}, which has torch: name another engine"
        )
    elif given.no_calibration:
        raise ValueError(f"expected --no-calibration for a run, but {given.run} is an artifact: export its run again")
    else:
        artifact = add_engine(load_artifact(given.run), given.out, engine=given.engine)
    spec = artifact.spec
    print(
        f"{artifact.path}: {spec.name}, temperature {spec.calibration.temperature:.3g}, digest {artifact.digest[:12]}; "
        f"next: segserve package {artifact.path}"
    )
    _print_engine(spec)
    return 0


def _print_engine(spec: "ModelSpec") -> None:
    if spec.engine:
        print(f"{spec.engine.name}: {spec.engine.certificate.sentence()}")


def _package(given: argparse.Namespace) -> int:
    from handlers.archive import package
    from segserve.artifact import read_spec

    archive = package(given.artifact, name=given.name, version=given.version, store=given.store)
    print(f"{archive}: {archive.stat().st_size / 2**20:.0f} MiB; next: segserve serve --store {given.store}")
    _print_engine(read_spec(given.artifact))
    return 0


def _tune(given: argparse.Namespace) -> int:
    from tqdm import tqdm

    from handlers.tuning import space_of, tune
    from segserve.artifact import read_spec
    from training.tuning_chart import write_tuning_svg

    spec = read_spec(given.artifact)
    plot = given.plot or Path("runs/tune") / f"{spec.name}.svg"
    _check_places(plot)
    curves = {}
    trials = tune(given.artifact, slo_p95_ms=given.slo_p95_ms)
    for trial, best in tqdm(trials, total=space_of(spec).most_trials, unit="trial", disable=None):
        curves[trial.name] = [(load.p95_ms, load.images_per_second) for load in trial.loads]
        tqdm.write(f"{trial.best.images_per_second:8.1f} images/s, p95 {trial.best.p95_ms:6.0f} ms: {trial.name}")
        write_tuning_svg(plot, curves, best=best.name, slo_p95_ms=given.slo_p95_ms)
    how = "within" if best.meets else "at best, not within"
    print(
        f"{given.artifact}: {best.best.images_per_second:.1f} images/s {how} {given.slo_p95_ms:g} ms, by {best.name}; "
        f"plot: {plot}; next: segserve package {given.artifact}"
    )
    return 0 if best.meets else 1


def _predict(given: argparse.Namespace) -> int:
    if given.ray is not None:
        return _predict_on_ray(given)
    from segserve.offline import load_predictor, predict_files

    artifact, predictor = load_predictor(given.artifact)
    images = [Path(image) for image in given.images]
    done = predict_files(images, artifact=artifact, predictor=predictor, out=Path(given.out), tta=given.tta)
    return _watched(done, total=len(images), out=given.out)


def _predict_on_ray(given: argparse.Namespace) -> int:
    _check_ray()
    from segserve.bulk import Job, check_answers, find_images, predict_all

    if len(given.images) != 1:
        raise ValueError(f"expected one folder with --ray, but got {len(given.images)} names: name the folder")
    job = Job(artifact=given.artifact.resolve(), images=given.images[0], out=given.out, tta=given.tta)
    missing, there = find_images(job)
    check_answers(job, there)
    if there:
        print(f"{given.out}: {len(there)} of {len(there) + len(missing)} images have their answers already")
    return _watched(predict_all(job, missing, workers=given.ray), total=len(missing), out=given.out)


def _check_ray() -> None:
    if not all(map(find_spec, ("ray", "pyarrow"))):
        raise ValueError("expected Ray for --ray, but it is not installed: pip install 'segserve[ray]'")


def _watched(done: Iterable[tuple[Path | str, str | None]], *, total: int, out: str) -> int:
    from tqdm import tqdm

    num_broken = 0
    for image, fault in tqdm(done, total=total, unit="image", disable=None):
        if fault:
            num_broken += 1
            tqdm.write(f"{image}: {fault}", file=sys.stderr)
    print(f"{out}: {total - num_broken} of {total} images predicted")
    return 1 if num_broken else 0


def _pseudolabel(given: argparse.Namespace) -> int:
    from segserve.artifact import load_artifact
    from training.flywheel.pseudolabel import Labeller, counts, held_out_of, one_by_one, pseudolabel
    from training.flywheel.review import PAGE, write_review
    from training.flywheel.triage import PixelRule, Selection
    from training.flywheel.views import plan_of

    artifact = load_artifact(given.artifact)
    labeller = Labeller(
        artifact=artifact,
        plan=given.tta or plan_of(artifact.spec),
        selection=Selection(score=given.score, precision=given.precision, good_iou=given.good_iou),
        pixels=PixelRule(border=given.border),
        run=given.run,
    )
    held_out = held_out_of(artifact.spec, given.held_out, layout=given.layout)
    found = pseudolabel(
        labeller,
        given.images,
        given.out,
        held_out=held_out,
        split=given.split,
        previous=given.previous,
        label=one_by_one if given.ray is None else _on_ray(given.ray),
    )
    write_review(found)
    entries = list(found.entries().values())
    print(found.order.thresholds.sentence)
    print(f"{given.out}: {', '.join(f'{count} {name}' for name, count in counts(entries).items())}")
    print(f"next: open {given.out / PAGE} in a browser, then segserve apply-review {given.out} decisions.json")
    for entry in entries:
        if entry.fault:
            print(entry.fault, file=sys.stderr)
    return 1 if any(entry.fault for entry in entries) else 0


def _on_ray(workers: int) -> "Label":
    _check_ray()
    from training.flywheel.on_ray import label_on_ray

    return partial(label_on_ray, workers=workers)


def _apply_review(given: argparse.Namespace) -> int:
    from training.flywheel.decisions import apply_review
    from training.flywheel.review import write_review
    from training.flywheel.round import Round

    found = Round(given.round)
    made = apply_review(found, given.decisions)
    write_review(found)
    print(
        f"{given.round}: {made['accept']} accepted, {made['work']} needs work, {made['reject']} rejected; "
        f"next: segserve export-labels {given.round} --to cvat --out annotations.xml, or train with pseudo.round"
    )
    return 0


def _export_labels(given: argparse.Namespace) -> int:
    from training.flywheel.exchange import TOOLS, export_labels
    from training.flywheel.round import Round

    found = Round(given.round)
    write_whole(given.out, export_labels(found, given.to))
    count = sum(entry.needs_person for entry in found.entries().values())
    print(f"{given.out}: {count} images, which are in {given.round / 'waiting'}; the labels of the new project:")
    print(TOOLS[given.to].labels(found.order.classes))
    return 0


def _import_labels(given: argparse.Namespace) -> int:
    from training.flywheel.exchange import import_labels

    count = import_labels(given.labels, given.into, images=given.images, by=given.by)
    print(f"{given.into}: {count} masks taken over as labelled")
    return 0


def _loop(given: argparse.Namespace) -> int:
    from training.config import load_recipe
    from training.flywheel.loop import PAGE, Loop, run_loop
    from training.flywheel.progress import StopRule, result_of
    from training.flywheel.triage import PixelRule, Selection
    from training.flywheel.views import trained_plan
    from training.layouts import open_dataset

    recipe = load_recipe(given.recipe, overrides=given.set)
    root, layout = (given.held_out, given.layout) if given.held_out else (recipe.data.root, recipe.data.layout)
    loop = Loop(
        recipe=recipe,
        images=given.images,
        held_out=open_dataset(root, recipe.task, layout=layout),
        split=given.split,
        selection=Selection(score=given.score, precision=given.precision, good_iou=given.good_iou),
        pixels=PixelRule(border=given.border),
        rule=StopRule(least_churn=given.least_churn, most_drop=given.most_drop, most_drift=given.most_drift),
        plan=given.tta or trained_plan(recipe.augment),
    )
    out = given.out or Path("runs") / f"{recipe.name}-loop"
    best = result_of(run_loop(loop, out, rounds=given.rounds))
    print(f"{out / PAGE}: the result is model {best.number}; next: segserve package {best.artifact}")
    return 0


def _serve(given: argparse.Namespace) -> int:
    from handlers.settings import ServeSettings, read_doubtful, read_gateway
    from handlers.supervisor import serve

    return serve(
        ServeSettings(
            store=given.store,
            models=tuple(name for name in given.models.split(",") if name),
            inference_port=given.inference_port,
            management_port=given.management_port,
            ops_port=given.ops_port,
            host=given.host,
            gateway=None if given.gateway is None else read_gateway(given.gateway),
            doubtful=None if given.doubtful is None else read_doubtful(given.doubtful),
        )
    )


def _deploy(given: argparse.Namespace) -> int:
    from handlers.comparison import Limits
    from handlers.deployment import DeploySettings, deploy

    limits = Limits(
        min_agreement=given.min_agreement,
        max_share_change=given.max_share_change,
        max_slowdown=given.max_slowdown,
    )
    settings = DeploySettings(
        archive=given.archive,
        store=given.store,
        sha256=given.sha256,
        images=given.images,
        requests=given.requests,
        wait_seconds=given.wait,
        limits=limits,
    )
    print(deploy(settings, say=_say))
    return 0


def _rollback(given: argparse.Namespace) -> int:
    from handlers.deployment import RollbackSettings, rollback

    print(rollback(RollbackSettings(model=given.model, store=given.store), say=_say))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _openapi(given: argparse.Namespace) -> int:
    from segserve.openapi import as_text

    print(as_text(), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segserve", description="Train, package and serve image segmentation models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_training(commands)
    _add_flywheel(commands)
    _add_serving(commands)
    _add_deployment(commands)
    return parser


def _add_training(commands: Commands) -> None:
    lint = _add(commands, "lint", _lint, "check a data set before training")
    lint.add_argument("dataset", type=Path, metavar="DATASET", help="its folder")
    lint.add_argument("--layout", default="folder", help="how it lies on disk, such as coco: docs/datasets.md")
    lint.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures there")
    lint.add_argument("--json", type=Path, metavar="FILE", help="write the findings there")

    convert = _add(commands, "convert", _convert, "write a data set anew with masks of class indices")
    convert.add_argument("source", type=Path, metavar="SOURCE")
    convert.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    convert.add_argument("--masks", default="masks", metavar="FOLDER", help="where the masks are in SOURCE")
    convert.add_argument("--colors", type=Path, metavar="FILE", help="classes.json, or lines `R G B name`")
    convert.add_argument("--map", metavar="0=0,128=1", help="class index of each gray level")
    convert.add_argument("--threshold", type=int, metavar="LEVEL", help="class 1 from this gray level on")
    convert.add_argument("--class-from", type=Path, metavar="labels.csv", help="with --threshold: the picture's class")
    convert.add_argument("--tolerance", type=int, default=0, help="how far pixels may be from a colour or level")

    train = _add(commands, "train", _train, "train; a second call resumes an unfinished run")
    train.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    train.add_argument("--set", action="append", default=[], metavar="key=value", help="change one value of the recipe")
    train.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="train once with each; prints mean and spread")

    evaluate = _add(commands, "evaluate", _evaluate, "score an artifact on a data set")
    evaluate.add_argument("artifact", type=Path, metavar="ARTIFACT")
    evaluate.add_argument("dataset", type=Path, metavar="DATASET")
    evaluate.add_argument("--layout", default="folder", help="how it lies on disk, such as coco: docs/datasets.md")
    evaluate.add_argument("--split", default="val", help="default: val; looks at test are counted: docs/training.md")
    evaluate.add_argument("--tta", choices=get_args(Plan), default="none", help="views of each image; default: none")
    evaluate.add_argument("--aggregate", choices=get_args(Aggregate), default="mean", help="of views; default: mean")
    evaluate.add_argument("--engine", choices=get_args(EngineChoice), help="instead of the one that would serve it")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores there, too")
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts and samples there")

    export = _add(commands, "export", _export, "run -> artifact; or an artifact's engine")
    export.add_argument("run", type=Path, metavar="RUN", help="or an artifact, to give it an engine")
    export.add_argument("--out", type=Path, required=True, metavar="ARTIFACT", help="an artifact there is replaced")
    export.add_argument("--no-calibration", action="store_true", help="keep temperature 1 instead of fitting it on val")
    engines = ("torch", *get_args(EngineName))
    export.add_argument("--engine", choices=engines, default="torch", help="for the CPU, beside torch; docs/engines.md")


def _add_flywheel(commands: Commands) -> None:
    label = _add(commands, "pseudolabel", _pseudolabel, "label images by a model, and say which of the masks are good")
    label.add_argument("artifact", type=Path, metavar="ARTIFACT")
    label.add_argument("images", type=Path, metavar="IMAGES", help="a folder")
    label.add_argument("--out", type=Path, required=True, metavar="ROUND", help="a new folder, or an unfinished one")
    _add_selection(label, score="expected_iou")
    label.add_argument("--run", type=Path, help="of the training with eval.keep_thirds: adds the score stability")
    label.add_argument("--ray", type=_workers, metavar="WORKERS", help="of a Ray cluster; docs/bulk.md")
    label.add_argument("--previous", type=Path, metavar="ROUND", help="the one before: keeps what people corrected")

    review = _add(commands, "apply-review", _apply_review, "take the decisions that the review page saved")
    review.add_argument("round", type=Path, metavar="ROUND")
    review.add_argument("decisions", type=Path, metavar="decisions.json")

    out = _add(commands, "export-labels", _export_labels, "a file for a labelling tool: what needs a person")
    out.add_argument("round", type=Path, metavar="ROUND")
    out.add_argument("--to", choices=("cvat", "label-studio"), required=True)
    out.add_argument("--out", type=Path, required=True, metavar="FILE")

    back = _add(commands, "import-labels", _import_labels, "take masks that people made in CVAT or Label Studio")
    back.add_argument("labels", type=Path, metavar="FILE", help="what the tool exported")
    back.add_argument("--into", type=Path, required=True, metavar="ROUND|DATASET")
    back.add_argument("--images", type=Path, metavar="FOLDER", help="of a DATASET that does not have them yet")
    back.add_argument("--by", default="a person", help="who made the masks")

    loop = _add(commands, "loop", _loop, "train, label, take what is good, train again; a second call goes on")
    loop.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    loop.add_argument("images", type=Path, metavar="IMAGES", help="a folder of unlabelled images")
    loop.add_argument("--rounds", type=int, default=2, help="of training with pseudo-labels; 0 ends before the first")
    loop.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME-loop")
    loop.add_argument("--set", action="append", default=[], metavar="key=value", help="change one value of the recipe")
    _add_selection(loop, score="stability")
    loop.add_argument("--least-churn", type=float, default=0.01, help="stop where the masks change less")
    loop.add_argument("--most-drop", type=float, default=0.1, help="stop where the good share falls by more")
    loop.add_argument("--most-drift", type=float, default=0.2, help="stop where the classes' shares drift further")


def _add_selection(parser: argparse.ArgumentParser, *, score: str) -> None:
    parser.add_argument("--held-out", type=Path, metavar="DATASET", help="fits the thresholds; default: the training's")
    parser.add_argument("--layout", default="folder", help="of --held-out")
    parser.add_argument("--split", default="val", help="of --held-out")
    parser.add_argument("--tta", choices=get_args(Plan), help="default: the views that the training showed")
    parser.add_argument("--score", default=score, help=f"what decides ({score}); docs/flywheel.md")
    parser.add_argument("--precision", type=float, default=0.9, help="share of the accepted masks that must be good")
    parser.add_argument("--good-iou", type=float, metavar="IOU", help="of a good mask; default: 3 of 4 held-out ones")
    parser.add_argument("--border", type=float, default=2.0, metavar="PIXELS", help="beside borders, not trained on")


def _add_serving(commands: Commands) -> None:
    package = _add(commands, "package", _package, "artifact -> NAME.mar in the store")
    package.add_argument("artifact", type=Path, metavar="ARTIFACT")
    package.add_argument("--name", help="default: the artifact's own")
    package.add_argument("--version", default="1.0", help="default: 1.0; another one for `segserve deploy`")
    package.add_argument("--store", type=Path, default=Path("model_store"), help="default: model_store")

    tune = _add(
        commands, "tune", _tune, "find the serving settings for a latency target, and keep them in the artifact"
    )
    tune.add_argument("artifact", type=Path, metavar="ARTIFACT")
    tune.add_argument("--slo-p95-ms", type=float, required=True, metavar="N", help="the 95th percentile at most")
    tune.add_argument("--plot", type=Path, metavar="FILE.svg", help="default: runs/tune/NAME.svg")

    predict = _add(commands, "predict", _predict, "predict images offline, by the same code path as the service")
    predict.add_argument("artifact", type=Path, metavar="ARTIFACT")
    predict.add_argument("images", nargs="+", metavar="IMAGE")
    predict.add_argument("--out", required=True, metavar="DIR", help="gets NAME.png, of masks, and NAME.json")
    predict.add_argument("--tta", choices=get_args(Plan), default="none", help="views of each image; default: none")
    predict.add_argument(
        "--ray",
        type=_workers,
        metavar="WORKERS",
        help="IMAGE is a folder, or s3://BUCKET/PATH and its like, for so many workers of Ray; docs/bulk.md",
    )

    serve = _add(commands, "serve", _serve, "start the service and stay until it is told to stop")
    serve.add_argument("--store", type=Path, default=Path("model_store"), help="a folder; default: model_store")
    serve.add_argument("--models", default="", metavar="a.mar,b.mar", help="default: every archive in the store")
    serve.add_argument("--inference-port", type=int, default=8080, help="for clients; default: 8080")
    serve.add_argument("--management-port", type=int, default=8081, help="on loopback, whatever --host; default: 8081")
    serve.add_argument("--ops-port", type=int, default=8082, help="/metrics, /ready, /live; default: 8082")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: 127.0.0.1")
    serve.add_argument(
        "--gateway",
        nargs="?",
        const="",
        metavar="gateway.toml",
        help="nginx answers at the inference port, and TorchServe on loopback only; docs/gateway.md",
    )
    serve.add_argument(
        "--doubtful",
        type=Path,
        metavar="doubtful.toml",
        help="keep the images that a model was least sure of, for `pseudolabel`; docs/flywheel.md",
    )


def _add_deployment(commands: Commands) -> None:
    deploy = _add(commands, "deploy", _deploy, "let a new version answer, if it is near the one that does")
    deploy.add_argument("archive", type=Path, metavar="NEW.mar")
    deploy.add_argument("--store", type=Path, default=Path("model_store"), help="of the running service")
    deploy.add_argument("--sha256", metavar="HEX", help="what the archive's digest must be")
    deploy.add_argument("--images", type=Path, metavar="FOLDER", help="compare on these, not on requests")
    deploy.add_argument("--requests", type=int, default=20, metavar="N", help="how many images to compare on")
    deploy.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="for so many requests")
    deploy.add_argument("--min-agreement", type=float, default=0.8, metavar="SHARE", help="least, of the masks")
    deploy.add_argument("--max-share-change", type=float, default=0.1, metavar="SHARE", help="of any class")
    deploy.add_argument("--max-slowdown", type=float, default=1.5, metavar="FACTOR", help="of the time in the worker")

    rollback = _add(commands, "rollback", _rollback, "let the version answer again that did before")
    rollback.add_argument("model", metavar="MODEL", help="its name in the service")
    rollback.add_argument("--store", type=Path, default=Path("model_store"), help="of the running service")

    _add(commands, "openapi", _openapi, "print the OpenAPI document of the HTTP interface")


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 worker or more, but got {text!r}: give a number such as 2")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 0,1,2, but got {text!r}") from None


def _add(commands: Commands, name: str, command: Command, does: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=does, description=does)
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
