"""What to say and in which voice: the part of the page that one take and a comparison share."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from llasa_core.app import report
from llasa_core.app.desk import Desk
from llasa_core.app.studio import Order
from llasa_core.app.work import Stopped
from llasa_core.errors import BAD_INPUT, InputError

TAG, RECORDING = "tag", "recording"  # whose voice
# Events that use the models wait for each other; none of the page is part of the API
MODELS = "models"
ALONE = {"concurrency_id": MODELS, "concurrency_limit": 1, "api_visibility": "private"}
QUIETLY = {"show_progress": "hidden", "api_visibility": "private"}
EXAMPLE = "Please bring four apples and a bottle of milk."


def told(text: str, wrong: bool = False) -> str:
    """A line of the region that a screen reader reads out."""
    return f'<p class="told{" wrong" if wrong else ""}">{html.escape(text)}</p>'


@contextmanager
def refusals(recording: str | None = None) -> Iterator[list[str]]:
    """Collects the sentence for what is refused inside."""
    refused: list[str] = []
    try:
        yield refused
    except Stopped:
        refused.append("Stopped.")
    except BAD_INPUT as error:
        refused.append(report.sentence(error, recording))


def order_of(
    text: str, voice: str, speaker: str | None, recording: str | None, words: str, **settings: Any
) -> Order:
    """The order that the shared inputs and some settings make; InputError for an empty field."""
    for name, value in settings.items():
        if value is None:
            raise InputError(f"the field {name} is empty, expected a number")
    if voice == RECORDING:
        if not recording:
            raise InputError("there is no recording yet: upload or record one, or choose a speaker")
        return Order(text or "", "", recording, words or "", **settings)
    return Order(text or "", speaker or "", **settings)


@dataclass(frozen=True)
class Inputs:
    """The components that say what is to be said."""

    text: gr.Textbox
    voice: gr.Radio
    speaker: gr.Dropdown
    recording: gr.Audio
    words: gr.Textbox

    @property
    def listed(self) -> list:
        """As inputs of a handler, in the order of `order_of`."""
        return [self.text, self.voice, self.speaker, self.recording, self.words]


def speakers_of(desk: Desk, model: str) -> list[tuple[str, str]]:
    """(label, tag) of the speakers that a model knows, no tag first."""
    return [("any voice (no tag)", ""), *((name, name) for name in desk.studio.speakers[model])]


def shared_inputs(desk: Desk) -> Inputs:
    """Text and voice, with a recording that is written down as soon as it is there."""
    limits, first = desk.studio.limits, next(iter(desk.studio.models))
    text = gr.Textbox(
        EXAMPLE, label="Text", lines=4, max_lines=12, info=f"up to {limits.characters} characters"
    )
    voice = gr.Radio(
        [("a speaker of the model", TAG), ("a recording to continue", RECORDING)],
        value=TAG,
        label="Voice",
    )
    tags = speakers_of(desk, first)
    speaker = gr.Dropdown(tags, value=tags[min(1, len(tags) - 1)][1], label="Speaker")
    with gr.Column(visible=False) as recorded:
        recording = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label=f"Recording, at most {limits.recording_seconds:g} s",
            buttons=["download"],  # none that shares it
            elem_id="recording",
        )
        words = gr.Textbox(
            "",
            label="Words spoken in the recording",
            lines=2,
            info="recognised for you; correct them where they are wrong",
            elem_id="words",
        )
        heard = gr.HTML(elem_id="heard")
    voice.change(
        lambda whose: (gr.update(visible=whose == TAG), gr.update(visible=whose == RECORDING)),
        voice,
        [speaker, recorded],
        **QUIETLY,
    )

    def write_down(path: str | None, before: str) -> tuple[Any, str]:
        if not path:
            return gr.skip(), ""
        found = before
        with refusals(path) as refused:
            found = desk.recognised(path)
        if refused:
            return before, told(refused[0], wrong=True)
        return found, told("Recognised; correct the words where they are wrong.")

    gr.on(
        [recording.upload, recording.stop_recording],
        write_down,
        [recording, words],
        [words, heard],
        **ALONE,
    )
    recording.clear(lambda: ("", ""), None, [words, heard], **QUIETLY)
    return Inputs(text, voice, speaker, recording, words)
