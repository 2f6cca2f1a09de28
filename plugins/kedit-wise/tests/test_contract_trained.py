"""WISE keeps the contract of methods when its shards are trained, as the original's are."""

from typing import ClassVar

from kedit_core.testing import MethodContract


class TestTrainedWise(MethodContract):
    method = "wise"
    # Small models have short moves: margins, steps and bounds to match.
    config: ClassVar = {
        "writer": "descent",
        "descent": {
            "mask": 1.0,
            "lr": 0.1,
            "steps": 60,
            "quiet": 0.5,
            "loud": 2.0,
            "margin": 1.0,
            "clamp": None,
            "replay": 4,
            "irrelevant": 4,
        },
        "context": {"count": 2},
        "routes": {"count": 64},
    }
