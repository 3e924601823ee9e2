"""FastAPI and a queue, in one process: requests wait for each other, a thread runs the model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from bench.peers.model import BATCH, DELAY_SECONDS, Model, model_of_environment, port_of_environment

Job = tuple[bytes, asyncio.Future[bytes]]


class Batcher:
    """Puts requests together."""

    def __init__(self, model: Model) -> None:
        self.model, self.jobs = model, asyncio.Queue[Job]()

    async def answer(self, file: bytes) -> bytes:
        """The model's answer for one file."""
        future = asyncio.get_running_loop().create_future()
        await self.jobs.put((file, future))
        return bytes(await future)

    async def run(self) -> None:
        """Answer what comes, for ever."""
        while True:
            batch = [await self.jobs.get()]
            deadline = asyncio.get_running_loop().time() + DELAY_SECONDS
            while len(batch) < BATCH:
                try:
                    async with asyncio.timeout_at(deadline):
                        batch.append(await self.jobs.get())
                except TimeoutError:
                    break
            answers = await asyncio.to_thread(self.model, [file for file, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The batcher lives as long as the server."""
    app.state.batcher = Batcher(model_of_environment())
    task = asyncio.create_task(app.state.batcher.run())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> Response:
    """An image's bytes to its mask."""
    return Response(await request.app.state.batcher.answer(await request.body()), media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port_of_environment(), log_level="warning")
