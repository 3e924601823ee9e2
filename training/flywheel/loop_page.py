"""The report of a loop as one HTML page: the curves of every round, and the table behind them."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from segserve.spec import ClassSpec
from training.charts import Axis, Series, line_chart
from training.flywheel.progress import Step
from training.markup import STYLE, figure, grid, row, scrolling, swatch


def loop_page(steps: Sequence[Step], *, classes: Sequence[ClassSpec], result: Step, reason: str, name: str) -> str:
    """HTML.

    Args:
        steps: at least one.
        classes: of the data set.
        result: the step whose model is to be used.
        reason: why the loop stopped; empty where it goes on, or had all its rounds.
        name: of the recipe.
    """
    tiles = "".join(
        f"<div><dt>{title}</dt><dd>{value}</dd></div>"
        for title, value in (
            ("val mean IoU, labelled alone", f"{steps[0].scores['miou']:.4f}"),
            (f"val mean IoU, model {result.number}", f"{result.scores['miou']:.4f}"),
            ("images accepted", f"{steps[-1].num_accepted} of {steps[-1].num_images}"),
            ("held-out masks that are good", f"{steps[-1].good_share:.0%}"),
        )
    )
    end = f'<p class="protocol">The loop stopped: {escape(reason)}.</p>' if reason else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><link rel="icon" href="data:,"><title>{escape(name)}: the loop</title><style>{STYLE}</style>'
        f'</head><body><header><h1>{escape(name)}: {len(steps) - 1} round(s) of pseudo-labels</h1><p class="subtitle">'
        f"The result is model {result.number}, the first that is as good on the held-out images as the best of them, "
        f"within a standard error: {escape(Path(result.artifact).as_posix())}. Model 0 is trained on the "
        f"labelled images alone, each other one from the start on those and on what the model before it labelled.</p>"
        f'<dl class="tiles">{tiles}</dl>{end}</header><main><section>{_charts(steps, classes)}</section>'
        f"<section><h2>Rounds</h2>{_table(steps)}</section>{_thresholds(steps)}</main></body></html>\n"
    )


def _charts(steps: Sequence[Step], classes: Sequence[ClassSpec]) -> str:
    x = Axis(title="model", is_whole=True, ends=(0, max(1, len(steps) - 1)))
    numbers = [step.number for step in steps]
    curves = [
        _chart(
            "Mean IoU",
            x,
            Axis(),
            {
                "val": [(step.number, step.scores["miou"]) for step in steps],
                "held-out, image by image": [(step.number, step.held_out_miou) for step in steps],
            },
        ),
        _chart(
            "Held-out masks that are good",
            x,
            Axis(ends=(0, 1)),
            {
                "all": [(step.number, step.good_share) for step in steps],
                "accepted": [(step.number, step.precision) for step in steps if step.precision is not None],
            },
        ),
        _chart(
            "Share of the images that is accepted",
            x,
            Axis(ends=(0, 1)),
            {"accepted": [(step.number, step.num_accepted / max(step.num_images, 1)) for step in steps]},
        ),
        _chart(
            "Churn of the masks, drift of the classes",
            x,
            Axis(),
            {
                "churn": [(step.number, step.churn) for step in steps if step.churn is not None],
                "drift": [(step.number, step.drift) for step in steps],
            },
        ),
    ]
    shares = "".join(
        row([f"{step.shares[entry.id]:.2%}" for step in steps], first=f"{swatch(entry.color)}{escape(entry.name)}")
        for entry in classes
    )
    head = row([f"round {number + 1}" for number in numbers], first="share of accepted pixels", tag="th", scope="col")
    table = f"<table><thead>{head}</thead><tbody>{shares}</tbody></table>"
    return grid(curves) + "<h3>Classes</h3>" + scrolling(table, label="shares of the classes")


def _chart(title: str, x: Axis, y: Axis, lines: dict[str, list[tuple[float, float]]]) -> str:
    series = [Series(name=name, points=points) for name, points in lines.items() if points]
    return figure(title, line_chart(series, label=f"{title}, by model", x=x, y=y))


def _table(steps: Sequence[Step]) -> str:
    titles = (
        "val mean IoU",
        "held-out mean IoU, image by image",
        "trained on pseudo-labels",
        "accepts",
        "of",
        "good share",
        "precision",
        "churn",
        "drift",
    )
    lines = [
        row(
            [
                f"{step.scores['miou']:.4f}",
                f"{step.held_out_miou:.4f}",
                str(step.num_pseudo),
                str(step.num_accepted),
                str(step.num_images),
                f"{step.good_share:.3f}",
                "-" if step.precision is None else f"{step.precision:.3f}",
                "-" if step.churn is None else f"{step.churn:.4f}",
                f"{step.drift:.3f}",
            ],
            first=f"model {step.number}",
        )
        for step in steps
    ]
    head = row(titles, first="", tag="th", scope="col")
    return scrolling(f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>", label="rounds")


def _thresholds(steps: Sequence[Step]) -> str:
    items = "".join(f"<p><b>Round {step.number + 1}</b>: {escape(step.sentence)}.</p>" for step in steps)
    return f"<section><h2>Thresholds</h2>{items}</section>"
