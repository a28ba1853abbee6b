"""Training examples: codes datasets as synthesis or recognition examples, and text chat, with
weights.

A source knows the length of every example before it is built, so rows are planned without reading
the codes. Lengths are counted with the prompt's own tokenizer; a test compares them with the
examples.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llasa_core.data.text_ids import speakers_of, text_ids
from llasa_core.errors import InputError
from llasa_core.files import numbered_rows

ROLES = ("system", "user", "assistant")


@dataclass
class ExampleSource:
    """One dataset as examples of one task: "tts" (text -> codes), "asr" (codes -> text) or "chat"
    (messages).

    `dataset` is a CodesDataset; for "chat" a ChatDataset, or rows with "id" and "messages" like it.
    `weight` is how often the dataset is seen per epoch (0.5: another half each epoch).
    `speaker_tags` is the probability that an utterance carries its speaker's tag, drawn from a hash
    of utterance id and epoch. `cut`: longer examples are truncated to this many tokens, as in the
    public code; by default none is.
    """

    dataset: Any
    prompt: Any
    task: str = "tts"
    weight: float = 1.0
    speaker_tags: float = 0.0
    cut: int | None = None
    lengths: np.ndarray = field(init=False)  # (N,) tokens without a tag
    tag_lengths: np.ndarray = field(init=False)  # (N,) tokens that the tag adds
    speakers: list[str] = field(init=False)
    truncated: int = field(init=False)  # examples that are truncated

    def __post_init__(self) -> None:
        if self.task == "chat":
            made = [
                self.prompt.chat_example(self.dataset[index]["messages"])
                for index in range(len(self.dataset))
            ]
            self.lengths = np.array([len(one.input_ids) for one in made], np.int64)
            self.tag_lengths, self.speakers = np.zeros(len(made), np.int64), []
        else:
            self._measure()
        whole = self.lengths + self.tag_lengths
        self.truncated = 0 if self.cut is None else int((whole > self.cut).sum())

    def _measure(self) -> None:
        """Text ids, lengths and speakers of a codes dataset, from its columns."""
        self._text = text_ids(self.dataset, self.prompt.tokenizer)  # ids and borders
        spoken = self.dataset.lengths()
        if not spoken.all():
            raise InputError(
                f"{self.identifier(int(spoken.argmin()))}: codes: expected at least one speech code"
            )
        self.lengths = np.diff(self._text[1]) + spoken + self.prompt.template_length(self.task)
        names, numbers = speakers_of(self.dataset)
        wanted = self.speaker_tags > 0 and self.task == "tts"
        tags = np.array(
            [self.prompt.speaker_tag_length(name) if wanted else 0 for name in names], np.int64
        )
        self.tag_lengths = tags[numbers] if wanted else np.zeros(len(numbers), np.int64)
        self.speakers = sorted(name for name in names if name)

    def longest(self) -> np.ndarray:
        """int64 (N,): tokens of each example with its tag, truncated if this source truncates."""
        whole = self.lengths + self.tag_lengths
        return whole if self.cut is None else np.minimum(whole, self.cut)

    def identifier(self, index: int) -> str:
        """The utterance id of example `index`."""
        return self.dataset[index]["id"] if self.task == "chat" else self.dataset.value("id", index)

    def frames(self, index: int) -> int:
        """Number of speech codes of example `index`; 0 for chat."""
        return 0 if self.task == "chat" else len(self.dataset.codes(index))

    def tagged(self, index: int, epoch: int) -> bool:
        """Whether utterance `index` carries its speaker's tag in `epoch`."""
        if not self.tag_lengths[index]:
            return False
        if self.speaker_tags >= 1:
            return True
        digest = hashlib.sha256(f"{self.identifier(index)}/{epoch}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < self.speaker_tags

    def example(self, index: int, epoch: int) -> Any:
        """Utterance `index` as a prompts.Example."""
        if self.task == "chat":
            made = self.prompt.chat_example(self.dataset[index]["messages"])
        else:
            ids, borders = self._text
            speaker = self.dataset.value("speaker", index) if self.tagged(index, epoch) else None
            text = ids[borders[index] : borders[index + 1]]
            made = self.prompt.splice(self.task, text, self.dataset.codes(index), speaker)
        return made if self.cut is None or len(made.input_ids) <= self.cut else _cut(made, self.cut)

    def epoch_members(self, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices seen in `epoch` (repeated above weight 1) and token counts, both (M,)."""
        whole, part = divmod(self.weight, 1.0)
        indices = [np.arange(len(self.lengths))] * int(whole)
        if part:
            generator = np.random.default_rng([seed, epoch, 1])
            indices.append(np.flatnonzero(generator.random(len(self.lengths)) < part))
        members = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
        tags = (
            np.array([self.tagged(int(i), epoch) for i in members], dtype=bool)
            if self.tag_lengths.any()
            else False
        )
        lengths = self.lengths[members] + self.tag_lengths[members] * tags
        return members, lengths if self.cut is None else np.minimum(lengths, self.cut)


def _cut(example: Any, length: int) -> Any:
    """The first `length` tokens. Drops END, so the model does not learn to stop."""
    spans = tuple((start, min(end, length)) for start, end in example.spans if start < length)
    eots = tuple(at for at in example.eot_positions if at < length)
    return replace(example, input_ids=example.input_ids[:length], spans=spans, eot_positions=eots)


def balance(sources: Sequence[ExampleSource], shares: Sequence[float | None]) -> None:
    """Set the weights of the sources that ask for a share of an epoch's tokens; the others keep
    theirs.

    Source i with share s_i is repeated until it makes up s_i of all tokens. Raises InputError if
    the shares leave nothing to the others, or there are no others.
    """
    total = sum(share for share in shares if share is not None)
    given = sum(
        float(one.lengths.sum()) * one.weight
        for one, share in zip(sources, shares, strict=True)
        if not share
    )
    if total and (total >= 1 or not given):
        raise InputError(
            f"config: the shares in `codes` add up to {total:g}, expected datasets without a share"
            " beside"
        )
    for source, share in zip(sources, shares, strict=True):
        if share is not None:
            source.weight = share * given / (1 - total) / float(source.lengths.sum())


class ChatDataset:
    """Conversations of a JSON lines file: {"messages": [{"role", "content"}, ..], "id" (optional)}
    per line.

    Roles are system, user and assistant. Raises InputError, which names the line, for anything else
    and for a conversation without an assistant's answer.
    """

    def __init__(self, path: str | Path):
        self.rows = list(_conversations(Path(path)))
        if not self.rows:
            raise InputError(f"{path}: no conversations, expected at least one")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def _conversations(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in numbered_rows(path, "JSON lines of conversations"):
        messages = row.get("messages")
        fine = isinstance(messages, list) and all(
            isinstance(one, dict)
            and one.get("role") in ROLES
            and isinstance(one.get("content"), str)
            for one in messages
        )
        if not fine:
            raise InputError(
                f'{path}:{number}: expected "messages" of role ({", ".join(ROLES)}) and content'
            )
        roles = [one["role"] for one in messages]
        if (
            "assistant" not in roles[1:]
            or "system" in roles[1:]
            or not all(one["content"].strip() for one in messages)
        ):
            raise InputError(
                f"{path}:{number}: expected an assistant's answer, system first, no empty content"
            )
        yield {"id": str(row.get("id", f"{path.name}:{number}")), "messages": messages}
