"""What `python -m bench` has measured: a line a server, and the ratios that the targets are about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from handlers.load import Load

OURS = "segserve, our engine"
OWN_COLOR, PEER_COLOR = "#1f5f9e", "#9aa3ad"
LOADED = 0.7
"""Of the images a second that clients get who wait, at which latencies are looked at."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One server in one round."""

    load: Load
    start_seconds: float
    megabytes: float


@dataclass(frozen=True, kw_only=True)
class Bare:
    """Without a server, in one round."""

    engine_images_per_second: float
    service_images_per_second: float
    """From files of images to files of masks, one batch after another."""
    tail: float
    """p99 / p50 at `LOADED` of saturation of a server that costs nothing but the engine's time."""
    share_of_limit: float
    """Of the operations that a large matrix product of the engine's precision does in the same time."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What only segserve is asked, once."""

    p50_ms: float
    p99_ms: float
    tta_cost: float
    """Images a second without over those with `tta=d4`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it."""

    measured: Mapping[str, Sequence[Measurement]]
    """A round each, by the server's title; segserve is `OURS`."""
    bare: Sequence[Bare]
    extra: Extra
    failed: Sequence[str] = ()
    """Servers that gave no answer, or another than 200."""

    def table(self) -> str:
        """Markdown, medians of the rounds."""
        lines = [
            "| server | images/s | of the bare engine | p50, ms | p99, ms | first answer after, s | memory, MB |",
            f"|---|{'---:|' * 6}",
            *(self._line(title) for title in self.measured),
            *(f"| {title} | failed |{' |' * 5}" for title in self.failed),
        ]
        return "\n".join(lines)

    def _line(self, title: str) -> str:
        cells = (
            title,
            f"{self.rate(title):.1f}",
            f"{self.rate(title) / self.engine_rate:.2f}",
            f"{self._median(title, lambda one: one.load.milliseconds(50)):.0f}",
            f"{self._median(title, lambda one: one.load.milliseconds(99)):.0f}",
            f"{self._median(title, lambda one: one.start_seconds):.1f}",
            f"{self._median(title, lambda one: one.megabytes):.0f}",
        )
        return f"| {' | '.join(cells)} |"

    def ratios(self) -> list[str]:
        """A line each."""
        in_process = median(one.service_images_per_second for one in self.bare)
        extra, limit = self.extra, median(one.share_of_limit for one in self.bare)
        tail = median(one.tail for one in self.bare)
        return [
            f"- bare engine: {self.engine_rate:.1f} images/s, {limit:.2f} of the limit (a large matrix product of its "
            "precision in the same run)",
            f"- service in this process / bare engine: {in_process / self.engine_rate:.2f}",
            f"- over HTTP / bare engine: {self.rate(OURS) / self.engine_rate:.2f}",
            *(f"- segserve / best peer ({title}): {self.rate(OURS) / self.rate(title):.2f}" for title in self._best()),
            f"- p99 / p50 at {LOADED:.0%} of saturation, arrivals at random: {extra.p99_ms / extra.p50_ms:.2f} "
            f"({extra.p99_ms:.0f} ms, {extra.p50_ms:.0f} ms); {tail:.2f} where a server costs nothing but its engine's "
            "time",
            f"- `tta=d4` / none, cost: {extra.tta_cost:.2f}",
        ]

    def plot(self, path: Path) -> None:
        """A bar a server, the fastest first, and the bare engine as a line."""
        titles = sorted(self.measured, key=self.rate)
        colors = [OWN_COLOR if title.startswith("segserve") else PEER_COLOR for title in titles]
        figure = Figure(figsize=(7, 0.5 + 0.3 * len(titles)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(titles, [self.rate(title) for title in titles], color=colors)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.axvline(self.engine_rate, color="#4d5563", linestyle="--", label="bare engine")
        axes.set(xlabel="images a second", xlim=(0, 1.1 * self.engine_rate))
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=110)

    @property
    def engine_rate(self) -> float:
        """Images a second of the bare engine."""
        return median(one.engine_images_per_second for one in self.bare)

    def rate(self, title: str) -> float:
        """Images a second of a server whose clients wait."""
        return self._median(title, lambda one: one.load.images_per_second)

    def _median(self, title: str, figure: Callable[[Measurement], float]) -> float:
        return median(figure(one) for one in self.measured[title])

    def _best(self) -> list[str]:
        """The fastest peer with torch, and with our engine, where there are any."""
        peers = [title for title in self.measured if not title.startswith("segserve")]
        found = ([title for title in peers if title.endswith(engine)] for engine in ("torch fp32", "our engine"))
        return [max(titles, key=self.rate) for titles in found if titles]
