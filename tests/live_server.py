"""A server in this process, on a free port, and clients for it."""

import contextlib
import threading

import openai
import uvicorn

from llasa_core.serving.server import address, bound_socket
from llasa_core.serving.web import Web

MODEL = "tiny"


@contextlib.contextmanager
def live(service, key=None):
    """The URL of a running server over `service`."""
    web = Web(service, MODEL, key)
    with bound_socket("127.0.0.1", 0) as door:
        config = uvicorn.Config(
            web.application(), log_config=None, access_log=False, timeout_graceful_shutdown=20
        )
        server = uvicorn.Server(config)
        door.listen(64)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield address(door)
        finally:
            server.should_exit = True
            thread.join()


def client_of(url, key="none"):
    """OpenAI's client, which tries once."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


def spoken(url, text="Call the office.", voice="default", response_format="pcm", **more):
    """The bytes of a text from the endpoint; fields that OpenAI does not have are passed on."""
    answer = client_of(url).audio.speech.create(
        model=MODEL, voice=voice, input=text, response_format=response_format, extra_body=more
    )
    return answer.content
