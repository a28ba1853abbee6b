"""The body of POST /v1/audio/speech: its fields, their checks, and the errors in OpenAI's form."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import get_type_hints

from llasa_core.errors import InputError, above, at_least, between, check_value, fits, one_of
from llasa_core.serving.formats import check_format


class RefusedError(Exception):
    """A request that gets no speech: status, one sentence, and OpenAI's `type`, `code` and `param`
    of it. retry_after: seconds until another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.retry_after = retry_after

    def body(self) -> dict:
        """The JSON that OpenAI's clients read."""
        found = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": found}


@dataclass(frozen=True)
class SpeechRequest:
    """The fields of OpenAI's endpoint, and behind `stream` those that are ours alone.

    stream: send audio while it is spoken, as `stream_format` "sse" does in events. attempts:
    samples at most until one passes the guards, 0 without guards. None: what the server was started
    with.
    """

    input: str
    model: str
    voice: str
    response_format: str = "mp3"
    speed: float = 1.0
    stream_format: str = "audio"
    instructions: str = ""
    stream: bool = False
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    attempts: int | None = None
    normalise: bool = False

    @property
    def streamed(self) -> bool:
        """Whether audio is sent while it is spoken."""
        return self.stream or self.stream_format == "sse"


HINTS = get_type_hints(SpeechRequest)
REQUIRED = tuple(field.name for field in fields(SpeechRequest) if field.default is MISSING)
BOUNDS = {
    "stream_format": one_of("audio", "sse"),
    "seed": between(0, 2**63 - 1),
    "temperature": between(0, 10),
    "top_k": at_least(0),
    "top_p": above(0, most=1),
    "attempts": between(0, 20),
}


def read_request(body: bytes, sample_rate: int, most_characters: int) -> SpeechRequest:
    """The request of a JSON body; a field that is null counts as left out. RefusedError (400) says
    which field is wrong and what was expected.
    """
    try:
        item = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is no JSON, expected an object with `input`") from None
    if not isinstance(item, dict):
        raise RefusedError(400, f"the body is {type(item).__name__}, expected a JSON object")
    if unknown := sorted(set(item) - set(HINTS)):
        raise RefusedError(
            400, f"unknown field {unknown[0][:40]!r}", code="unknown_parameter", param=unknown[0]
        )
    if isinstance(item.get("voice"), dict):  # the newer form, {"id": ..}
        item["voice"] = item["voice"].get("id")
    item = {name: value for name, value in item.items() if value is not None}
    for name in REQUIRED:
        if name not in item:
            raise RefusedError(
                400, f"`{name}` is missing", code="missing_required_parameter", param=name
            )
    for name, value in item.items():
        _check(name, value)
    request = SpeechRequest(**item)
    _check_meaning(request, sample_rate, most_characters)
    return request


def _check(name: str, value: object) -> None:
    """RefusedError for a value of another type or out of its bound."""
    shown = value
    if isinstance(value, str) and (name in BOUNDS or not fits(value, HINTS[name])):
        shown = value[:40]
    elif isinstance(value, list | dict):
        shown = type(value)()
    try:
        check_value(f"`{name}`", shown, HINTS[name], BOUNDS.get(name))
    except InputError as error:
        raise RefusedError(400, str(error), code="invalid_value", param=name) from None


def _check_meaning(request: SpeechRequest, sample_rate: int, most_characters: int) -> None:
    """RefusedError for what the endpoint knows and this model does not do."""

    def refuse(name: str, message: str, code: str = "unsupported_value") -> None:
        raise RefusedError(400, message, code=code, param=name)

    if len(request.input) > most_characters:
        refuse(
            "input",
            f"`input` has {len(request.input)} characters, expected at most {most_characters}",
            "string_above_max_length",
        )
    if request.speed != 1:
        refuse("speed", f"`speed` is {request.speed}, expected 1: the model speaks at its own pace")
    if request.instructions.strip():
        refuse("instructions", "`instructions` are not understood by this model, expected none")
    try:
        check_format(request.response_format, sample_rate, request.streamed)
    except InputError as error:
        refuse("response_format", str(error))
