"""The core's own components, offered by the same hook as everybody's. Light: imports nothing heavy."""

from ddfed.hookspecs import hookimpl
from ddfed.registry import Registry


@hookimpl
def ddfed_register(registry: Registry) -> None:
    moments, selection = "ddfed.recipes.moments", "ddfed.recipes.selection"
    registry.add(
        "recipe",
        "dm",
        f"{moments}:DM",
        summary="match class-mean features under fresh random networks",
        family="moments",
        citation="Zhao and Bilen, WACV 2023",
        requires=("first order",),
        cost="low",
    )
    registry.add(
        "recipe",
        "idm",
        f"{moments}:IDM",
        summary="DM with four cells per image, trained networks, class-aware term",
        family="moments",
        citation="Zhao et al., CVPR 2023",
        requires=("first order", "cell axes"),
        cost="medium",
    )
    for name, summary, citation in (
        ("random", "real items drawn at random", "baseline"),
        ("herding", "real items that follow the class mean in feature space", "Welling, ICML 2009"),
        ("kcenter", "real items that cover the class in feature space", "Sener and Savarese, ICLR 2018"),
        ("kmeans", "real items nearest the k-means centres of a class", "Cui et al., NeurIPS 2022"),
    ):
        registry.add(
            "recipe",
            name,
            f"{selection}:{name.upper()}",
            summary=summary,
            family="selection",
            citation=citation,
            requires=("raw records",),
            cost="none" if name == "random" else "low",
        )
        registry.add("selector", name, f"ddfed.select:{name.upper()}", summary=summary)
    registry.add("objective", "mean", "ddfed.match:MeanMatching", summary="class-mean features (and logits)")
    registry.add("decoder", "pixels", "ddfed.store:Pixels", summary="each item is one row")
    registry.add(
        "decoder", "multi-formation", "ddfed.store:MultiFormation", summary="cells of a canvas, upsampled (IDC, IDM)"
    )
    registry.add("decoder", "mirrored", "ddfed.store:Mirrored", summary="each item and its mirror image (FYI)")
    registry.add("labels", "hard", "ddfed.store:HardLabels", summary="one class per item")
    registry.add("labels", "logits", "ddfed.store:LogitLabels", summary="learned logits")
    registry.add("pool", "R", "ddfed.pool:RandomPool", summary="a fresh random network at every step")
    registry.add("pool", "RS", "ddfed.pool:SynTrainedPool", summary="random, then trained on the synthetic set")
    registry.add("pool", "RT", "ddfed.pool:RealTrainedPool", summary="random, then trained on real data")
    registry.add("pool", "Q", "ddfed.pool:QueuePool", summary="a queue of networks in training on real data")
    registry.add("pool", "exact", "ddfed.pool:ExactPool", summary="given weights")
    registry.add("pool", "ball", "ddfed.pool:BallPool", summary="weights at a given distance from given ones")
    for name, constant in (("E-dc", "E_DC"), ("E-dsa", "E_DSA"), ("E-idc", "E_IDC")):
        registry.add("protocol", name, f"ddfed.evaluate.protocols:{constant}")
