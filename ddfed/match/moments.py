"""The moments engine: what the rows of a class look like in features, matched between real and synthetic rows.

DM, IDM, CAFE, DataDAM, M3D, DANCE, DSDM, IID, LQM, WMDD, the finite cover and FedDM are choices of its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Draw, Network
from ddfed.errors import ConfigError
from ddfed.gate import Answer, Rows
from ddfed.match.base import Cotangent, Judgement, Objective, Precision, real_side, whole_classes
from ddfed.match.terms import Real, Scene, Term, View, class_means, make_term, mean_distance

#: Rows of a compiled pass; the last one is padded.
_COMPILED_ROWS = 16


def _tap(net: Network, x: Tensor, logits: bool, stages: bool) -> list[Tensor]:
    """Features, before them every other stage and after them the logits, if wanted."""
    found = list(net.stages(x)) if stages else [net.embed(x)]
    return [*found, net.head(found[-1])] if logits else found


@cache
def _compiled_tap() -> Callable[[Network, Tensor, bool, bool], list[Tensor]]:
    # Made on demand: importing the compiler takes a second. Networks of one structure share the code.
    return torch.compile(_tap, dynamic=False)


@dataclass
class _Scene(Scene):
    """One judgement, and the eyes through which terms see its rows."""

    judgement: Judgement
    draw: Draw | None
    precision: Precision
    syn_chunk: int

    def network(self, which: str) -> Network:
        if which == "drawn":
            return self.judgement.net
        if self.judgement.expert is None:
            raise ConfigError(
                "a term looks through the pool's expert, and this pool has none. Take pool 'PI' or 'T', or give the "
                "term network = 'drawn'."
            )
        return self.judgement.expert

    def augmented(self, x: Tensor, row_class: Tensor) -> Tensor:
        augmentation = self.judgement.augmentation
        return x if self.draw is None or augmentation is None else augmentation(x, self.draw, row_class)

    def views(
        self, terms: Iterable[Term], x: Tensor, row_class: Tensor, classes: tuple[int, ...], real: bool
    ) -> dict[str, View]:
        """What each network that ``terms`` look through shows of augmented rows, one pass each."""
        j = self.judgement
        position = torch.full((j.gate.info.num_classes,), -1)
        position[list(classes)] = torch.arange(len(classes))
        seen: dict[str, set[str]] = {}
        for term in terms:
            seen.setdefault(term.which, set()).update(term.sees)
        found = {}
        for which, sees in seen.items():
            stages, logits = self._look(which, x, sees, real)
            found[which] = View(x, classes, position[row_class].to(j.device), stages, logits)
        return found

    def _look(self, which: str, x: Tensor, sees: set[str], real: bool) -> tuple[list[Tensor], Tensor | None]:
        if sees == {"items"}:
            return [], None
        with real_side(self.precision, self.judgement.device) if real else nullcontext():
            tapped = self._tap(self.network(which), x, "logits" in sees, "stages" in sees)
        tapped = [t.to(torch.float32) for t in tapped]
        return (tapped[:-1], tapped[-1]) if "logits" in sees else (tapped, None)

    def _tap(self, net: Network, x: Tensor, logits: bool, stages: bool) -> list[Tensor]:
        if not self.precision.compiled or net.mixes_rows or not len(x):
            return _tap(net, x, logits, stages)
        # Every compiled pass has the same number of rows. Code specialised by the history of a process would
        # make results depend on that history, and so would torch's limit on the number of specialisations.
        padded = F.pad(x, [0] * (2 * x.ndim - 1) + [-len(x) % _COMPILED_ROWS])
        tapped = zip(*(_compiled_tap()(net, part, logits, stages) for part in padded.split(_COMPILED_ROWS)))
        return [torch.cat(parts)[: len(x)] for parts in tapped]

    def parts(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Classes in groups whose synthetic rows fit a chunk, with those rows; a class is never divided."""
        return whole_classes(self.judgement, self.syn_chunk)

    def synthetic(self, term: Term) -> Iterator[View]:
        j = self.judgement
        for classes, rows in self.parts():
            with torch.no_grad():
                x = self.augmented(j.x[rows], j.row_class[rows])
                yield self.views([term], x, j.row_class[rows], classes, real=False)[term.which]


class MomentMatching(Objective):
    """A weighted sum of terms, each a distance of real and synthetic rows of a class under a network.

    All classes go through the network together. This is exact as long as rows do not influence each other,
    so networks that mix rows (BatchNorm) are refused. The published code runs the classes one by one. Terms share
    one pass of the real rows; where all of them are sums of contributions any gate answers.

    Options:
        rows: real rows per class and step; None for all.
        top_up: draw with replacement where a class has fewer.
        terms: name -> weight, or a table of the term's options with ``weight`` among them, and ``from`` where the term
            joins later: the part of the outer steps made before.
        syn_chunk: synthetic rows per forward and backward pass. The loss is a sum over classes, so whole
            classes can pass one after the other; small chunks stay in the cache.
    """

    name = "moments"
    takes_coupled = True
    defaults = {"rows": 256, "top_up": False, "terms": {"mean": 1.0}, "syn_chunk": 128}

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        given = self._given_terms()
        if not given:
            raise ConfigError(f"objective {self.name!r} needs a term, such as terms = {{mean = 1.0}}")
        self.terms = {name: make_term(name, value) for name, value in given.items()}

    def _given_terms(self) -> dict[str, Any]:
        return dict(self.options["terms"])

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        if j.net.mixes_rows and len(j.classes) > 1:
            raise ConfigError(
                "this network has BatchNorm, which mixes rows: matching all classes in one forward would be "
                "another method. Use a network with instance norm ('convnet') or step class by class."
            )
        scene = _Scene(j, j.draw_siamese(), self.precision, self.options["syn_chunk"])
        weighed = [(term, weight * term.factor(j)) for weight, term in self.terms.values() if j.progress >= term.begins]
        active = {term: weight for term, weight in weighed if weight}
        for term in active:
            term.prepare(scene)
        real = self._ask(scene, [term for term in active if term.asks])
        for term, said in real.items():
            term.receive(said)
        grad, loss = torch.zeros_like(j.x), 0.0
        targets_grad = torch.zeros_like(j.y) if j.y.requires_grad else None
        for classes, rows in scene.parts():
            piece = self._judge(scene, active, classes, rows, real)
            grad += piece.x
            loss += piece.loss
            if targets_grad is not None and piece.y is not None:
                targets_grad += piece.y
        return Cotangent(grad, targets_grad, loss)

    def state(self) -> dict[str, Any]:
        held = {name: term.state() for name, (_, term) in self.terms.items()}
        return {name: state for name, state in held.items() if state}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, held in state.items():
            self.terms[name][1].load(held)

    def _ask(self, scene: _Scene, terms: list[Term]) -> dict[Term, Real]:
        """What real data says to each term: one query, and one pass of the rows through each network."""
        if not terms:
            return {}
        j, widths = scene.judgement, [0] * len(terms)

        def contribution(batch: Batch) -> Tensor:
            x = scene.augmented(batch.inputs.to(j.device), batch.classes)
            views = scene.views(terms, x, batch.classes, j.classes, real=True)
            given = [term.contribution(views[term.which]) for term in terms]
            widths[:] = [part.shape[1] for part in given]
            return torch.cat(given, 1)

        query = j.ask(self._question(terms), self.options["rows"], top_up=self.options["top_up"])
        if all(term.asks == "sums" for term in terms):
            answer = j.gate.sums(query, contribution, j.real_stream())
            counts = answer.counts.to(j.device)
            return {term: Answer(sums, counts) for term, sums in zip(terms, answer.sums.to(j.device).split(widths, 1))}
        found = j.gate.each(query, contribution, j.real_stream())
        found = Rows(found.values.to(j.device), found.groups, found.rows)
        return {
            term: _summed(values, found.groups, len(j.classes))
            if term.asks == "sums"
            else Rows(values, found.groups, found.rows).split(len(j.classes))
            for term, values in zip(terms, found.values.split(widths, 1))
        }

    def _question(self, terms: list[Term]) -> str:
        """For the ledger."""
        return "rows for " + ", ".join(term.name for term in terms)

    def _judge(
        self,
        scene: _Scene,
        active: dict[Term, float],
        classes: tuple[int, ...],
        rows: Tensor,
        real: dict[Term, Real],
    ) -> Cotangent:
        j = scene.judgement
        x = scene.augmented(j.x[rows], j.row_class[rows])
        seen = scene.views(active, x, j.row_class[rows], classes, real=False)
        loss = torch.zeros((), device=j.device)
        for term, weight in active.items():
            view = seen[term.which]
            loss = loss + weight * term.loss(view.labelled(j.y[rows]), _of(real.get(term), j.classes, classes))
        learned = j.y if j.y.requires_grad else None
        # What follows keeps autograd defined where no term looks at the rows, or at the labels.
        if not loss.requires_grad:
            loss = loss + 0.0 * j.x.sum()
        if learned is not None:
            loss = loss + 0.0 * learned.sum()
        return Cotangent.of(loss, j.x, learned)


class MeanMatching(MomentMatching):
    """The moments engine with class-mean features alone, and what DM, IDM and FedDM add.

    Options:
        rows, top_up, syn_chunk: as of `MomentMatching`.
        logits: match mean logits as well, with equal weight (FedDM).
        ce_weight: add cross-entropy of the synthetic rows under the network, times this, times the
            network's running training accuracy in percent (IDM).
    """

    name = "mean"
    defaults = {"rows": 256, "top_up": False, "logits": False, "ce_weight": 0.0, "syn_chunk": 128}

    def _given_terms(self) -> dict[str, Any]:
        of = ["features", "logits"] if self.options["logits"] else ["features"]
        return {"mean": {"of": of}, "class": {"weight": self.options["ce_weight"], "skilled": True}}

    def _question(self, terms: list[Term]) -> str:
        return "class-mean features"


def _summed(values: Tensor, groups: Tensor, count: int) -> Answer:
    """The answer that `Gate.sums` would have given."""
    sums = values.new_zeros(count, values.shape[1]).index_add(0, groups.to(values.device), values)
    return Answer(sums, torch.bincount(groups, minlength=count).to(values))


def _of(real: Real | None, judged: tuple[int, ...], wanted: tuple[int, ...]) -> Real | None:
    """What real data says of the classes ``wanted``, from what it says of those ``judged``."""
    places = [judged.index(c) for c in wanted]
    if isinstance(real, Answer):
        return Answer(real.sums[places], real.counts[places])
    return None if real is None else tuple(real[place] for place in places)


__all__ = ["MeanMatching", "MomentMatching", "class_means", "mean_distance"]
