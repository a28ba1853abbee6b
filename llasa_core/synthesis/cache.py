"""The keys and values of a generation: a slot a row, all of one capacity, allocated once."""

from __future__ import annotations

import torch


class SlotCache:
    """Keys and values of every layer, (S, heads, capacity, width) each; what a Llama needs of a
    cache is `update`.
    """

    def __init__(self, model: torch.nn.Module, slots: int, capacity: int) -> None:
        config = model.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        shape = (slots, config.num_key_value_heads, capacity, width)
        weight = model.get_output_embeddings().weight

        def room() -> list[torch.Tensor]:
            return [
                torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                for _ in range(config.num_hidden_layers)
            ]

        self.keys, self.values = room(), room()
        self.target: torch.Tensor | None = None  # prefill: the slot of each prompt
        self.live = self.seen = 0  # step: rows in use, keys to attend to
        # step: slot and position that each row writes
        self.at: tuple[torch.Tensor, torch.Tensor] | None = None

    def prefill(self, target: torch.Tensor) -> None:
        """The next forward pass is a prefill: slot `target[i]` takes the keys of prompt `i`."""
        self.target, self.at = target, None

    def step(self, live: int, at: tuple[torch.Tensor, torch.Tensor], seen: int) -> None:
        """The next forward pass adds one token to each of the first `live` slots and attends to
        `seen` positions.
        """
        self.live, self.at, self.seen = live, at, seen

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the attention of each layer with key and value (B, heads, T, width)."""
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            if self.at is None:
                store[self.target, :, : new.shape[2]] = new
            else:
                store[self.at[0], :, self.at[1]] = new[:, :, 0]
        if self.at is None:
            return key, value
        return (
            self.keys[layer][: self.live, :, : self.seen],
            self.values[layer][: self.live, :, : self.seen],
        )

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` over slot `target`."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]

    def gather(self, source: torch.Tensor, length: int) -> None:
        """Slots 0..len(source)-1 become copies of the first `length` positions of the slots
        `source`.
        """
        for store in (*self.keys, *self.values):
            store[: len(source), :, :length] = store[source, :, :length]
