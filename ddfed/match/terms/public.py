"""A term that looks at what is known beside the rows behind the gate."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.match.terms.base import Real, Scene, Term, View


class PublicLogits(Term):
    """public: distance of class-mean logits to given ones (FedAF's collaborative condensation).

    With u_c the mean logits of the synthetic rows of class c and v_c the given ones, a sliced Wasserstein distance of
    order p over random unit directions. For one mean vector a class there is nothing to sort, and the sum over classes
    of mean_l |<theta_l, u_c - v_c>|^p is what is left (``reading = "class"``); with ``reading = "set"`` the classes'
    vectors are taken as two sets of points and sorted along each direction. Classes of which nothing is known are left
    out.

    The table is ``Judgement.public["class logits"]``, (classes, 1 + classes): how many rows it stands for, then the
    mean. Real rows are not asked for.

    Source: Wang et al., FedAF, CVPR 2024, section 3.3.

    Options:
        directions: random directions in each step.
        power: p.
        reading: ``class`` or ``set``.
    """

    name = "public"
    defaults = {"directions": 64, "power": 2.0, "reading": "class"}
    asks: Literal["sums", "rows", ""] = ""
    sees = ("logits",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reading = self._choice("reading", ("class", "set"))
        if self.options["directions"] < 1 or self.options["power"] < 1:
            raise ConfigError(
                f"term 'public' needs at least 1 direction and a power of 1 or more, got {dict(self.options)}"
            )

    def prepare(self, scene: Scene) -> None:
        j = scene.judgement
        classes = j.gate.info.num_classes
        table = j.public.get("class logits")
        if table is None or tuple(table.shape) != (classes, 1 + classes):
            raise ConfigError(
                f"term 'public' needs the table 'class logits' of shape {(classes, 1 + classes)} among what is public, "
                f"got {None if table is None else tuple(table.shape)}. Federated methods such as 'fedaf' send it."
            )
        self._judged = j.classes
        self._known, self._means = table[:, 0] > 0, table[:, 1:].to(j.device)
        generator = j.streams.torch("directions", j.step)
        directions = torch.randn(int(self.options["directions"]), classes, generator=generator)
        self._directions = F.normalize(directions, dim=1).to(j.device)

    def loss(self, syn: View, real: Real | None) -> Tensor:
        assert syn.logits is not None
        known = [i for i, c in enumerate(syn.classes) if bool(self._known[c])]
        if not known:
            return syn.logits.new_zeros(())
        mine = syn.means(syn.logits)[known] @ self._directions.T
        theirs = self._means[[syn.classes[i] for i in known]] @ self._directions.T
        if self._reading == "set":
            if syn.classes != self._judged:
                raise ConfigError(
                    "term 'public' with reading = 'set' looks at all classes at once, and they pass in parts: raise "
                    "distill.objective_options.syn_chunk to all synthetic rows, or take reading = 'class'"
                )
            mine, theirs = mine.sort(0).values, theirs.sort(0).values
        return (mine - theirs).abs().pow(self.options["power"]).mean(1).sum()
