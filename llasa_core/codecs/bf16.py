"""A codec that encodes in bfloat16, for GPUs whose time is dear: it changes codes, so it is never the default.

`exact` is the same codec in its own precision, with which the share of changed codes is measured.
"""

import numpy as np
import torch

from llasa_core.codecs import Codec


class Bf16Codec:
    """The Codec seam over another codec, under torch's autocast to bfloat16 while it encodes."""

    precision = "bfloat16"

    def __init__(self, exact: Codec, device: str = "cpu"):
        self.exact, self._device = exact, torch.device(device).type
        self.name, self.sample_rate = exact.name, exact.sample_rate
        self.codebook_size, self.frame_rate = exact.codebook_size, exact.frame_rate
        for name in ("front", "fingerprint", "folder"):
            if hasattr(exact, name):
                setattr(self, name, getattr(exact, name))

    def encode(self, waves: list[np.ndarray], **features: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) each -> int32 (floor(T / hop),) each, nearly those of `exact`."""
        with torch.autocast(self._device, torch.bfloat16):
            return self.exact.encode(waves, **features)

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """As `exact` does, in its own precision."""
        return self.exact.decode(codes)
