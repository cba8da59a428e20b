"""What answers at which address: the page, the API under /api, and a page that lists it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from tagsds.errors import UserError
from tagsds.serve import answers, limits
from tagsds.serve.desk import Desk
from tagsds.serve.guard import Guard
from tagsds.serve.listing import listing
from tagsds.serve.worker import RefusedError, Worker

PAGE = Path(__file__).parent / "page"
SAYS: dict[int | str, dict[str, Any]] = {
    404: {"model": answers.Problem, "description": "no such image"},
    422: {"model": answers.Problem, "description": "the request cannot be used"},
    503: {"model": answers.Problem, "description": "too many requests are waiting"},
    504: {"model": answers.Problem, "description": "it took too long"},
}
KEY = Annotated[
    str, InPath(min_length=1, max_length=limits.MOST_CHARACTERS_OF_KEY, description="key of an image, or its file name")
]
log = logging.getLogger("tagsds.serve")


def make_app(desk: Desk, hosts: Sequence[str] = ()) -> FastAPI:
    """`hosts`: names by which the server may be called; (): any."""
    worker = Worker(desk.limits.seconds, desk.limits.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(
        title="tagsds-serve",
        summary="Search, proofread, write and align with a trained checkpoint.",
        version=desk.about().version or "0",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        responses=SAYS,
    )
    app.add_middleware(Guard, hosts=hosts, most_bytes=limits.MOST_BYTES, seconds=desk.limits.seconds)
    add_problems(app)
    add_corpus(app, desk, worker)
    add_models(app, desk, worker)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/api", include_in_schema=False)
    def api() -> HTMLResponse:
        return HTMLResponse(listing(app.openapi()))

    app.mount("/page", Fresh(directory=PAGE), name="page")
    return app


class Fresh(StaticFiles):
    """Files that a browser asks for again each time, by their ETag."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def add_corpus(app: FastAPI, desk: Desk, worker: Worker) -> None:
    """What the corpus knows; these wait for no model."""

    @app.get("/api/about", tags=["corpus"], summary="What is served, and what it can do")
    def about() -> answers.About:
        return desk.about()

    @app.get("/api/health", tags=["corpus"], summary="Whether the server answers")
    async def health() -> answers.Health:
        return answers.Health(waiting=worker.count)

    @app.get("/api/images", tags=["corpus"], summary="A part of the images, in the order of the split")
    def images(
        start: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        count: Annotated[int, Query(ge=1, le=limits.MOST_OF_A_PAGE)] = 24,
        contains: Annotated[str, Query(max_length=limits.MOST_CHARACTERS_OF_KEY, description="only keys with this in them")] = "",
    ) -> answers.Page:
        return desk.page(start, count, contains)

    @app.get("/api/image/{key}", tags=["corpus"], summary="Captions and regions of an image")
    def image(key: KEY) -> answers.Image:
        return desk.image(key)

    kinds: dict[str, Any] = {name: {} for name in ("image/jpeg", "image/png", "image/webp", "image/svg+xml")}

    @app.get(
        "/api/picture/{key}", tags=["corpus"], summary="The picture of an image, or a drawing of its regions where there is none",
        response_class=Response, responses={200: {"content": kinds}, 304: {"description": "it is the same as before"}},
    )  # fmt: skip
    def picture(
        key: KEY, request: Request, small: Annotated[bool, Query(description=f"at most {limits.SIDE} pixels a side")] = False
    ) -> Response:
        row = desk.row(key)
        found = desk.album.picture(row, desk.boxes(row), small)
        headers = {"etag": f'"{found.tag}"', "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)


def add_models(app: FastAPI, desk: Desk, worker: Worker) -> None:
    """What takes a model: each request waits for those before it."""

    @app.post("/api/find/images", tags=["models"], summary="Images for a sentence")
    async def find_images(asked: answers.FindImages) -> answers.ImagesFound:
        return await worker.run(lambda job: desk.find_images(asked, job))

    @app.post("/api/find/sentences", tags=["models"], summary="Sentences of the corpus for an image")
    async def find_sentences(asked: answers.FindSentences) -> answers.SentencesFound:
        return await worker.run(lambda job: desk.find_sentences(asked, job))

    @app.post("/api/proofread", tags=["models"], summary="Which words of a sentence are wrong, and what they should be")
    async def proofread(asked: answers.Held) -> answers.Proofread:
        return await worker.run(lambda job: desk.proofread(asked, job))

    @app.post("/api/align", tags=["models"], summary="Which regions each word stands for")
    async def align(asked: answers.Held) -> answers.Aligned:
        return await worker.run(lambda job: desk.align(asked, job))

    @app.post("/api/write", tags=["models"], summary="False sentences written from a true one, and what the filters dropped")
    async def write(asked: answers.Write) -> answers.Written:
        return await worker.run(lambda job: desk.write(asked, job))


def add_problems(app: FastAPI) -> None:
    """Whatever goes wrong is {"error": a sentence}."""

    def answer(status: int, sentence: str) -> JSONResponse:
        return JSONResponse({"error": sentence}, status, {"retry-after": "2"} if status == 503 else None)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return answer(error.status, error.sentence)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str)) or "the request"
        return answer(422, f"{place[:80]}: {first['msg'][:300]}.")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        sentence = "there is nothing at this address; /api lists what there is." if error.status_code == 404 else f"{error.detail}."
        return answer(error.status_code, sentence)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(500, "an error of the server; its log has the details.")
