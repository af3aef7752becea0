"""The evaluation recipe for sets of graphs.

E-graphs: Jin et al., DosCond, KDD 2022: Adam .001, 500 epochs, 100 for DD, no weight decay. The epoch that is best on
the validation graphs counts, tried every ten; test graphs choose nothing. The network is its own ``gcn``: 3 layers of
128 units, nothing dropped.
"""

from __future__ import annotations

from ddfed.evaluate import Protocol

E_GRAPHS = Protocol(
    name="E-graphs",
    epochs=500,
    lr=1e-3,
    weight_decay=0.0,
    batch=128,
    augment_for={"dd": ("none", 100)},
    drops=(),
    rebuilt=False,
    optimizer="adam",
    choose=10,
)
