"""The server of the app: files of results, speech while it is made, limits, and no word to the
outside.
"""

from __future__ import annotations

import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llasa_core.app.studio import Studio
from llasa_core.errors import InputError

# Nothing of the page is loaded from, or sent to, another machine
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:;"
    " font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:;"
    " form-action 'self'; base-uri 'self'; frame-ancestors 'self'"
)
# A page of results runs its scripts without access to the app
RESULTS_POLICY = "sandbox allow-scripts allow-forms allow-downloads allow-popups"
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


@contextmanager
def serving(
    studio: Studio, results: Path, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """The address of the running app; at the end it is closed and what was uploaded is gone.

    port: None for a free one. InputError where it is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="llasa-app-") as folder,
        _environment(QUIET | {"GRADIO_TEMP_DIR": str(Path(folder, "uploads"))}),
    ):
        page, here = _page(studio, results, Path(folder)), Path(__file__).parent
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port if port is not None else _free_port(host),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                show_error=True,
                ssr_mode=False,
                run_history=False,
                pwa=False,
                mcp_server=False,
                footer_links=["api"],
                max_file_size=f"{studio.limits.megabytes}mb",
                allowed_paths=[str(Path(folder, "speech"))],
                theme=_theme(),
                css_paths=here / "page.css",
                head=f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script>",
                app_kwargs=_routes(page.desk, results),
            )
        except OSError as error:
            raise InputError(f"port {port} of {host} cannot be used ({error})") from None
        try:
            yield url
        finally:
            page.close(verbose=False)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables of the process, while the server runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _page(studio: Studio, results: Path, folder: Path):
    from llasa_core.app.desk import Desk
    from llasa_core.app.page import build

    speech = folder / "speech"
    speech.mkdir()
    desk = Desk(studio, speech)
    page = build(desk, results)
    page.desk = desk
    return page


def _theme():
    import gradio

    # Fonts of the machine: those of the default theme come from another server
    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    readable = {"body_text_color_subdued": "*neutral_600", "block_info_text_color": "*neutral_600"}
    return theme.set(**readable, block_label_text_color="*neutral_700")


def _routes(desk, results: Path) -> dict:
    """Routes and headers beside those of gradio."""
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    from llasa_core.app.results_tab import RESULTS_AT, SERVED

    async def live(request):
        speech = desk.live.get(request.path_params["name"])
        if speech is None:
            return PlainTextResponse("This speech is over.", 404)
        return StreamingResponse(
            speech.read(), media_type="audio/wav", headers={"Cache-Control": "no-store"}
        )

    root = results.resolve()

    async def result(request):
        path = (root / request.path_params["path"]).resolve()
        if not path.is_relative_to(root) or path.suffix not in SERVED or not path.is_file():
            return PlainTextResponse("There is no such file among the results.", 404)
        return FileResponse(path, headers={"Content-Security-Policy": RESULTS_POLICY})

    return {
        "routes": [
            Route("/live/{name}.wav", live),
            Route(f"/{RESULTS_AT}/{{path:path}}", result),
        ],
        "middleware": [Middleware(_Policy)],
    }


class _Policy:
    """Adds `POLICY` to every page that has no policy of its own."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def with_policy(message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", POLICY.encode()))
                headers.append((b"x-content-type-options", b"nosniff"))
                headers.append((b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, with_policy)


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as one:
        one.bind((host, 0))
        return one.getsockname()[1]


def serve(studio: Studio, results: Path, host: str, port: int | None, browser: bool) -> None:
    """Serve until Ctrl-C; `browser` opens the page."""
    with serving(studio, results, host, port) as url:
        print(f"listening at {url} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(url)
        try:
            threading.Event().wait()
        finally:
            studio.close()
