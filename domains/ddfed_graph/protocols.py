"""Evaluation recipes for graphs.

E-gcn: Jin et al., GCond, ICLR 2022, as its code trains: Adam .01, a tenth of it after half of 600 full-batch epochs,
weight decay 5e-4, and the epoch that is best on the validation nodes of the original graph, tried every ten. The
network brings the dropout of .5 (``gcn``).
"""

from __future__ import annotations

from dataclasses import replace

from ddfed.evaluate import Protocol, RidgeProtocol

E_GCN = Protocol(
    name="E-gcn",
    epochs=600,
    lr=0.01,
    batch=0,
    drops=((0.5, 0.1),),
    rebuilt=False,
    optimizer="adam",
    choose=10,
)
#: The same for large graphs, where the field decays no weights.
E_GCN_LARGE = replace(E_GCN, name="E-gcn-large", weight_decay=0.0)
#: GC-SNTK's own predictor: regression in its kernel, ridge 1 of the mean of the diagonal.
E_SNTK = RidgeProtocol("E-sntk", "sntk", ridge=1.0)
