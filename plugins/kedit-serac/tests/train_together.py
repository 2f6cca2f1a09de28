"""One of several processes that train in a folder: alone, together, and together interrupted and resumed."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from kedit_core.progress import Progress
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_core.testing.facts import edit_of, facts
from kedit_serac import training
from kedit_serac.config import CounterfactualTraining, ScopeTraining
from kedit_serac.lessons import Lessons
from kedit_serac.plans import TrainingPlan
from kedit_serac.shards import Source
from kedit_serac.teams import ALONE, team


class Stop(Progress):
    """Interrupts the training of the counterfactual model after so many steps, in every process."""

    @contextmanager
    def task(self, description, total, unit=""):
        left = [4 if "counterfactual" in description else 10**9]

        def done(count):
            left[0] -= count
            if not left[0]:
                raise KeyboardInterrupt

        yield done


class Noted(Lessons):
    """Lessons of which the last ones stay at hand."""

    made = None

    def __init__(self, *given):
        super().__init__(*given)
        Noted.made = self


def train(folder, others, progress=None, *, resume=False):
    """Train for a moment in float64."""
    plan = TrainingPlan(
        model="tiny",
        requests=("facts",),
        out=str(folder),
        scope=ScopeTraining(width=8, steps=5, wordings=3, others=1),
        counterfactual=CounterfactualTraining(
            steps=6, validate=3, batch=5, accumulate=2, locality=0.5
        ),
    )
    training.Training(
        tiny_model("llama"),
        byte_level_tokenizer(bos=True),
        plan,
        [Source(name="facts", requests=[edit_of(one) for one in facts()][::3])],
        team=others,
        progress=progress,
    ).run(resume=resume)


def main(folder):
    """Train in folders below this one."""
    torch.set_num_threads(1)
    training.Lessons = Noted
    with team(asked=True) as others:
        if others.first:
            train(folder / "one", ALONE)
        train(folder / "two", others)
        torch.save(Noted.made.model.state_dict(), folder / f"rank{others.rank}.pt")
        try:
            train(folder / "broken", others, Stop())
        except KeyboardInterrupt:
            train(folder / "broken", others, resume=True)


main(Path(sys.argv[1]))
