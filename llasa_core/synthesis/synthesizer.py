"""Text (and speaker or voice prompt) -> codes -> audio; and back, codes -> text.

`Synthesizer` holds one model, its tokenizer and its codec. The sampling loop is `decoding`,
requests and their files are `manifest` and `batch`. What a request sounds like
depends on its text, speaker, voice and seed, not on the other requests.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from llasa_core.checkpoint import (
    SETTINGS,
    checkpoint_file,
    codec_place,
    read_settings,
    refuse_another_codec,
)
from llasa_core.device import choose_device
from llasa_core.errors import InputError
from llasa_core.manifest import Request, length_limit
from llasa_core.model import context_limit
from llasa_core.prompts import Prompt, Voice
from llasa_core.synthesis.decoding import Answers, Asked, Drawing, Generated, decode, generating
from llasa_core.synthesis.guards import FRAME_SECONDS, GUARDS, Guards, Spoken, sounding_frames
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.text import piece_request, pieces_of_request
from llasa_core.tokenizer import DEFAULT_DATE, load_tokenizer, vocabulary_of

LEAST_SOUND = 0.3  # seconds that a voice prompt must have above silence: less holds no word

# Finished utterances handed to the codec at once; more are lost when a run is killed
DECODE_TOGETHER = 16


class Synthesizer:
    """A model that speaks: `speak` for utterances, `transcribe_codes` for the reverse.

    Raises InputError where tokenizer, model and codec do not belong together. `mask_eot` hides the
    template's `<|eot_id|>` tokens from attention, as the public training code does. `slots` rows
    are generated at a time. `speakers` are the tags that the model was trained with: any other is
    refused; none at all (an empty list) means that prompts carry no tag, whatever the request says;
    None means not known: a released checkpoint never saw tags, so names become tags only with
    `tags=True` (`untagged` says so). `tags=False` leaves all tags out, whatever the model knows.
    With a voice prompt the request's speaker only names whose voice it
    is, and no tag is written. `guards` are what the checkpoint brings; they act where a call asks
    for them. `context` is that of the training, the most tokens of prompt and answer together
    (model.context_limit). `engine` (`vllm`) generates in place of our loop in `speak`; search and
    streaming always use the loop. A LoRA model must be merged first: the loop reads the weight of
    the output embedding.
    """

    def __init__(
        self,
        model,
        tokenizer,
        codec,
        device: str | None = None,
        *,
        date: str = DEFAULT_DATE,
        speakers: Sequence[str] | None = None,
        mask_eot: bool = False,
        seconds_per_character: float = 0.08,
        slots: int = 32,
        guards: Guards | None = None,
        engine=None,
        tags: bool | None = None,
        context: int | None = None,
    ) -> None:
        self.vocabulary = vocabulary_of(tokenizer)
        if codec.codebook_size != self.vocabulary.codebook_size:
            raise InputError(
                f"codec {codec.name} has {codec.codebook_size} codes, the tokenizer"
                f" {self.vocabulary.codebook_size}: the checkpoint was made for another codec"
            )
        rows = model.get_output_embeddings().weight.shape[0]
        if not 0 <= rows - self.vocabulary.size < 128:
            # A vocabulary may be padded up to a multiple of 128
            raise InputError(f"the model has {rows} ids, its tokenizer {self.vocabulary.size}")
        self.model, self.tokenizer, self.codec, self.slots = (
            model.to(choose_device(device)).eval(),
            tokenizer,
            codec,
            slots,
        )
        self.prompt = Prompt(tokenizer, self.vocabulary, date=date)
        speakers = () if tags is False else speakers
        self.speakers, self.mask_eot = speakers if speakers is None else tuple(speakers), mask_eot
        self.seconds_per_character, self.guards = seconds_per_character, guards or Guards()
        self._eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
        if mask_eot and self._eot is None:
            raise InputError("mask_eot: the tokenizer has no <|eot_id|>")
        longest = model.config.max_position_embeddings
        self.context = context_limit(longest, self.vocabulary.size, context)
        self.engine, self.tags, self.without_tags = engine, bool(tags), tags is False
        if engine is not None and mask_eot:
            raise InputError(f"mask_eot: the engine {engine.name} hides no tokens from attention")

    @classmethod
    def from_folder(
        cls,
        model_dir,
        codec=None,
        device: str | None = None,
        slots: int = 32,
        engine=None,
        tags: bool | None = None,
        context: int | None = None,
    ) -> Synthesizer:
        """Checkpoint folder (or hub id) and codec (a Codec, a name, a folder; None: the one that
        travels in its folder `codec`, or that llasa.json names, in the folder that it tells where
        that is there).

        Weights are float32 on a CPU, bfloat16 on CUDA. device: by default the GPU where there is
        one (device.choose_device). context: in place of what model.context_limit finds.
        """
        from llasa_core.codecs import load_codec
        from llasa_core.model import load_model

        device = choose_device(device)
        card, learnt = (checkpoint_file(model_dir, name) for name in (SETTINGS, GUARDS))
        settings = {} if card is None else read_settings(card)
        told = ("codec", "codec_fingerprint", "codes_fingerprint", "codec_folder")
        trained = {key: settings.pop(key, None) for key in told}
        if codec is None:
            codec = codec_place(model_dir, trained)
        if codec is None:
            raise InputError(
                f"{model_dir}: no {SETTINGS} says which codec it was trained on; name the codec"
            )
        if isinstance(codec, str | Path):
            codec = load_codec(str(codec), device)
        refuse_another_codec(card, trained, codec)
        dtype = torch.bfloat16 if str(device).startswith("cuda") else torch.float32
        model, tokenizer = load_model(str(model_dir), dtype=dtype), load_tokenizer(str(model_dir))
        guards = None if learnt is None else Guards.from_file(learnt)
        if context is not None:
            longest, size = model.config.max_position_embeddings, model.config.vocab_size
            settings["context"] = context_limit(longest, size, asked=context)
        return cls(
            model,
            tokenizer,
            codec,
            device,
            slots=slots,
            guards=guards,
            engine=engine,
            tags=tags,
            **settings,
        )

    @property
    def hop(self) -> int:
        """Samples per code."""
        return round(self.codec.sample_rate / self.codec.frame_rate)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all weights, as values: the same in every precision that holds them."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            values = parameter.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(values.numpy().data)
        return digest.hexdigest()[:16]

    def settings(self) -> dict:
        """What, besides sampling and request, decides how a request sounds; JSON values."""
        return {
            **({"engine": self.engine.name} if self.engine is not None else {}),
            "codec": self.codec.name,
            "codec_fingerprint": self.codec.fingerprint,
            "model": self.fingerprint,
            "date": self.prompt.date,
            "speakers": self.speakers if self.speakers is None else list(self.speakers),
            **({"tags": self.tags} if self.speakers is None else {}),
            "mask_eot": self.mask_eot,
            "seconds_per_character": self.seconds_per_character,
        }

    def voice(self, audio, text: str) -> Voice:
        """A voice prompt from an audio file and the words spoken in it. Raises InputError for a bad
        file, one that is silent or too short to hold a word, or no text.
        """
        from llasa_core.audio import load_audio

        if not text.strip():
            raise InputError(f"{audio}: a voice prompt needs the words that are spoken in it")
        wave = load_audio(audio, self.codec.sample_rate)
        sound = sounding_frames(wave, self.codec.sample_rate).sum() * FRAME_SECONDS
        if sound < LEAST_SOUND:
            raise InputError(
                f"{audio}: {sound:.2f} s of sound in {len(wave) / self.codec.sample_rate:.2f} s,"
                f" expected a voice prompt with at least {LEAST_SOUND} s"
            )
        return Voice(text, self.codec.encode([wave])[0], Path(audio))

    def limit(
        self, request: Request, prompt_tokens: int, sampling: Sampling, guards: Guards | None = None
    ) -> int:
        """The most codes for a request: by text, guards, `sampling.max_seconds` and the room left
        in the context.

        Raises InputError where the prompt leaves no room for the text at its normal pace.
        """
        rate = self.codec.frame_rate
        by_text = length_limit(request.text, self.seconds_per_character, frame_rate=rate)
        least = length_limit(request.text, self.seconds_per_character / 2, 1.0, 0.0, rate)
        if request.continues:  # the voice has spoken its part of the text
            least = max(1, least - len(request.voice.codes))
        if guards is not None and guards.longest is not None:
            by_text = min(by_text, guards.bounds(request, rate)[1])
        room = self.context - prompt_tokens
        if room < least:
            raise InputError(
                f"request {request.id}: the prompt takes {prompt_tokens} of {self.context} tokens"
                f" and the text needs at least {least} codes; speak it in shorter pieces or shorten"
                " the voice prompt"
            )
        return max(1, min(by_text, int(sampling.max_seconds * rate), room))

    def _generate(self, prompts, max_codes, sampling, seeds) -> Iterator[tuple[int, Generated]]:
        for index, row in self._decode(prompts, max_codes, seeds, sampling, self.speech_answers):
            codes = self.vocabulary.ids_to_codes(row.ids)
            yield index, Generated(codes, row.reason == "end", row.reason, row.log_prob, row.steps)

    def _decode(self, prompts, limits, seeds, sampling, answers):
        if self.engine is not None:
            return self.engine.decode(prompts, limits, seeds, sampling, answers)
        return decode(
            self.model, prompts, limits, seeds, sampling, answers, self.slots, self.hidden(prompts)
        )

    @contextmanager
    def drawing(
        self, prompt: np.ndarray, limit: int, seed: int, sampling: Sampling
    ) -> Iterator[Drawing]:
        """One row of speech that can be heard while it is drawn: `take(count)` gives its Row so
        far. The engine draws it if it can, else our loop.
        """
        hidden = self.hidden([prompt])
        asked = Asked(prompt, limit, seed, sampling, () if hidden is None else hidden[0])
        if hasattr(self.engine, "drawing"):
            with self.engine.drawing(asked) as drawing:
                yield drawing
            return
        with generating(self.model):
            yield Drawing(self.model, asked, self.speech_answers)

    def through(self, engine) -> Synthesizer:
        """The same model, tokenizer and codec, with `engine` in place of the loop."""
        twin = copy.copy(self)
        twin.engine = engine
        return twin

    def speak(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        guards: Guards | None = None,
    ) -> Iterator[Spoken]:
        """Speak every request; results come as they finish, not in order. The call itself checks
        all requests.

        With guards what fails is sampled again after all others, and every utterance says what
        happened to it.

        With a voice prompt the codec decodes prompt and answer together and the prompt is cut off,
        so that the utterance begins as a continuation and not with the codec's start-up.
        """
        sampling = sampling or Sampling()
        prompts, limits = self.prepare(requests, sampling, guards)
        if guards is None:
            return self._spoken(requests, prompts, limits, sampling)

        def again(numbers, seeded, heat):
            hotter = replace(sampling, temperature=sampling.temperature + heat)
            return self._spoken(
                seeded, [prompts[n] for n in numbers], [limits[n] for n in numbers], hotter
            )

        return guards.resample(requests, again, self.codec.sample_rate, self.codec.frame_rate)

    def prepare(
        self, requests: Sequence[Request], sampling: Sampling, guards: Guards | None = None
    ) -> tuple[list[np.ndarray], list[int]]:
        """Prompts int32 (T,) and the most codes of every request; InputError for a request that
        cannot be spoken.
        """
        prompts, limits = [], []
        for request in requests:
            prompts.append(self.prompt.tts_prompt(request.text, self.tag(request), request.voice))
            limits.append(self.limit(request, len(prompts[-1]), sampling, guards))
        return prompts, limits

    def tag(self, request: Request) -> str | None:
        """The speaker tag of a request's prompt, None without one; InputError for a speaker that
        the model lacks.
        """
        if request.voice is not None or not request.speaker:
            return None
        if self.speakers is None:
            return request.speaker if self.tags else None
        if self.speakers and request.speaker not in self.speakers:
            known = ", ".join(self.speakers)
            raise InputError(
                f"request {request.id}: unknown speaker {request.speaker!r}; the model knows"
                f" {known}"
            )
        return request.speaker if self.speakers else None

    def untagged(self, requests: Sequence[Request]) -> int:
        """How many requests name a speaker that is no tag: the model was trained without tags, or
        nothing says whether it knows any. None where tags are left out on purpose.
        """
        known = self.tags if self.speakers is None else bool(self.speakers)
        tagless = not known and not self.without_tags
        return sum(
            tagless and request.voice is None and bool(request.speaker) for request in requests
        )

    def speakable(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        characters: int,
        refused: list[InputError],
    ) -> list[Request]:
        """Those requests whose pieces of at most `characters` can be spoken; `refused` receives
        the errors of the others, which are raised where none is left.
        """
        kept = []
        for request in requests:
            pieces = pieces_of_request(request, characters)
            try:
                parts = [piece_request(request, number, pieces) for number in range(len(pieces))]
                self.prepare(parts if len(parts) > 1 else [request], sampling)
            except InputError as error:
                refused.append(error)
            else:
                kept.append(request)
        if not kept:
            raise refused[0]
        return kept

    def hidden(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """The positions of each prompt that no token attends to: its `<|eot_id|>` with mask_eot,
        else None.
        """
        return (
            [np.flatnonzero(prompt == self._eot) for prompt in prompts] if self.mask_eot else None
        )

    @property
    def speech_answers(self) -> Answers:
        """The ids that speech is made of: codes and END."""
        first = self.vocabulary.first_code
        return Answers(
            first, first + self.vocabulary.codebook_size, self.vocabulary.speech_generation_end
        )

    def _spoken(self, requests, prompts, limits, sampling) -> Iterator[Spoken]:
        waiting: list[tuple[int, Generated]] = []
        for finished in self._generate(
            prompts, limits, sampling, [request.seed for request in requests]
        ):
            waiting.append(finished)
            if len(waiting) == DECODE_TOGETHER:
                yield from self._decoded(requests, prompts, waiting)
                waiting = []
        if waiting:
            yield from self._decoded(requests, prompts, waiting)

    def _decoded(self, requests, prompts, finished) -> Iterator[Spoken]:
        voices = [
            requests[i].voice.codes if requests[i].voice is not None else () for i, _ in finished
        ]
        whole = [
            np.concatenate([np.asarray(voice, np.int32), generated.codes])
            for voice, (_, generated) in zip(voices, finished, strict=True)
        ]
        for wave, voice, (index, generated) in zip(
            self.codec.decode(whole), voices, finished, strict=True
        ):
            if not np.isfinite(wave).all():
                raise InputError(
                    f"codec {self.codec.name}: decoded {requests[index].id} to NaN or infinite"
                    " samples"
                )
            yield Spoken(
                requests[index], wave[len(voice) * self.hop :], generated, len(prompts[index])
            )

    def transcribe_codes(self, codes: Sequence[np.ndarray]) -> list[str]:
        """Speech recognition: the most probable token at every step, for codes int (L,) each; order
        is kept.
        """
        answers = Answers(0, self.vocabulary.text_size, self.vocabulary.text_generation_end)
        prompts = [self.prompt.asr_prompt(row) for row in codes]
        limits = []
        for index, (prompt, row) in enumerate(zip(prompts, codes, strict=True)):
            # Speech has 3 to 6 text tokens a second
            limits.append(min(32 + len(row) // 2, self.context - len(prompt)))
            if limits[-1] < 1:
                raise InputError(
                    f"clip {index}: {len(row)} codes leave no room for text in {self.context}"
                    " tokens"
                )
        done = dict(
            self._decode(prompts, limits, [0] * len(prompts), Sampling(temperature=0.0), answers)
        )
        rows = [done[index].ids.tolist() for index in range(len(prompts))]
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows]
