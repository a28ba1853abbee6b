"""One take: settings, playback while it is spoken, and everything that is known of it."""

from __future__ import annotations

import html
from collections.abc import Iterator

import gradio as gr

from llasa_core.app import report
from llasa_core.app.desk import Desk
from llasa_core.app.inputs import ALONE, QUIETLY, Inputs, order_of, refusals, speakers_of, told
from llasa_core.app.studio import MOST_ATTEMPTS, PLAIN, WAYS, Order, Take


def settings_of(desk: Desk) -> dict[str, gr.components.Component]:
    """The components of a take's settings by the name that they have in an Order, model first."""
    models, most = list(desk.studio.models), desk.studio.limits.candidates
    plain = Order("-")
    found = {"model": gr.Dropdown(models, value=models[0], label="Model")}
    with gr.Row():
        found["temperature"] = gr.Slider(
            0, 1.5, plain.temperature, step=0.05, label="Temperature", min_width=140
        )
        found["seed"] = gr.Number(
            0, precision=0, minimum=0, maximum=2**53, label="Seed", min_width=100
        )
    with gr.Row():
        found["strategy"] = gr.Dropdown(
            list(WAYS),
            value=PLAIN,
            label="Strategy",
            info="a search keeps the best of many candidates",
            min_width=140,
        )
        found["candidates"] = gr.Slider(
            1,
            most,
            min(plain.candidates, most),
            step=1,
            label="Candidates",
            visible=False,
            min_width=140,
        )
    with gr.Accordion("More settings", open=False):
        found["top_p"] = gr.Slider(0.05, 1, plain.top_p, step=0.05, label="Top p")
        found["attempts"] = gr.Slider(
            0,
            MOST_ATTEMPTS,
            plain.attempts,
            step=1,
            label="Attempts",
            info="samples until one passes the guards; 0 switches them off",
        )
        found["numbers"] = gr.Checkbox(False, label="Write numbers out (English)")
    return found


class SpeakTab:
    """The tab and its handlers."""

    def __init__(self, desk: Desk, inputs: Inputs) -> None:
        self.desk = desk
        self.settings = settings_of(desk)
        with gr.Row():
            button = gr.Button("Speak", variant="primary", elem_id="speak", min_width=120)
            stop = gr.Button("Stop", elem_id="stop", min_width=80)
        self.status, self.live = gr.HTML(elem_id="status"), gr.HTML(elem_id="live")
        player = {"interactive": False, "buttons": ["download"]}
        self.speech = gr.Audio(label="Speech", visible=False, elem_id="speech", **player)
        self.table = gr.HTML(elem_id="candidates")
        with gr.Group(visible=False) as self.others:
            self.candidate = gr.Dropdown([], label="Listen to another candidate")
            self.sample = gr.Audio(label="That candidate", elem_id="sample", **player)
        self.details = gr.HTML(elem_id="details")
        self.take = gr.State(None, time_to_live=desk.studio.limits.kept_seconds)
        self._follow_settings(inputs)
        gr.on(
            [button.click, inputs.text.submit],
            self.perform,
            [*inputs.listed, *self.settings.values()],
            [self.status, self.live, *self._cleared()],
            show_progress="hidden",
            **ALONE,
        )
        stop.click(desk.stopped, queue=False, **QUIETLY)
        self.candidate.input(self.listen, [self.take, self.candidate], self.sample, **ALONE)

    def _follow_settings(self, inputs: Inputs) -> None:
        settings = self.settings
        settings["strategy"].change(
            lambda strategy: gr.update(visible=strategy != PLAIN),
            settings["strategy"],
            settings["candidates"],
            **QUIETLY,
        )

        def known(model: str, speaker: str) -> dict:
            tags = speakers_of(self.desk, model)
            kept = speaker if speaker in dict(tags).values() else ""
            return gr.update(choices=tags, value=kept)

        settings["model"].change(
            known, [settings["model"], inputs.speaker], inputs.speaker, **QUIETLY
        )

    def _cleared(self) -> dict:
        return {
            self.speech: gr.update(value=None, visible=False),
            self.table: "",
            self.others: gr.update(visible=False),
            self.candidate: gr.update(choices=[], value=None),
            self.sample: None,
            self.details: "",
            self.take: None,
        }

    def perform(self, request: gr.Request, *values) -> Iterator[dict]:
        """What changes in the page while an order is spoken, and at its end."""
        spoken, chosen = values[:5], dict(zip(self.settings, values[5:], strict=True))
        name, model = None, chosen.pop("model")
        with refusals(spoken[3]) as refused:
            order, sink = order_of(*spoken, **chosen), None
            if order.strategy == PLAIN:
                name, sink = self.desk.live.open()
            yield {
                self.status: told("Speaking." if sink else "Searching."),
                self.live: _live_player(name) if sink else "",
                **self._cleared(),
            }
            for step in self.desk.perform(request.session_hash, model, order, sink):
                if isinstance(step, Take):
                    yield self._finished(step)
                else:
                    yield {self.status: told(step)}
        if refused:
            yield {self.status: told(refused[0], wrong=True), self.live: "", **self._cleared()}
        if name is not None:
            self.desk.live.close(name)

    def _finished(self, take: Take) -> dict:
        choices = report.candidate_choices(take)
        path = self.desk.file(take.wave, take.rate, f"{take.model}-seed-{take.order.seed}")
        return {
            self.status: told(report.summary(take)),
            self.speech: gr.update(value=path, visible=True, autoplay=bool(take.chosen)),
            self.table: report.candidates_table(take),
            self.others: gr.update(visible=bool(choices)),
            self.candidate: gr.update(choices=choices, value=None),
            self.details: details_of(take),
            self.take: take,
        }

    def listen(self, take: Take | None, which: str | None) -> str | None:
        """The file of the candidate that was chosen."""
        if take is None or not which:
            return None
        return self.desk.candidate(take, *map(int, which.split("/")))


def _live_player(name: str) -> str:
    return f'<live-speech src="live/{name}.wav"></live-speech>'


def details_of(take: Take, title: str = "") -> str:
    """Spectrogram, what the guards did, and the codes of a take."""
    guards = "".join(f"<li>{html.escape(line)}</li>" for line in report.guards_in_words(take))
    codes = " ".join(map(str, take.codes.tolist()))
    head = f"<h3>{html.escape(title)}</h3>" if title else ""
    return (
        f'<section class="details">{head}{report.spectrogram(take)}'
        f"<h4>Guards</h4><ul>{guards}</ul>"
        f"<h4>Codes</h4><p>{html.escape(report.codes_in_words(take))}</p>"
        f'<textarea class="codes" rows="4" readonly aria-label="Codes">{codes}</textarea>'
        "</section>"
    )
