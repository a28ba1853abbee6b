"""`torchrun -m llasa_core.train config.json`: the door of launchers; the training is in
`training`.
"""

from llasa_core.experiments.samples import SpokenSamples
from llasa_core.training.launch import main

if __name__ == "__main__":
    raise SystemExit(main(listener=SpokenSamples))
