"""A live app with the tracked models on a free port, once for all tests of this folder."""

from pathlib import Path

import numpy as np
import pytest

from llasa_core.app.studio import Limits, Studio, named, tracked_checkpoints
from llasa_core.experiments.config import repository_root

ROOT = repository_root(Path(__file__).parent)


@pytest.fixture(scope="session")
def tracked():
    """{name: checkpoint} of what the repository brings, and the first one under a second name."""
    places = list(tracked_checkpoints(ROOT))
    return {**named(places), "twin": places[0]}


@pytest.fixture(scope="session")
def studio(tracked):
    """The tracked models, judged by fakes that take no time."""
    judges = {"words": "fake", "voice": "fake"}
    studio = Studio(tracked, limits=Limits(characters=400, recording_seconds=12.0, megabytes=1,
                                           waiting=2), verifier_models=judges)  # fmt: skip
    yield studio
    studio.close()


@pytest.fixture(scope="session")
def model(studio):
    """The name of the first tracked model."""
    return next(iter(studio.models))


@pytest.fixture(scope="session")
def speaker(studio, model):
    """A speaker that it knows."""
    return studio.speakers[model][0]


@pytest.fixture(scope="session")
def recording(studio, model, speaker, tmp_path_factory):
    """A recording of a sentence, of a voice that the codec carries."""
    from llasa_core.app.studio import Order
    from llasa_core.audio import write_wav

    job = studio.job(
        lambda job: studio.perform(model, Order("Call the office at seven.", speaker), job)
    )
    assert list(job) == []
    path = tmp_path_factory.mktemp("recording") / "me.wav"
    write_wav(path, np.concatenate([job.result.wave, np.zeros(8000, np.float32)]))
    return path
