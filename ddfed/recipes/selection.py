"""Selection of real items: recipes with no outer steps, whose result is their initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddfed.recipes.base import Preset, Published, Recipe, laptop

_DC = "Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021"
_DSA = "Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021"
_HERDING = "Welling, Herding Dynamical Weights to Learn, ICML 2009"
_KCENTER = "Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018"
_DC_BENCH = "Cui et al., DC-BENCH: Dataset Condensation Benchmark, NeurIPS 2022"
_FORGETTING = "Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019"
_DATA_DIET = "Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021"
_DQ = "Zhou et al., Dataset Quantization, ICCV 2023"

_FEATURES = (
    "features come from one network of the run's own kind after 300 steps; the published figures used other "
    "networks, which moves them by one or two points",
)
_TRAINING = "networks are trained with SGD at a constant step size of 0.01 and batch 256, as our pools are"

#: Budgets at which difficult items do harm (Sorscher et al., Beyond Neural Scaling Laws, NeurIPS 2022).
_SMALL = (1, 2, 5, 10, 20, 50)


def _selection(
    name: str,
    title: str,
    citation: str,
    *,
    options: Mapping[str, Any] | None = None,
    presets: tuple[Preset, ...] = (),
    published: tuple[Published, ...] = (),
    departures: tuple[str, ...] = (),
    expense: str = "low",
    **page: Any,
) -> Recipe:
    defaults: dict[str, Any] = {"steps": 0, "init": name, "store": "pixels", "labels": "hard", "protocol": "E-dsa"}
    return Recipe(
        name=name,
        family="selection",
        title=title,
        citation=citation,
        defaults={**defaults, "init_options": dict(options)} if options else defaults,
        needs=("raw records",),
        expense=expense,
        presets=presets,
        published=published,
        departures=departures,
        **page,
    )


def _figures(dataset: str, *accuracies: float, spread: tuple[float, ...] = ()) -> tuple[Published, ...]:
    """Figures at 1, 10 and 50 items per class under E-dc, as far as given."""
    spreads = (*spread, *[None] * (len(accuracies) - len(spread)))
    return tuple(
        Published(dataset, ipc, accuracy, deviation, "E-dc", _DC)
        for ipc, accuracy, deviation in zip((1, 10, 50), accuracies, spreads)
    )


#: On digits the easiest ten of a class are alike: its middle is three points better over three seeds.
_DIGITS_MIDDLE = Preset(
    {"init_options": {"direction": "window", "skip": 0.5}}, ("digits",), (10,), source="ours, measured over three seeds"
)


def _easy(source: str = "Sorscher et al., Beyond Neural Scaling Laws, NeurIPS 2022: keep easy items of few") -> Preset:
    return Preset({"init_options": {"direction": "easy"}}, ipc=_SMALL, source=source)


RANDOM = _selection(
    "random",
    "real items drawn at random, the same number of each class",
    f"the baseline of the field; figures: {_DC}",
    idea=(
        "Keep real items, drawn at random without replacement, the same number of each class. It costs nothing and "
        "says how much of a distilled set's accuracy is merely its size, so it stands beside every result."
    ),
    equation=r"$S_c \sim \mathrm{Uniform}\{A \subset T_c : |A| = \mathrm{ipc}\}$",
    cost="none: no network is trained",
    fails=(
        "With few items per class luck decides: the spread over draws is several points. The items are real people's "
        "records, so the set protects nobody."
    ),
    published=(
        *_figures("mnist", 64.9, 95.1, 97.9),
        *_figures("fashion", 51.4, 73.8, 82.5),
        *_figures("cifar10", 14.4, 26.0, 43.4, spread=(2.0, 1.2, 1.0)),
        *_figures("cifar100", 4.2, 14.6, 30.0),
        Published("cifar10", 1, 15.4, None, "E-dsa", _DSA),
        Published("cifar10", 10, 31.0, None, "E-dsa", _DSA),
        Published("cifar10", 50, 50.6, None, "E-dsa", _DSA),
        Published("cifar100", 1, 4.2, None, "E-dsa", _DSA),
        Published("cifar100", 10, 14.6, None, "E-dsa", _DSA),
        Published("cifar100", 50, 33.4, None, "E-dsa", _DSA),
    ),
)
HERDING = _selection(
    "herding",
    "real items whose running mean follows the class mean of a trained network's features",
    _HERDING,
    idea=(
        "Embed a class with a trained network and pick greedily, each time the item that brings the mean of the chosen "
        "nearest to the class mean. The first pick is the most average item."
    ),
    equation=r"$i_{k+1} = \arg\min_{i \notin S} \| (k+1)\,\mu_c - \sum_{j \in S} f_j - f_i \|$",
    cost="one network of 300 training steps and one forward pass over the data, then ipc distances per real item",
    fails=(
        "Average items are alike: from about 50 items per class it falls behind random items (CIFAR-10: 40.4 against "
        "43.4). It sees the mean alone, not the spread of a class."
    ),
    published=(
        *_figures("mnist", 89.2, 93.7, 94.8),
        *_figures("fashion", 67.0, 71.1, 71.9),
        *_figures("cifar10", 21.5, 31.6, 40.4),
        *_figures("cifar100", 8.4, 17.3, 33.7),
    ),
    departures=_FEATURES,
)
KCENTER = _selection(
    "kcenter",
    "real items that leave no other item far away in a trained network's features",
    _KCENTER,
    idea=(
        "Cover a class: start at its middle, then add again and again the item that is farthest from all chosen ones. "
        "The largest distance to a chosen item is at most twice the best possible."
    ),
    equation=r"$i_{k+1} = \arg\max_{i} \min_{j \in S} \| f_i - f_j \|$",
    cost="one network of 300 training steps and one forward pass over the data, then ipc distances per real item",
    fails=(
        "The farthest items are outliers and wrong labels. After the first, central pick it is far below random items "
        "(CIFAR-10, 10 per class: 14.7 against 26.0). Take kmeans or herding for small sets."
    ),
    published=(
        *_figures("cifar10", 21.5, 14.7, 27.0),
        *_figures("cifar100", 8.3, 7.1, 30.5),
    ),
    departures=_FEATURES,
)
KMEANS = _selection(
    "kmeans",
    "the real item nearest each k-means centre of a class in a trained network's features",
    _DC_BENCH,
    idea=(
        "Cluster each class in as many clusters as there are items to keep, and keep the real item nearest each "
        "centre. It is typical and spread out at once, and the strongest cheap baseline (DC-BENCH's kmeans-emb)."
    ),
    equation=r"$i_k = \arg\min_i \| f_i - m_k \|$ with centres $m$ of $\min_m \sum_i \min_k \| f_i - m_k \|^2$",
    cost="one network of 300 training steps and one forward pass over the data, then k-means within each class",
    fails="With hundreds of items per class the gain over random items vanishes while the clustering grows.",
    departures=(*_FEATURES, "k-means++ start from the run's seed, at most 50 rounds; no restarts"),
)
FORGETTING = _selection(
    "forgetting",
    "real items by how often a network forgets them while it is trained",
    _FORGETTING,
    options={"epochs": 200, "direction": "hard"},
    presets=(_easy(), laptop(init_options={"epochs": 20})),
    idea=(
        "Watch a network while it is trained and count for each real item how often it goes from right to wrong; an "
        "item that is never right counts as forgotten for ever. Much forgotten items carry large sets; small sets do "
        "better with items that are learned once and stay learned."
    ),
    equation=r"$F_i = \sum_t [\mathrm{right}_i^{t} \wedge \neg \mathrm{right}_i^{t+1}]$, infinite if never right",
    cost="one network trained 200 passes over the data, with a forward pass over all of it after each",
    fails=(
        "Taking the most forgotten items of small budgets is worse than random items (CIFAR-10, 50 per class: 23.3 "
        "against 43.4), so budgets of 1 to 50 take the easiest. Where nearly all items are never forgotten, as on "
        "digits, the easiest are a random choice among these."
    ),
    published=_figures("cifar10", 13.5, 23.3, 23.3),
    departures=(
        "every item is looked at after each pass, not when a batch holds it: the gate draws the batches and does not "
        "tell which rows they hold",
        _TRAINING,
        "equal counts are ordered at random",
        "the published figures took the most forgotten items; for these set init_options.direction = hard",
    ),
    expense="medium",
)
EL2N = _selection(
    "el2n",
    "real items by the length of the error vector of networks early in training",
    _DATA_DIET,
    options={"networks": 10, "epochs": 20, "direction": "hard"},
    presets=(_easy(), laptop(init_options={"networks": 3, "epochs": 5}), _DIGITS_MIDDLE),
    idea=(
        "Train a few networks for a few passes and score each real item by how far their probabilities are from its "
        "label. Large scores are hard items, to keep when much is kept; small scores are typical ones, for small sets. "
        "A window passes over a share of the hardest and takes what follows."
    ),
    equation=r"$s_i = \frac{1}{R} \sum_r \| \mathrm{softmax}(z_r(x_i)) - y_i \|_2$",
    cost="ten networks of 20 passes over the data, and one forward pass each",
    fails=(
        "Hard items of small budgets are outliers and wrong labels, far worse than random ones, so budgets of 1 to "
        "50 take the easiest. These are alike, so that random items win again from about ten per class: on digits 91 "
        "against 87, and 90 for the middle of a class."
    ),
    departures=(_TRAINING, "taken within each class, so that classes stay balanced; the paper prunes over all classes"),
    expense="medium",
)
GRAND = _selection(
    "grand",
    "real items by the norm of their gradient in networks early in training",
    _DATA_DIET,
    options={"networks": 10, "epochs": 20, "gradient": "head", "direction": "hard"},
    presets=(_easy(), laptop(init_options={"networks": 3, "epochs": 5}), _DIGITS_MIDDLE),
    idea=(
        "Score each real item by how much a training step on it would change the network: the norm of the gradient of "
        "its loss, averaged over networks. EL2N is this score without the length of the features."
    ),
    equation=r"$s_i = \frac{1}{R} \sum_r \| \nabla_\theta \ell_r(x_i, y_i) \|_2$; for the last linear map exactly "
    r"$\| p - y \| \sqrt{\| f \|^2 + 1}$",
    cost=(
        "ten networks of 20 passes over the data, and one forward pass each; with init_options.gradient = full a "
        "gradient of all weights for each item"
    ),
    fails=(
        "As EL2N. At initialisation (init_options.epochs = 0) the score says little: Kirsch, Does GraNd-at-init Really "
        "Work?, 2023, found it no better than random."
    ),
    departures=(
        "the gradient of the last linear map stands for that of all weights, in closed form; gradient = full is the "
        "paper's score",
        "after 20 passes rather than at initialisation, where the paper's finding did not come out again",
        _TRAINING,
        "taken within each class, so that classes stay balanced; the paper prunes over all classes",
    ),
    expense="medium",
)
DQ = _selection(
    "dq",
    "real items drawn evenly from graph-cut bins, from representative to diverse ones",
    _DQ,
    options={"bins": 10},
    idea=(
        "Cut a class in ten bins, one after the other: each takes greedily the items near to what is left and far from "
        "what it has. Early bins are representative, late ones diverse; drawing the same share of every bin gives a "
        "set that is both."
    ),
    equation=r"$x^* = \arg\max_x \sum_{p \in B} \| f_p - f_x \|^2 - \sum_{p \in \mathrm{free}} \| f_p - f_x \|^2$, "
    r"then ipc / 10 of every bin at random",
    cost=(
        "one network of 300 training steps, one forward pass over the data, and for each real item a product of the "
        "features of its class with a vector"
    ),
    fails=(
        "Made for keeping a tenth of the data or more. With ten items per class it is one random item of each bin, "
        "close to random; with fewer, random items of the first, representative bins."
    ),
    departures=(
        *_FEATURES,
        "the paper's second half, dropping the least important patches and having a pretrained masked autoencoder "
        "fill them in, needs pretrained weights and is left out: items are stored whole",
        "distances of features as in the paper's equation; the authors' code takes cosines of last-layer gradients",
        "a budget that the bins do not divide gives the rest to the first bins",
    ),
)
