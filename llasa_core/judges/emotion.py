"""Emotion of speech as a vector, for the cosine between a prompt and what was spoken (arXiv
2502.04128, Table 4).

emotion2vec has no packaged weights: funasr (optional) loads it from a folder or a model hub.
"""

import numpy as np

from llasa_core.device import choose_device
from llasa_core.errors import InputError, needs_extra
from llasa_core.judges.identity import tensors_fingerprint
from llasa_core.judges.interface import at_16_khz, distribution_version

MODEL_ID = "iic/emotion2vec_plus_large"


class Emotion2VecEmbedder:
    """emotion2vec+ (arXiv 2312.15185) through funasr: mean over frames of the last layer, unit
    length.

    name: "emotion2vec_plus_large", or a folder or hub id of another emotion2vec model.
    Raises InputError when funasr is absent or the model cannot be loaded.
    """

    def __init__(self, name: str = "emotion2vec_plus_large", device: str | None = None):
        with needs_extra("emotion2vec", "protocols", "funasr"):
            from funasr import AutoModel
        device = choose_device(device)
        model = MODEL_ID if name == "emotion2vec_plus_large" else name
        try:
            self._model = AutoModel(
                model=model, device=device, disable_update=True, disable_pbar=True
            )
        except Exception as error:  # funasr and the hub clients raise kinds of their own
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"emotion model {model!r} is neither a folder nor reachable on its hub: {reason}"
            ) from error
        self.name, self.version = name, distribution_version("funasr")
        self.fingerprint = tensors_fingerprint(self._model.model.state_dict())

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """Waves (T,) -> (N, D) float32, unit length; one by one, without padding."""
        rows = []
        for wave in waves:
            wave = at_16_khz(wave, sample_rate)
            (result,) = self._model.generate(wave, granularity="utterance", extract_embedding=True)
            rows.append(np.asarray(result["feats"], np.float32))
        return np.stack(
            [row / max(float(np.linalg.norm(row)), np.finfo(np.float32).tiny) for row in rows]
        )
