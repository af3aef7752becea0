"""What this package offers. Light: imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddfed.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from ddfed.registry import Registry

_NEEDS: dict[str, Any] = {"extra": "federated", "modules": ("flwr",)}


@hookimpl
def ddfed_register(registry: Registry) -> None:
    sets, averaging = "ddfed_federated.methods.sets", "ddfed_federated.methods.averaging"
    for name, target, summary, citation, family in (
        ("feddm", f"{sets}:FEDDM", "clients distil around the global weights, the server trains on the union",
         "Xiong et al., CVPR 2023", "sets"),
        ("random-once", f"{sets}:RANDOM_ONCE", "control: real items of the same budget, chosen once",
         "baseline", "sets"),
        ("random-fresh", f"{sets}:RANDOM_FRESH", "control: real items of the same budget, new in every round",
         "baseline", "sets"),
        ("fedavg", f"{averaging}:FEDAVG", "average of locally trained weights",
         "McMahan et al., AISTATS 2017", "averaging"),
        ("fedprox", f"{averaging}:FEDPROX", "FedAvg with a pull towards the global weights",
         "Li et al., MLSys 2020", "averaging"),
        ("fedavgm", f"{averaging}:FEDAVGM", "FedAvg with momentum at the server",
         "Hsu et al., 2019", "averaging"),
        ("fedadam", f"{averaging}:FEDADAM", "Adam at the server on the averaged update",
         "Reddi et al., ICLR 2021", "averaging"),
        ("fednova", f"{averaging}:FEDNOVA", "clients' mean gradients are averaged, however many steps they made",
         "Wang et al., NeurIPS 2020", "averaging"),
        ("scaffold", f"{averaging}:SCAFFOLD", "local steps corrected for the client's drift by control variates",
         "Karimireddy et al., ICML 2020", "averaging"),
        ("moon", f"{averaging}:MOON", "features stay near the global model's and leave the client's last ones",
         "Li et al., CVPR 2021", "averaging"),
        ("dense", "ddfed_federated.methods.datafree:DENSE",
         "networks sent once; a student learns from their ensemble on made-up rows",
         "Zhang et al., NeurIPS 2022", "data-free"),
    ):  # fmt: skip
        registry.add("federated", name, target, summary=summary, citation=citation, family=family, **_NEEDS)
    for name, summary in (
        ("iid", "one shuffled order, cut in near-equal parts"),
        ("dirichlet", "each class cut by Dirichlet proportions (capped form)"),
        ("pathological", "a fixed number of classes per client"),
        ("shards", "label-sorted shards, a few per client"),
        ("quantity", "client sizes from a Dirichlet, labels alike"),
    ):
        registry.add("partitioner", name, f"ddfed_federated.partition:{name}", summary=summary)
    registry.add("backend", "inprocess", "ddfed_federated.backends:inprocess",
                 summary="in this process or a small pool of processes", **_NEEDS)  # fmt: skip
    registry.add("backend", "ray", "ddfed_federated.backends:ray",
                 summary="Flower's simulation on Ray", extra="federated", modules=("flwr", "ray"))  # fmt: skip


@hookimpl
def ddfed_commands(cli: click.Group) -> None:
    from ddfed.cli import LazyCommand

    cli.add_command(
        LazyCommand("simulate", "ddfed_federated.cli:simulate", "Run a federation: clients distil, a server learns.")
    )
