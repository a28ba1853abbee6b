"""Two takes of one text side by side: checkpoints, seeds or temperatures, blind if wanted."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace

import gradio as gr

from llasa_core.app.desk import Desk
from llasa_core.app.inputs import ALONE, QUIETLY, Inputs, order_of, refusals, told
from llasa_core.app.speak_tab import details_of
from llasa_core.app.studio import Order, Take

SIDES, PLACES = ("A", "B"), ("First", "Second")
VERDICTS = ("The first is better", "No difference", "The second is better")


@dataclass(frozen=True)
class Pair:
    """Two takes in the order in which they are played; `sides` names them, a blind pair shows no
    name before a verdict.
    """

    takes: tuple[Take, Take]
    sides: tuple[str, str]
    blind: bool
    judged: bool = False


def side(desk: Desk, name: str, seed: int) -> list[gr.components.Component]:
    """Model, seed and temperature of one side."""
    models = list(desk.studio.models)
    with gr.Group():
        model = gr.Dropdown(
            models,
            value=models[seed % len(models)],
            label=f"Model {name}",
            elem_id=f"model-{name}",
        )
        with gr.Row():
            number = gr.Number(
                0 if len(models) > 1 else seed,
                precision=0,
                minimum=0,
                maximum=2**53,
                label=f"Seed {name}",
                min_width=90,
            )
            temperature = gr.Slider(
                0,
                1.5,
                Order("-").temperature,
                step=0.05,
                label=f"Temperature {name}",
                min_width=140,
            )
    return [model, number, temperature]


class CompareTab:
    """The tab and its handlers."""

    def __init__(self, desk: Desk, inputs: Inputs) -> None:
        self.desk, sides = desk, []
        with gr.Row():
            for place, name in enumerate(SIDES):
                with gr.Column(min_width=240):
                    sides += side(desk, name, place)
        blind = gr.Checkbox(False, label="Blind: in random order, named after your verdict")
        with gr.Row():
            button = gr.Button("Speak both", variant="primary", elem_id="compare", min_width=120)
            stop = gr.Button("Stop", min_width=80)
        self.status = gr.HTML(elem_id="compare-status")
        player = {"interactive": False, "visible": False, "buttons": ["download"]}
        with gr.Row():
            self.players = [
                gr.Audio(
                    label=f"{which} take", elem_id=f"take-{which.lower()}", min_width=240, **player
                )
                for which in PLACES
            ]
        with gr.Row(visible=False) as self.asked:
            verdicts = [gr.Button(verdict, min_width=120) for verdict in VERDICTS]
        self.counts = gr.HTML(elem_id="verdicts")
        with gr.Row():
            self.details = []
            for _ in PLACES:
                with gr.Column(min_width=280):
                    self.details.append(gr.HTML())
        self.pair = gr.State(None, time_to_live=desk.studio.limits.kept_seconds)
        self.tally = gr.State({})
        gr.on(
            [button.click],
            self.compare,
            [*inputs.listed, *sides, blind],
            [self.status, *self._cleared()],
            show_progress="hidden",
            **ALONE,
        )
        stop.click(desk.stopped, queue=False, **QUIETLY)
        shown = [self.status, self.counts, self.asked, *self.details, self.pair, self.tally]
        for verdict in verdicts:
            verdict.click(self.judge, [self.pair, self.tally, verdict], shown, **QUIETLY)

    def _cleared(self) -> dict:
        gone = dict.fromkeys(self.players, gr.update(value=None, visible=False))
        gone |= {self.asked: gr.update(visible=False), self.pair: None}
        return gone | dict.fromkeys(self.details, "")

    def compare(self, request: gr.Request, *values) -> Iterator[dict]:
        """What changes in the page while two takes are spoken, and at their end."""
        spoken, sides, blind = values[:5], (values[5:8], values[8:11]), values[-1]
        with refusals(spoken[3]) as refused:
            yield {self.status: told("Speaking the first of two."), **self._cleared()}
            takes = []
            for model, seed, temperature in sides:
                if takes:
                    yield {self.status: told("Speaking the second of two.")}
                order = order_of(*spoken, seed=seed, temperature=temperature)
                *_, take = self.desk.perform(request.session_hash, model, order)
                takes.append(take)
            order = [0, 1]
            if blind:
                secrets.SystemRandom().shuffle(order)
            pair = Pair(
                tuple(takes[place] for place in order),
                tuple(SIDES[place] for place in order),
                blind,
            )
            yield {
                self.status: told("Listen to both, then say which is better."),
                **self._played(pair),
                **self._described(pair),
                self.asked: gr.update(visible=True),
                self.pair: pair,
            }
        if refused:
            yield {self.status: told(refused[0], wrong=True), **self._cleared()}

    def _played(self, pair: Pair) -> dict:
        return {
            player: gr.update(
                value=self.desk.file(take.wave, take.rate, which.lower()), visible=True
            )
            for player, take, which in zip(self.players, pair.takes, PLACES, strict=True)
        }

    def _described(self, pair: Pair) -> dict:
        if pair.blind and not pair.judged:
            return dict.fromkeys(self.details, "")
        titles = [
            f"{which} take: {name}, {_setting(take)}"
            for which, name, take in zip(PLACES, pair.sides, pair.takes, strict=True)
        ]
        return {
            place: details_of(take, title)
            for place, take, title in zip(self.details, pair.takes, titles, strict=True)
        }

    def judge(self, pair: Pair | None, counted: dict, verdict: str) -> dict:
        """Names the sides and counts the verdict."""
        if pair is None or pair.judged:
            return {self.status: told("Speak both first, then judge them once.", wrong=True)}
        pair = replace(pair, judged=True)
        better = "no difference"
        if verdict != VERDICTS[1]:
            place = VERDICTS.index(verdict) // 2
            better = f"{pair.sides[place]} ({_setting(pair.takes[place])})"
        counted = counted | {better: counted.get(better, 0) + 1}
        so_far = "; ".join(f"{name}: {count}" for name, count in counted.items())
        names = [
            f"the {which.lower()} was {name} ({_setting(take)})"
            for which, name, take in zip(PLACES, pair.sides, pair.takes, strict=True)
        ]
        return {
            self.status: told(f"{verdict}: {' and '.join(names)}."),
            self.counts: told(f"Verdicts so far: {so_far}."),
            self.asked: gr.update(visible=False),
            **self._described(pair),
            self.pair: pair,
            self.tally: counted,
        }


def _setting(take: Take) -> str:
    order = take.order
    return f"{take.model}, seed {order.seed}, temperature {order.temperature:g}"
