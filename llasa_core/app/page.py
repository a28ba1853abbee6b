"""The whole page, and the API: the same for programs."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from llasa_core.app import report
from llasa_core.app.compare_tab import CompareTab
from llasa_core.app.desk import Desk
from llasa_core.app.inputs import MODELS, refusals, shared_inputs
from llasa_core.app.results_tab import results_tab
from llasa_core.app.speak_tab import SpeakTab
from llasa_core.app.studio import WAYS, Order, Take

TITLE = "Llasa: type and listen"


def build(desk: Desk, results: Path) -> gr.Blocks:
    """The page of a desk and a folder of results."""
    kept = desk.studio.limits.kept_seconds
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(max(1, min(60, kept // 2)), kept)
    ) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs():
            with gr.Tab("Speak"), gr.Row():
                with gr.Column(scale=2, min_width=300):
                    inputs = shared_inputs(desk)
                with gr.Column(scale=3, min_width=300), gr.Tabs():
                    with gr.Tab("One take"):
                        SpeakTab(desk, inputs)
                    with gr.Tab("Compare two"):
                        CompareTab(desk, inputs)
            with gr.Tab("Results"):
                results_tab(results)
        add_api(desk)
        page.unload(desk.stopped)
    page.queue(max_size=desk.studio.limits.waiting, default_concurrency_limit=4)
    return page


def add_api(desk: Desk) -> None:
    """/speak, /recognise and /models, for programs; a refusal is an error with its sentence."""

    def speak(
        text: str,
        model: str,
        speaker: str,
        recording: str | None = None,
        recording_text: str = "",
        seed: int = 0,
        temperature: float = 0.8,
        top_p: float = 1.0,
        strategy: str = "",
        candidates: int = 0,
        attempts: int = 0,
        numbers: bool = False,
        request: gr.Request = None,
    ) -> tuple[str, dict]:
        with refusals(recording) as refused:
            order = Order(
                text, speaker, recording, recording_text, seed, temperature, top_p, strategy,
                candidates, attempts, numbers,
            )  # fmt: skip
            for step in desk.perform(request.session_hash, model, order):
                if isinstance(step, Take):
                    name = f"{step.model}-seed-{order.seed}"
                    return desk.file(step.wave, step.rate, name), report.as_json(step)
        raise gr.Error(refused[0], print_exception=False)

    def recognise(recording: str) -> str:
        with refusals(recording) as refused:
            return desk.recognised(recording)
        raise gr.Error(refused[0], print_exception=False)

    def models() -> dict:
        tags = {name: list(known) for name, known in desk.studio.speakers.items()}
        return {"models": tags, "strategies": list(WAYS)}

    plain, first = Order("-"), next(iter(desk.studio.models))
    with gr.Row(visible=False):
        press = gr.Button()
        recording, heard = gr.Audio(type="filepath", label="recording"), gr.Textbox(label="text")
        order = [  # a field of an Order each, in their order, the model second
            gr.Textbox(label="text"),
            gr.Textbox(first, label="model"),
            gr.Textbox(plain.speaker, label="speaker"),
            recording,
            gr.Textbox(plain.recording_text, label="recording_text"),
            gr.Number(plain.seed, precision=0, label="seed"),
            gr.Number(plain.temperature, label="temperature"),
            gr.Number(plain.top_p, label="top_p"),
            gr.Textbox(plain.strategy, label="strategy"),
            gr.Number(plain.candidates, precision=0, label="candidates"),
            gr.Number(plain.attempts, precision=0, label="attempts"),
            gr.Checkbox(plain.numbers, label="numbers"),
        ]
        audio, answer = gr.Audio(label="audio"), gr.JSON(label="report")
    alone = {"concurrency_id": MODELS, "concurrency_limit": 1}
    press.click(speak, order, [audio, answer], api_name="speak", **alone)
    press.click(recognise, recording, heard, api_name="recognise", **alone)
    press.click(models, None, answer, api_name="models", queue=False)
