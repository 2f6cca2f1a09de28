"""What SERAC does on an atlas model, with edits that neither of its two parts was trained on.

``python tests/benchmarks/serac_on_atlas.py MODEL --checkpoint FOLDER [--edits 100 --edits 1000] [--json]``

``kedit serac train`` filled the folder from ``atlas:training`` (docs/how-to/train-serac.md). Scores are in
percent by exact match, for each number of edits in memory:

* edits: on their own prompt; paraphrases; wordings that no fact was ever trained in;
* unseen, random: targets that training never met, real answers and strings of random tokens, by the
  counterfactual model alone;
* near: neighbours whose answer is as before (those that are edits themselves left out); same subject: other
  questions about edited subjects that meet no edit, in wordings of the training, then in new ones; text:
  general sentences that meet no edit, first those that name no edited subject, then all; kept: the change in
  right answers to unrelated facts.

Then one table of the trained classifier beside its two halves, raw cosine, an untrained projection and, where
the checkpoint holds one, the re-ranker: AUC by kind of hard negative, and the share of paraphrases, and of
wordings never trained, that are accepted where 98 % of the neighbours are rejected. Other questions about
edited subjects are asked in wordings of the training and in new ones. ``--scope`` prints this table alone; the
counterfactual model need not be trained for it. Exits 1 when a bar is missed. ``serac_costs.py`` measures time
and room.
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from attrs import evolve, fields, frozen
from rich.table import Table
from wise_on_atlas import sentences

from kedit_atlas.world import load_world
from kedit_core import Editor, EditRequest, Plugins
from kedit_core.cli.screen import print_json, quiet_transformers, screen
from kedit_core.tokens import Ids, encode, encode_target
from kedit_memory.readers import reader_of
from kedit_memory.rerankers import Reranking
from kedit_memory.scope import ScopeClassifier, top_one
from kedit_memory.scope_calibration import auc_of
from kedit_serac.checkpoints import read
from kedit_serac.counterfactual import edit_text, head_of
from kedit_serac.rows import Row, batch_of, stop_of

BARS: Mapping[str, float] = {
    "edits": 98,
    "paraphrases": 94,
    "never trained": 60,
    "near": 97.5,
    "same subject": 88,
    "unseen": 90,
}
ACCEPTED_BAR, KEPT_BAR, SECONDS_BAR = 92, 0.5, 5
REJECTED = 0.98


Embed = Callable[[torch.Tensor], torch.Tensor]
"""Takes states of prompts to vectors."""

Best = tuple[torch.Tensor, torch.Tensor]
"""The largest score of each prompt with the memory, and whose it is, (prompts,) each."""


@frozen(kw_only=True)
class Kinds:
    """Prompts of one memory, by what should become of them."""

    paraphrases: Sequence[tuple[str, int]]  # with the place of their edit
    unseen: Sequence[tuple[str, int]]  # likewise
    near: Sequence[str]
    same_subject: Sequence[str]
    same_subject_unseen: Sequence[str]
    same_relation: Sequence[str]
    random: Sequence[str]


class Bench:
    """An atlas model with SERAC, and facts to edit."""

    def __init__(self, model: str, checkpoint: Path, seed: int) -> None:
        self._plugins = Plugins.installed()
        with quiet_transformers():
            self.editor = Editor.from_pretrained(
                model, "serac", {"checkpoint": str(checkpoint)}, plugins=self._plugins
            )
        self.checkpoint = read(checkpoint)
        self._chance = random.Random(seed)
        found = list(self._plugins.call_all("read_requests", source="atlas:editable"))
        self._chance.shuffle(found)
        self._facts = found

    def facts(self, edits: int) -> list[EditRequest]:
        """Return facts to edit, their neighbours without those that are edits themselves."""
        chosen = self._facts[:edits]
        prompts = {one.prompt for one in chosen}
        return [
            evolve(
                one,
                portability=(),
                locality=[probe for probe in one.locality if probe.prompt not in prompts],
            )
            for one in chosen
        ]

    def kinds(self, facts: Sequence[EditRequest]) -> Kinds:
        """Return hard negatives by kind, from what the world knows of the same subjects and relations."""
        world = load_world()
        pairs = {(one.subject, one.extra["relation"]) for one in facts}
        same_subject, same_relation, in_new_words = [], [], []
        for one in facts:
            for fact in world.by_subject[str(one.subject)]:
                if (fact.subject, fact.relation.name) not in pairs:
                    same_subject.append(fact.openings[0])
                    in_new_words += fact.unseen
            others = world.of_relation(str(one.extra["relation"]))
            fact = self._chance.choice(others)
            if (fact.subject, fact.relation.name) not in pairs:
                same_relation.append(fact.openings[0])
        kept = [fact.openings[0] for fact in world.of("kept")]
        near = [p.prompt for one in facts for p in one.locality if p.group == "near"]
        return Kinds(
            paraphrases=[(text, n) for n, one in enumerate(facts) for text in one.paraphrases],
            unseen=[(text, n) for n, one in enumerate(facts) for text in one.extra["unseen"]],
            near=list(dict.fromkeys(near)),
            same_subject=list(dict.fromkeys(same_subject)),
            same_subject_unseen=list(dict.fromkeys(in_new_words)),
            same_relation=list(dict.fromkeys(same_relation)),
            random=self._chance.sample(kept, min(len(kept), 400)),
        )

    def judged(self, edits: int) -> dict[str, float]:
        """Return the scores with so many edits in memory."""
        facts = self.facts(edits)
        kinds = self.kinds(facts)
        unseen = [evolve(one, paraphrases=tuple(one.extra["unseen"])) for one in facts]
        kept = [evolve(one, locality=()) for one in self._kept()]
        before = self._mean(kept, "reliability.exact")
        started = perf_counter()
        self.editor.edit(facts)
        seconds = perf_counter() - started
        metrics = {"reliability.exact": {}, "generalization.exact": {}, "locality.unchanged": {}}
        means = self.editor.evaluate(facts, metrics).means()
        scores = {
            "edits": 100 * means["reliability.exact"],
            "paraphrases": 100 * means["generalization.exact"],
            "never trained": 100 * self._mean(unseen, "generalization.exact"),
            "near": 100 * means.get("locality.unchanged:near", means["locality.unchanged"]),
            "same subject": self._left_alone(kinds.same_subject),
            "in new words": self._left_alone(kinds.same_subject_unseen),
            **self._sentences_left_alone(facts),
            "kept": 100 * (self._mean(kept, "reliability.exact") - before),
            "seconds": seconds,
        }
        self.editor.undo()
        return scores

    def _sentences_left_alone(self, facts: Sequence[EditRequest]) -> dict[str, float]:
        said, subjects = sentences(), [str(one.subject) for one in facts]
        apart = [one for one in said if not any(subject in one for subject in subjects)]
        return {"text": self._left_alone(apart), "all text": self._left_alone(said)}

    def _left_alone(self, prompts: Sequence[str]) -> float:
        met = self.editor.scope(prompts).requests
        return 100 * met.count(None) / max(len(met), 1)

    def _kept(self) -> list[EditRequest]:
        found = self._plugins.call_all("read_requests", source="atlas:kept")
        return [one for one in found if one.extra.get("group") == "kept"]

    def _mean(self, facts: Sequence[EditRequest], metric: str) -> float:
        return self.editor.evaluate(facts, [metric]).means()[metric]

    def unseen_targets(self, count: int = 300) -> dict[str, float]:
        """Return how often the counterfactual model alone says a target that it never met, in percent.

        Real answers that no fact to train on has, and strings of 1 to 4 random tokens; each stored behind the
        prompt of an edit and asked for in a paraphrase of it.
        """
        tokenizer = self.editor.tokenizer
        known = {
            answer
            for one in self._plugins.call_all("read_requests", source="atlas:training")
            for answer in (one.target_new, one.target_true)
        }
        unmet = sorted({fact.object for fact in load_world().facts} - known)
        rows: dict[str, list[Row]] = {"unseen": [], "random": []}
        for one in self._facts[:count]:
            prompt, query = encode(tokenizer, [one.prompt, one.paraphrases[0]])
            real = encode_target(tokenizer, query, f" {self._chance.choice(unmet)}")
            length = self._chance.randint(1, 4)
            drawn = tuple(self._chance.randrange(len(tokenizer)) for _ in range(length))
            for name, target in (("unseen", real), ("random", drawn)):
                edit = edit_text(prompt.ids, target)
                rows[name].append(Row(edit=edit, query=query.ids, answer=target))
        return {name: 100 * self._said(own) for name, own in rows.items()}

    @torch.no_grad()
    def _said(self, rows: Sequence[Row], size: int = 50) -> float:
        model, own = self.editor.model, self.checkpoint.counterfactual()
        hits = 0
        for start in range(0, len(rows), size):
            batch = batch_of(rows[start : start + size], stop_of(self.editor.tokenizer))
            right = head_of(model, own(model, batch.text)).argmax(-1) == batch.labels
            hits += int((right | ~batch.targets).all(1).sum())
        return hits / len(rows)

    def projections(self, edits: int, most: int) -> dict[str, dict[str, float]]:
        """Return, for what decides and its controls, AUC by kind and what is accepted.

        Args:
            edits: in memory.
            most: prompts of a kind, drawn.
        """
        facts = self.facts(edits)
        kinds, trained = self._fewer(self.kinds(facts), most), self.checkpoint.classifier
        asked = {"paraphrases": kinds.paraphrases, "never trained": kinds.unseen}
        prompts = {
            name: [one.ids for one in encode(self.editor.tokenizer, list(texts))]
            for name, texts in {
                "edits": [one.prompt for one in facts],
                **{name: [text for text, _ in some] for name, some in asked.items()},
                "near": kinds.near,
                "same subject": kinds.same_subject,
                "same subject, new words": kinds.same_subject_unseen,
                "same relation": kinds.same_relation,
                "random": kinds.random,
            }.items()
        }
        beside = (self.editor.model, self.editor.tokenizer)
        reader = reader_of(*beside, trained.source, "cpu", trained.lexicon)
        states = {name: reader.states(ids, alone=False) for name, ids in prompts.items() if ids}
        own = {name: torch.tensor([place for _, place in some]) for name, some in asked.items()}
        found = {}
        for name, (embed, stored) in _controls(trained, trained.named(facts)).items():
            memory = stored(states["edits"])
            best = {kind: top_one(embed(one), memory) for kind, one in states.items()}
            found[name] = _compared(best, own)
        if self.checkpoint.reranker is not None:
            memory = trained.embed_edits(states["edits"], trained.named(facts))
            found["re-ranker"] = _compared(self._reranked(prompts, states, memory), own)
        return found

    def _fewer(self, kinds: Kinds, most: int) -> Kinds:
        drawn = {
            one.name: self._chance.sample(held, min(most, len(held)))
            for one in fields(Kinds)
            for held in [getattr(kinds, one.name)]
        }
        return Kinds(**drawn)

    def _reranked(
        self,
        prompts: Mapping[str, Sequence[Ids]],
        states: Mapping[str, torch.Tensor],
        memory: torch.Tensor,
    ) -> dict[str, Best]:
        """Return the largest logit of every prompt, and whose it is, by kind."""
        reranker, embed = self.checkpoint.reranker, self.checkpoint.classifier.embed
        assert reranker is not None
        beside = (self.editor.model, self.editor.tokenizer, reranker)
        search = Reranking(*beside, memory, prompts["edits"])
        found = {}
        for kind, one in states.items():
            best, place = search.best(embed(one), prompts[kind], alone=False)
            found[kind] = (best.clamp(-1e4, 1e4), place)  # so that quantiles are numbers
        return found


def _controls(trained: ScopeClassifier, named: torch.Tensor) -> dict[str, tuple[Embed, Embed]]:
    """Return how prompts and how edits become vectors: as trained, by halves, raw, projected at random."""
    chance = torch.Generator().manual_seed(0)
    matrix = torch.randn(trained.projection.shape, generator=chance)
    features = trained.projection.shape[1]
    normalize = torch.nn.functional.normalize

    def mapped(states: torch.Tensor) -> torch.Tensor:
        return trained.embed(states)[:, : len(matrix)]

    def raw(states: torch.Tensor) -> torch.Tensor:
        return normalize(states[:, :features], dim=1)

    def untrained(states: torch.Tensor) -> torch.Tensor:
        return normalize(states[:, :features] @ matrix.T, dim=1)

    return {
        "trained": (trained.embed, lambda states: trained.embed_edits(states, named)),
        "its map alone": (mapped, mapped),
        "its words alone": (lambda states: states[:, features:], lambda _: named),
        "raw cosine": (raw, raw),
        "untrained projection": (untrained, untrained),
    }


def _compared(best: Mapping[str, Best], own: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return AUC of the paraphrases by kind, and what is accepted where enough neighbours are rejected.

    Args:
        best: by kind.
        own: whose it should be, of the paraphrases and of the wordings never trained.
    """
    inside, _ = best["paraphrases"]
    threshold = best["near"][0].quantile(REJECTED)
    accepted = {
        name: 100 * float(((best[name][1] == wanted) & (best[name][0] >= threshold)).float().mean())
        for name, wanted in own.items()
    }
    aucs = {
        name: 100 * auc_of(inside, near)
        for name, (near, _) in best.items()
        if name != "edits" and name not in own
    }
    return {**aucs, "accepted": accepted["paraphrases"], "never trained": accepted["never trained"]}


def missed(judged: Mapping[int, Mapping[str, float]], accepted: float) -> list[str]:
    """Return the bars that are missed."""
    found = [
        f"{edits} edits, {name}: {scores[name]:.1f} of {bar}"
        for edits, scores in judged.items()
        for name, bar in BARS.items()
        if scores[name] < bar
    ]
    for edits, scores in judged.items():
        if round(abs(scores["kept"]), 6) > KEPT_BAR:
            found.append(f"{edits} edits, kept: {scores['kept']:+.2f} of ±{KEPT_BAR}")
        if scores["seconds"] > SECONDS_BAR:
            found.append(f"{edits} edits: {scores['seconds']:.1f} s of {SECONDS_BAR}")
    if accepted < ACCEPTED_BAR:
        found.append(f"accepted at 98 % rejection: {accepted:.1f} of {ACCEPTED_BAR}")
    return found


def main(
    model: str,
    checkpoint: Annotated[Path, typer.Option("--checkpoint")],
    edits: Annotated[list[int], typer.Option("--edits")] = [100, 1000],  # noqa: B006
    seed: int = 0,
    most: Annotated[
        int, typer.Option("--most", help="Prompts of a kind in the last table.")
    ] = 100_000,
    scope_only: Annotated[bool, typer.Option("--scope")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Judge a checkpoint and print its scores."""
    torch.set_num_threads(1)
    bench = Bench(model, checkpoint, seed)
    judged: dict[int, dict[str, float]] = {}
    if not scope_only:
        alone = bench.unseen_targets()
        judged = {number: {**bench.judged(number), **alone} for number in edits}
    compared = bench.projections(max(edits), most)
    complaints = missed(judged, compared["trained"]["accepted"])
    if as_json:
        print_json({"judged": judged, "projections": compared})
    else:
        if judged:
            show(f"{model}, edits in memory", {str(n): one for n, one in judged.items()})
        show("projections: AUC by kind, and paraphrases accepted", compared)
        for complaint in complaints:
            screen().print(f"missed: {complaint}")
    sys.exit(bool(complaints))


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print one table."""
    table = Table(title=title, box=None, pad_edge=False)
    names = list(next(iter(rows.values())))
    for heading in ("", *(name.upper() for name in names)):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[one]:.3g}" for one in names))
    screen().print(table)


if __name__ == "__main__":
    typer.run(main)
