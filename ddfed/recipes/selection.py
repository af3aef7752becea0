"""Selection of real items: a recipe with no outer steps, whose result is its initialisation."""

from ddfed.recipes.base import Published, Recipe

_DC = "figures: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021"


def _selection(name: str, title: str, citation: str, published: tuple[Published, ...] = ()) -> Recipe:
    return Recipe(
        name=name,
        family="selection",
        title=title,
        citation=citation,
        defaults={"steps": 0, "init": name, "store": "pixels", "labels": "hard", "protocol": "E-dsa"},
        published=published,
    )


RANDOM = _selection(
    "random",
    "real items drawn at random, the same number of each class",
    _DC,
    (
        Published("mnist", 1, 64.9, None, "E-dc", _DC),
        Published("mnist", 10, 95.1, None, "E-dc", _DC),
        Published("cifar10", 1, 14.4, 2.0, "E-dc", _DC),
        Published("cifar10", 10, 26.0, 1.2, "E-dc", _DC),
        Published("cifar10", 50, 43.4, 1.0, "E-dc", _DC),
        Published("cifar10", 10, 31.0, None, "E-dsa", "Zhao and Bilen, DSA, ICML 2021"),
    ),
)
HERDING = _selection(
    "herding",
    "real items whose running mean follows the class mean of a trained network's features",
    "Welling, Herding Dynamical Weights to Learn, ICML 2009; " + _DC,
    (Published("mnist", 10, 93.7, None, "E-dc", _DC), Published("cifar10", 10, 31.6, 0.7, "E-dc", _DC)),
)
KCENTER = _selection(
    "kcenter",
    "real items that leave no other item far away in a trained network's features",
    "Sener and Savarese, Active Learning for CNNs: A Core-Set Approach, ICLR 2018; " + _DC,
    (Published("cifar10", 10, 14.7, 0.9, "E-dc", _DC),),
)
KMEANS = _selection(
    "kmeans",
    "the real item nearest each k-means centre of a class in a trained network's features",
    "Cui et al., DC-BENCH, NeurIPS 2022",
)
