"""Sends a profile's requests with locust, checks each answer, and leaves a record; `python -m loadtest` starts it.

gevent's patches must not reach the rest of the project, so this runs in a process of its own.
"""

import os
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

import gevent
from gevent.pool import Group
from locust import FastHttpUser, LoadTestShape, events, task
from locust.contrib.fasthttp import FastResponse
from locust.env import Environment
from locust.exception import StopUser
from prometheus_client.parser import text_string_to_metric_families

from loadtest.answers import WrongAnswer
from loadtest.record import Outcome, Record, Run, Scrape, Sent, kept_samples
from loadtest.traffic import Message, traffic

RUN = Run.model_validate_json(os.environ["SEGSERVE_LOADTEST"])
SCRAPE_SECONDS = 1.0


class Log:
    """The record while it grows."""

    def __init__(self) -> None:
        self.messages: Iterator[Message] = traffic(RUN.profile, RUN.models, seed=RUN.seed)
        self.numbers = count()
        self.sent: list[Sent] = []
        self.scrapes: list[Scrape] = []
        self.complaints: dict[str, None] = {}
        self.begin()

    def begin(self) -> None:
        """Time begins now."""
        self.began, self.start = datetime.now(UTC), time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start


LOG = Log()


class Shape(LoadTestShape):
    """The profile's steps; in an open loop, one user does everything."""

    def reset_time(self) -> None:
        """The run begins. Timers count from gevent's own clock, which stood still during the imports."""
        gevent.get_hub().loop.update_now()
        LOG.begin()

    def tick(self) -> tuple[int, float] | None:
        step = RUN.profile.step_at(LOG.now())
        if step is None:
            return None
        users = 1 if RUN.profile.loop == "open" else int(RUN.profile.steps[step].load)
        return users, users


class Client(FastHttpUser):
    """In a closed loop, one request after the other; in an open one, each when it is due."""

    host = "http://127.0.0.1:8080"
    connection_timeout = 5.0
    network_timeout = 60.0
    concurrency = 1 if RUN.profile.loop == "closed" else 10_000

    @task
    def work(self) -> None:
        if RUN.profile.loop == "closed":
            self._send(LOG.now())
        else:
            self._send_all()
            raise StopUser  # else locust would begin again, with everything overdue, before the shape's next tick

    def _send_all(self) -> None:
        under_way = Group()
        for due in RUN.profile.arrivals(seed=RUN.seed):
            gevent.sleep(max(0.0, due - LOG.now()))
            under_way.spawn(self._send, due)
        gevent.sleep(max(0.0, RUN.profile.seconds - LOG.now()))
        under_way.join()

    def _send(self, due: float) -> None:
        """Post one image; its time counts from when it was due."""
        number, message = next(LOG.numbers), next(LOG.messages)
        headers = {**message.headers, "X-Request-ID": RUN.request_id(number)}
        with self.client.post(
            message.path, data=message.upload.body, headers=headers, name=message.ask.name, catch_response=True
        ) as response:
            seconds = LOG.now() - due
            response.request_meta["response_time"] = 1000 * seconds
            kind, outcome = _judge(message, response)
            if outcome == "ok":
                response.success()
            else:
                response.failure(kind)
        LOG.sent.append(
            Sent(
                number=number,
                name=message.ask.name,
                due=due,
                seconds=seconds,
                kind=kind,
                outcome=outcome,
                megapixels=message.upload.megapixels,
                views=message.views,
                bytes_up=len(message.upload.body),
                bytes_down=len(response.content or b""),
            )
        )


def _judge(message: Message, response: FastResponse) -> tuple[str, Outcome]:
    if not response.status_code:
        LOG.complaints[f"expected an answer, but got {response.error}"] = None
        return "no answer", "failed"
    content_type = response.headers.get("Content-Type", "")
    try:
        return message.judge(status=response.status_code, content_type=content_type, body=response.content or b"")
    except WrongAnswer as error:
        LOG.complaints[f"{message.ask.name}: {error}"] = None
        return "wrong answer", "failed"


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Let what is in flight at the end be answered and judged, too.

    Without a stop timeout, locust drops the requests that are still waiting: those that a hanging service never answers
    would not count as failures.
    """
    environment.stop_timeout = Client.connection_timeout + Client.network_timeout


@events.test_start.add_listener
def watch(environment: Environment, **_: object) -> None:
    """Read the service's own counters while the load test runs."""
    if RUN.ops is not None:
        gevent.spawn(_scrape_until_the_end, RUN.ops)


def _scrape_until_the_end(ops: str) -> None:
    while True:
        at = LOG.now()
        try:
            with urllib.request.urlopen(f"{ops}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError as error:
            LOG.complaints[f"expected {ops}/metrics to answer, but got {error}"] = None
        else:
            LOG.scrapes.append(Scrape(at, dict(kept_samples(text_string_to_metric_families(text)))))
        gevent.sleep(SCRAPE_SECONDS)


@events.quitting.add_listener
def finish(environment: Environment, **_: object) -> None:
    """Write the record; what it is worth is for others to say, unless the load test itself broke."""
    Record(
        run=RUN,
        url=str(environment.host),
        began=LOG.began.isoformat(timespec="milliseconds"),
        sent=tuple(sorted(LOG.sent, key=lambda sent: sent.due)),
        scrapes=tuple(LOG.scrapes),
        complaints=tuple(LOG.complaints),
    ).write(RUN.record)
    broke = environment.runner is not None and environment.runner.exceptions
    environment.process_exit_code = 2 if broke else 0
