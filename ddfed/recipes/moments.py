"""Distribution matching: the rows of a class look alike to a network, real and synthetic."""

from __future__ import annotations

from typing import Any

from ddfed.recipes.base import Preset, Published, Recipe, laptop

_DM = "Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023"
_CAFE = "Wang et al., CAFE: Learning to Condense Dataset by Aligning Features, CVPR 2022"
_IDM = "Zhao, Li, Qin and Yu, Improved Distribution Matching for Dataset Condensation, CVPR 2023"
_DATADAM = "Sajedi et al., DataDAM: Efficient Dataset Distillation with Attention Matching, ICCV 2023"
_M3D = "Zhang et al., M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy, AAAI 2024"
_DANCE = "Zhang et al., DANCE: Dual-View Distribution Alignment for Dataset Condensation, IJCAI 2024"
_DSDM = "Li et al., Diversified Semantic Distribution Matching for Dataset Distillation, ACM MM 2024"
_IID = "Deng et al., Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation, CVPR 2024"
_LQM = "Wei et al., Dataset Distillation via Latent Quantile Matching, CVPR Workshops 2024"
_COVER = "Chen and Selvan, Minimal Finite Covering for Dataset Condensation, 2024"
_WMDD = "Liu et al., Dataset Distillation via the Wasserstein Metric, ICCV 2025"

_TOGETHER = "all classes pass the network together, which is exact without BatchNorm and faster"
_LAST = "the last set is released, not the best by test accuracy"
_BANK_LR = "networks of the bank are trained at a constant step size, without CutMix"
_MODEL_SPACE = (
    "stored values are standardised, the paper's lie in [0, 1]: its step size is divided by the squared deviation "
    "(0.2^2 for CIFAR), which makes the same step"
)
_CELLS = (
    " On tiny items cells are too coarse: on digits (8x8, cells of 4x4) it is a few points better than random items at "
    "one per class, and stays below them at ten after the few steps of its preset."
)
_MEAN = r"\lVert \mu_c(T) - \mu_c(S) \rVert^2"


def _one_item(**values: Any) -> Preset:
    """What one item per class needs on digits, on top of the preset for laptops."""
    return Preset(values, ("digits",), (1,), source="ours, for minutes on a laptop")


def _figures(
    source: str, protocol: str, spread: tuple[float, ...] = (), **figures: tuple[float | None, ...]
) -> tuple[Published, ...]:
    """Figures at 1, 10 and 50 items per class, by data set; ``spread`` is that of the first."""
    found = []
    for number, (dataset, accuracies) in enumerate(figures.items()):
        spreads = spread if number == 0 and spread else (None,) * len(accuracies)
        for ipc, accuracy, deviation in zip((1, 10, 50), accuracies, spreads):
            if accuracy is not None:
                found.append(Published(dataset, ipc, accuracy, deviation, protocol, source))
    return tuple(found)


DM = Recipe(
    name="dm",
    family="moments",
    title="match class-mean features under fresh random networks",
    citation=_DM,
    defaults={
        "objective": "mean",
        "objective_options": {"rows": 256},
        "pool": "R",
        "store": "pixels",
        "labels": "hard",
        "augment": "dsa",
        "init": "random",
        "scope": "joint",
        "optimizer": "sgd",
        "lr": 1.0,
        "momentum": 0.5,
        "steps": 20_000,
        "protocol": "E-dsa",
    },
    idea=(
        "A random network is a random projection. If the mean features of a class agree under very many of them, real "
        "and synthetic rows agree in what networks see. Nothing is trained, so a step is one pass of the rows."
    ),
    equation=rf"$\min_S \mathbb{{E}}_\theta \sum_c {_MEAN}$ with $\mu_c$ the mean of $f_\theta$ over rows of class $c$",
    cost=(
        "Per step one forward pass of 256 real rows per class, and forward and backward of the set. Nothing beforehand."
    ),
    fails=(
        "Means alone say nothing about spread, so more items per class add little variety; take 'm3d' or 'dsdm'. On "
        "deep networks or ones with group norm lr = 1 diverges: use 0.1 or 0.01."
    ),
    needs=("first order",),
    presets=(
        Preset({"lr": 10.0}, ("cifar10",), (100, 200, 500, 1000), source="authors' settings"),
        laptop(steps=1000, lr=1.0, objective_options={"rows": 64}),
    ),
    published=(
        *_figures(_DM, "E-dsa", (0.8, 0.6, 0.4), cifar10=(26.0, 48.9, 63.0), mnist=(89.7, 97.5, 98.6)),
        Published("fashion", 1, 70.7, None, "E-dsa", _DM),
        Published("fashion", 10, 83.5, None, "E-dsa", _DM),
        Published("fashion", 50, 88.1, None, "E-dsa", _DM),
        Published("cifar100", 1, 11.4, 0.3, "E-dsa", _DM),
        Published("cifar100", 10, 29.7, 0.3, "E-dsa", _DM),
        Published("cifar100", 50, 43.6, 0.4, "E-dsa", _DM),
    ),
    departures=(_TOGETHER,),
)

IDM = Recipe(
    name="idm",
    family="moments",
    title="DM with four cells per image, a queue of trained networks and a class-aware term",
    citation=_IDM,
    defaults={
        "objective": "mean",
        "objective_options": {"rows": 256, "ce_weight": 0.5},
        "pool": "Q",
        "store": "multi-formation",
        "store_options": {"factor": 2},
        "labels": "hard",
        "augment": "dsa",
        "init": "random",
        "scope": "sequential",
        "optimizer": "sgd",
        "lr": 0.2,
        "momentum": 0.5,
        "steps": 20_000,
        "protocol": "E-dsa",
    },
    idea=(
        "Three changes to DM. Every item is cut in four cells, so the same bytes hold four rows. Networks come from a "
        "queue in which each is trained a little on real data at a time, so all ages are met. Synthetic rows must also "
        "be recognised by the network, the more the better it is."
    ),
    equation=rf"$\min_S \sum_c {_MEAN} + \lambda a_j \, \mathrm{{CE}}(h_j(S_c), c)$ with $a_j$ the accuracy of network "
    r"$j$ in percent",
    cost="That of DM with four times the synthetic rows, one optimiser step per class, and 20 training steps per step.",
    fails=(
        "The accuracy is in percent, so ce_weight 0.5 is a factor of up to 50: with a queue that learns fast the class "
        "term drowns the means; lower ce_weight. With many classes networks need more steps per visit." + _CELLS
    ),
    needs=("first order", "cell axes"),
    expense="medium",
    presets=(
        Preset(
            {"objective_options": {"rows": 5000, "ce_weight": 0.5}, "pool_options": {"grow_every": 5}},
            ("cifar10",),
            (1,),
            source="authors' flags",
        ),
        Preset({"objective_options": {"rows": 256, "ce_weight": 0.1}}, ("cifar10",), (50,), source="authors' flags"),
        Preset(
            {"objective_options": {"rows": 256, "ce_weight": 0.1}, "pool_options": {"steps": 50}},
            ("cifar100",),
            (10,),
            source="authors' flags",
        ),
        laptop(steps=150, pool_options={"steps": 2}, objective_options={"rows": 64, "ce_weight": 0.5}),
    ),
    published=(
        *_figures(_IDM, "E-dsa", (0.7, 0.1, 0.1), cifar10=(45.6, 58.6, 67.5)),
        Published("cifar100", 1, 20.1, 0.3, "E-dsa", _IDM),
        Published("cifar100", 10, 45.1, 0.1, "E-dsa", _IDM),
        Published("cifar100", 50, 50.0, 0.2, "E-dsa", _IDM),
    ),
    departures=(_LAST,),
)

CAFE = Recipe(
    name="cafe",
    family="moments",
    title="match the class means of every layer, and classify real rows by the synthetic means",
    citation=_CAFE,
    defaults={
        "objective": "moments",
        "objective_options": {"rows": 256, "terms": {"layers": {"weights": [0.1, 1.0, 1.0]}, "discrimination": 0.01}},
        "pool": "RA",
        "pool_options": {"rows": 128, "window": 10, "settled": 0.04, "moved": 0.03, "length": 50, "epochs": 50},
        "store": "pixels",
        "labels": "hard",
        "augment": "none",
        "init": "noise",
        "scope": "joint",
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.5,
        "steps": 2000,
        "protocol": "E-dc",
    },
    idea=(
        "Early layers see texture, late ones meaning; CAFE matches the class means of all of them. So that the means "
        "of different classes stay apart, real rows are classified by their inner product with the synthetic means. A "
        "network is trained on the set between steps until its accuracy moves, and given up when it no longer does."
    ),
    equation=r"$\min_S \sum_l w_l \sum_c \lVert \mu^l_c(T) - \mu^l_c(S) \rVert^2 + \beta \sum_i "
    r"\mathrm{CE}(C_S f(t_i), y_i)$ with rows of $C_S$ the $\mu_c(S)$",
    cost=(
        "A pass of 256 real rows per class and step whose activations of all layers are summed, one more pass of the "
        "set, and up to 50 passes of training with a pass of 128 real rows per class after each. Time varies with the "
        "set."
    ),
    fails=(
        "Networks without stages. Long runs at a high step size: the sum over layers is large, so lr = 0.1 is a tenth "
        "of DM's. Where one class is stepped at a time there is nothing to discriminate; scope stays joint. After the "
        "few steps of its preset it is about as good as random digits at ten per class."
    ),
    needs=("first order", "stages"),
    expense="medium",
    presets=(
        laptop(
            steps=60,
            objective_options={"rows": 64},
            pool_options={"rows": 32, "length": 10, "epochs": 5},
        ),
    ),
    published=(
        *_figures(_CAFE, "E-dc", (1.1, 0.6, 0.6), cifar10=(30.3, 46.3, 55.5), cifar100=(12.9, 27.8, 37.9)),
        *_figures(_CAFE, "E-dc", fashion=(77.1, 83.0, 84.8)),
    ),
    departures=(
        _TOGETHER,
        "both loops have a cap of 50, which the paper does not give; without one the time varies tenfold",
        "the step size stays, where the authors halve it at steps 1200, 1600 and 1800",
        "cross-entropy of real rows under the network, which the code adds, has no gradient to the set and is left out",
        "the mean of the features is the last of the four layers, not a term of its own",
    ),
)  # fmt: skip

DATADAM = Recipe(
    name="datadam",
    family="moments",
    title="match class means of attention maps at every layer, and of the logits",
    citation=_DATADAM,
    defaults={
        "objective": "moments",
        # Both terms carry the authors' factor 100; the second is 100 * lambda with lambda = 0.01.
        "objective_options": {"rows": 256, "terms": {"attention": {"weight": 100.0, "power": 4.0}, "logits": 1.0}},
        "pool": "R",
        "store": "pixels",
        "labels": "hard",
        "augment": "dsa",
        "init": "random",
        "scope": "joint",
        "optimizer": "sgd",
        "lr": 1.0,
        "momentum": 0.5,
        "steps": 8000,
        "protocol": "E-dsa",
    },
    idea=(
        "Where a layer looks is its activations summed over channels, as a map of length one. DataDAM matches the mean "
        "map of each class at each layer of random networks, and the mean output, so that a set teaches where to look."
    ),
    equation=r"$\min_S \sum_c \sum_l \lVert \bar a^l_c(T) - \bar a^l_c(S) \rVert^2 + \lambda \lVert \bar z_c(T) - \bar "
    r"z_c(S) \rVert^2$ with $a^l(x) = \sum_k |F^l_k(x)|^p$ normalised",
    cost="As DM; the maps add little to a pass.",
    fails=(
        "Networks without stages, and shallow ones: the last activation is left out, so one layer gives no map. At "
        "small images a map has few positions and the term says little: with one item per class of digits it is hardly "
        "better than a random one. Take 'dm' or 'dance' there."
    ),
    needs=("first order", "stages"),
    presets=(
        Preset({"lr": 10.0}, ipc=(100, 200), source="paper: 10 above 50 items per class"),
        laptop(
            steps=100,
            objective_options={"rows": 64, "terms": {"attention": {"last": True}}},
        ),
        _one_item(lr=0.3),
    ),
    published=_figures(
        _DATADAM, "E-dsa (1800 epochs)", (1.2, 0.8, 0.4), cifar10=(32.0, 54.2, 67.0), cifar100=(14.5, 34.8, 49.4)
    ),
    departures=(
        "as the paper: p = 4, instance norm, 8000 steps. The released code has p = 1, BatchNorm and 20,000 steps; with "
        "instance norm its users report about 63 at CIFAR-10 and 50 items per class",
        "evaluated 1000 epochs (E-dsa) instead of 1800",
        "random real items start the set, where the code loads chosen ones",
        "on digits the last activation is matched as well, since the network has two only",
    ),
)  # fmt: skip

M3D = Recipe(
    name="m3d",
    family="moments",
    title="match whole feature distributions by maximum mean discrepancy",
    citation=_M3D,
    defaults={
        "objective": "moments",
        "objective_options": {"rows": 128, "terms": {"mmd": {"kernel": "gaussian"}}},
        "pool": "R",
        "pool_options": {"every": 5},
        "store": "multi-formation",
        "store_options": {"factor": 2},
        "labels": "hard",
        "augment": "idc-match",
        "init": "random",
        "scope": "sequential",
        "optimizer": "sgd",
        "lr": 0.125,
        "momentum": 0.5,
        "clamp": True,
        "steps": 5000,
        "protocol": "E-idc",
    },
    idea=(
        "A Gaussian kernel's mean embedding knows all moments of a distribution, where a mean knows the first. M3D "
        "matches it, with a kernel that sums five widths around the mean distance of the rows at hand."
    ),
    equation=r"$\min_S \sum_c \overline{k(s, s')} - 2\,\overline{k(s, t)} + \overline{k(t, t')}$, "
    r"$k(u, v) = \sum_{j=-2}^2 \exp(-\lVert u - v \rVert^2 / 2^j h)$",
    cost=(
        "As DM per class, with kernels of (128 + rows)^2 pairs, small beside the passes. One optimiser step per class."
    ),
    fails=(
        "The loss is bounded by ten and its gradients are much smaller than DM's: when nothing moves, raise lr by tens "
        "(the authors' is for their files). With one row per class the block of synthetic pairs is constant. A private "
        "gate refuses single rows; take kernel = 'fourier' with a bandwidth there." + _CELLS
    ),
    needs=("first order", "single rows", "cell axes"),
    presets=(
        laptop(steps=100, lr=5.0, scope="joint", objective_options={"rows": 64}, augment="dsa"),
        _one_item(lr=2.0),
    ),
    published=_figures(
        _M3D, "E-idc", cifar10=(45.3, 63.5, 69.9), cifar100=(26.2, 42.4, 50.9), mnist=(94.4, 97.6, 98.2)
    ),
    departures=(
        _MODEL_SPACE,
        _LAST,
        "the authors' files override the step size per data set and budget; here it is their default, 0.005",
        "all rows of an item pass, where the authors take at most 200",
    ),
)

DANCE = Recipe(
    name="dance",
    family="moments",
    title="match means between first and trained weights, and be recognised by the trained ones",
    citation=_DANCE,
    defaults={
        "objective": "moments",
        "objective_options": {"rows": 128, "terms": {"mean": 1.0, "class": {"weight": 1.0, "network": "expert"}}},
        "pool": "PI",
        # 60 epochs of 50,000 rows in batches of 256.
        "pool_options": {"networks": 5, "training": {"steps": 11_719, "batch": 256, "augment": "idc-train"}},
        "store": "multi-formation",
        "store_options": {"factor": 2},
        "labels": "hard",
        "augment": "idc-match",
        "init": "random",
        "scope": "sequential",
        "optimizer": "sgd",
        "lr": 2.5,
        "momentum": 0.5,
        "clamp": True,
        "steps": 10_000,
        "protocol": "E-idc",
    },
    idea=(
        "Random networks see little, trained ones too narrowly. DANCE matches means under points of the line between "
        "the first and the trained weights of a network, which costs one training per network and gives all stages "
        "between; and the trained network must recognise the synthetic rows."
    ),
    equation=rf"$\min_S \sum_c {_MEAN} + \mathrm{{CE}}(F_j(S_c), c)$ under $\lambda I_j + (1 - \lambda) F_j$",
    cost=(
        "Five networks trained beforehand, about as much as the distillation itself; they stand in checkpoints. A step "
        "is that of DM at 128 rows, with one more pass of the set."
    ),
    fails=(
        "Little real data, on which the trained networks overfit; lower pool_options.training.steps. Buffers of "
        "BatchNorm are not interpolated; use instance norm." + _CELLS
    ),
    needs=("first order", "cell axes"),
    expense="medium",
    presets=(
        Preset({"lr": 0.25}, ipc=(1,), source="paper: 0.01 times the items per class"),
        Preset({"lr": 12.5}, ipc=(50,), source="paper: 0.01 times the items per class"),
        laptop(
            steps=100,
            lr=1.0,
            scope="joint",
            objective_options={"rows": 64},
            pool_options={"networks": 2, "training": {"steps": 100, "batch": 128, "augment": "none"}},
            augment="dsa",
        ),
        _one_item(lr=0.2),
    ),
    published=_figures(
        _DANCE,
        "E-idc (1500 epochs)",
        (0.2, 0.2, 0.1),
        cifar10=(47.1, 70.8, 76.1),
        cifar100=(27.9, 49.8, 52.8),
        fashion=(81.5, 86.3, 86.9),
    ),
    departures=(
        _MODEL_SPACE,
        _BANK_LR,
        "both terms make one optimiser step per class, where the authors make one for each",
        "evaluated 1000 epochs (E-idc) instead of 1500; " + _LAST,
    ),
)

DSDM = Recipe(
    name="dsdm",
    family="moments",
    title="match means and covariances under trained networks, near a running prototype",
    citation=_DSDM,
    defaults={
        "objective": "moments",
        "objective_options": {
            "rows": 256,
            "terms": {
                "mean": 1.0,
                "covariance": 50 / 2048,
                "prototype": {"weight": 0.2 / 2048, "decay": 0.99, "start": 2000},
            },
        },
        "pool": "T",
        # 20 epochs of 50,000 rows in batches of 256.
        "pool_options": {"networks": 10, "training": {"steps": 3906, "batch": 256, "augment": "idc-train"}},
        "store": "multi-formation",
        "store_options": {"factor": 2},
        "labels": "hard",
        "augment": "idc-match",
        "init": "random",
        "scope": "sequential",
        "optimizer": "sgd",
        "lr": 2.5,
        "momentum": 0.5,
        "clamp": True,
        "steps": 10_000,
        "protocol": "E-idc",
    },
    idea=(
        "A class is a distribution of meanings: its mean is the prototype, its covariance the diversity. DSDM matches "
        "both under several networks trained a little, and keeps the synthetic mean near its own history, so that no "
        "single network pulls it about."
    ),
    equation=rf"$\min_S \sum_c {_MEAN} + \frac{{50}}{{D}} \lVert \Sigma_c(T) - \Sigma_c(S) \rVert_F^2 + "
    r"\frac{0.2}{D} \lVert \mu_c(S) - h_c \rVert^2$",
    cost=(
        "Ten networks trained 20 epochs beforehand. A step is that of DM; the covariance costs (256 + rows)^2 products."
    ),
    fails=(
        "One row per class has no covariance and is refused: take a larger ipc or keep the cells. A few rows (four at "
        "one item per class) have a poor one, and the term then draws them apart more than it helps." + _CELLS
    ),
    needs=("first order", "single rows", "cell axes"),
    expense="medium",
    presets=(
        Preset({"lr": 0.25}, ipc=(1,), source="paper: 0.1 at ten items per class, in proportion"),
        Preset({"lr": 12.5}, ipc=(50,), source="paper: 0.1 at ten items per class, in proportion"),
        laptop(
            steps=100,
            lr=1.0,
            scope="joint",
            objective_options={"rows": 64, "terms": {"prototype": {"start": 20}}},
            pool_options={"networks": 3, "training": {"steps": 60, "batch": 128, "augment": "none"}},
            augment="dsa",
        ),
        _one_item(lr=0.2),
    ),
    published=_figures(
        _DSDM + ", unconfirmed", "E-idc (1500 epochs)", cifar10=(45.0, 66.5, 75.8), cifar100=(19.5, 46.2, 54.0)
    ),
    departures=(
        _MODEL_SPACE,
        _BANK_LR,
        "weights are divided by the width 2048 of the reference network whatever the network; set them for others",
        "evaluated 1000 epochs (E-idc) instead of 1500; " + _LAST,
    ),
)

IID = Recipe(
    name="iid",
    family="moments",
    title="IDM whose rows crowd around their class mean and keep the covariance of local features",
    citation=_IID,
    defaults={
        **IDM.defaults,
        "objective": "moments",
        "objective_options": {
            "rows": 256,
            "terms": {
                "mean": 1.0,
                "class": {"weight": 0.5, "skilled": True},
                "centralisation": {"weight": 0.05, "network": "expert"},
                "local covariance": 0.01,
            },
        },
        "pool": "PI",
        # 40 epochs of 50,000 rows in batches of 256.
        "pool_options": {"drawn": "Q", "networks": 20, "training": {"steps": 7812, "batch": 256, "augment": "dsa"}},
    },
    idea=(
        "Rows matched in their mean alone scatter over the class's border. IID pulls them to the class mean in the "
        "features of a trained network, and matches how the channels of the last map go together, which a mean of "
        "features forgets. Both terms are added to a host."
    ),
    equation=r"$\min_S$ IDM $+ \sum_c 0.05 \sum_i \lVert g(s_i) - \mu^g_c(S) \rVert^2 + 0.01 \lVert C_c(T) - C_c(S) "
    r"\rVert_F^2$",
    cost="That of IDM, with a bank of trained networks beforehand and one more pass of the set.",
    fails=(
        "With one row per class there is nothing to centralise and no covariance: the latter is refused, so keep the "
        "cells at one item per class. Networks whose features are no map have no local covariance." + _CELLS
    ),
    needs=("first order", "stages", "cell axes"),
    expense="high",
    presets=(
        Preset({"objective_options": {"terms": {"class": {"weight": 0.1}}}}, ("cifar10",), (50,), source="IDM's flags"),
        laptop(
            steps=60,
            scope="joint",
            objective_options={"rows": 64, "terms": {"class": {"weight": 0.02}, "centralisation": {"weight": 0.005}}},
            pool_options={
                "drawn_options": {"steps": 2, "batch": 64},
                "networks": 2,
                "training": {"steps": 60, "batch": 128, "augment": "none"},
            },
        ),
    ),
    published=_figures(_IID + ", with IDM as host", "E-dsa", cifar10=(47.1, 59.9, 69.0), cifar100=(24.6, 45.7, 51.3)),
    departures=(
        "the bank holds 20 networks of the run's own kind, where the authors train up to 1000 ResNet18; they report "
        "that far fewer work",
        "centralisation in its plain form, without exponential and threshold, which the authors find as good",
        _BANK_LR,
        _LAST,
    ),
)

LQM = Recipe(
    name="lqm",
    family="moments",
    title="IDM that matches quantiles of every feature instead of the mean",
    citation=_LQM,
    defaults={
        **IDM.defaults,
        "objective": "moments",
        "objective_options": {"rows": 256, "terms": {"quantile": 1.0, "class": {"weight": 0.5, "skilled": True}}},
    },
    idea=(
        "A few rows can stand for a distribution best when they sit at its quantiles. In each feature the synthetic "
        "values are sorted and drawn to the real quantiles at the levels that minimise the Cramer-von Mises distance."
    ),
    equation=(
        r"$\min_S \sum_c \sum_d \frac{1}{n} \sum_i (s_{(i), d} - q_d(\frac{2i - 1}{2n}))^2$ in place of the means of "
        r"IDM"
    ),
    cost="That of IDM; sorting costs n log n in each feature.",
    fails=(
        "With one row per class it matches medians, which are worse than means; keep the cells. It matches each "
        "feature apart and knows nothing of how they go together; 'dsdm' does." + _CELLS
    ),
    needs=("first order", "single rows", "cell axes"),
    expense="medium",
    presets=(
        Preset(
            {"objective_options": {"terms": {"class": {"weight": 0.1}}}},
            ("cifar10",),
            (50,),
            source="IDM's flags",
        ),
        laptop(
            steps=60,
            lr=0.5,
            scope="joint",
            objective_options={"rows": 64, "terms": {"class": {"weight": 0.02}}},
            pool_options={"steps": 2, "batch": 64},
        ),
        _one_item(lr=0.2),
    ),
    published=_figures(
        _LQM + ", with IDM as host, as a survey prints it",
        "E-dsa",
        cifar10=(45.9, 60.9, 70.2),
        cifar100=(27.2, 47.7, 52.4),
    ),
    departures=("the mean over rows keeps the host's step size usable; the paper does not state its scale", _LAST),
)

COVER = Recipe(
    name="cover",
    family="moments",
    title="the finite set from which no real item of the class is far on average",
    citation=_COVER,
    defaults={
        "objective": "moments",
        "objective_options": {"rows": None, "terms": {"hausdorff": {"of": "items"}}},
        "pool": "R",
        "store": "pixels",
        "labels": "hard",
        "augment": "none",
        "init": "kmeans",
        "scope": "joint",
        "optimizer": "adam",
        "lr": 0.01,
        "steps": 500,
        "protocol": "E-dsa",
    },
    idea=(
        "No network judges: the set should cover the class, each real item having a synthetic one near and each "
        "synthetic one a real one. It starts from k-means items and is refined by the average Hausdorff distance."
    ),
    equation=(
        r"$\min_S \sum_c \frac{1}{2} (\overline{\min_t \lVert s - t \rVert} + \overline{\min_s \lVert s - t "
        r"\rVert})$"
    ),
    cost=(
        "No pass of a network. Every step compares all real items of a class with its synthetic ones, and all items "
        "are held as numbers meanwhile; set objective_options.rows for large data."
    ),
    fails=(
        "Distances between raw items say little where a shift changes all values (natural images): there it is about a "
        "selection. An item that starts on a real one sits at a kink and moves little, so the start decides; from "
        "noise (distill.init) it moves and ends worse on digits. Take of = 'features' with pool 'T' to cover features "
        "instead."
    ),
    needs=("first order", "single rows"),
    presets=(laptop(steps=100, lr=0.02, init_options={"train_steps": 60}),),
    departures=("the paper gives no step size or length for free items; these are ours, as is the start from k-means",),
)

WMDD = Recipe(
    name="wmdd",
    family="moments",
    title="rows at the atoms of each class's Wasserstein barycentre under a trained network",
    citation=_WMDD,
    defaults={
        "objective": "moments",
        "objective_options": {
            "terms": {
                "barycentre": {"weight": 1.0, "rounds": 10},
                "class": {"weight": 1.0, "network": "expert", "hard": True},
            }
        },
        "pool": "T",
        "pool_options": {"networks": 1, "training": {"steps": 11_719, "batch": 256, "augment": "dsa"}},
        "store": "pixels",
        "labels": "teacher",
        "teacher": {"steps": 11_719, "augment": "dsa"},
        "augment": "none",
        "init": "random",
        "scope": "joint",
        "optimizer": "adam",
        "lr": 0.05,
        "steps": 2000,
        "protocol": "E-dsa",
    },
    idea=(
        "In the features of one trained network, the best few points to stand for a class are the atoms of its "
        "Wasserstein barycentre. They are computed once from all real rows; each synthetic row is then drawn to its "
        "atom, and labelled by the network in the end."
    ),
    equation=r"$\min_S \sum_c \lVert g(S_c) - B_c \rVert_F + \mathrm{CE}(h(S_c), c)$",
    cost=(
        "One trained network, its features of all real rows once, and an optimal transport per class (seconds). A step "
        "passes the set alone: no real row is asked for any more."
    ),
    fails=(
        "More rows than a class has real ones are refused. One fixed network is easy to fool: without matching of "
        "batch statistics, which instance norm does not have, rows may reach their atoms by noise; at ten items per "
        "class of digits it is about as good as random ones."
    ),
    needs=("first order", "single rows"),
    expense="medium",
    presets=(
        laptop(
            steps=100,
            pool_options={"training": {"steps": 150, "batch": 128, "augment": "none"}},
            teacher={"steps": 150, "batch": 128, "augment": "none"},
        ),
    ),
    published=(),
    departures=(
        "no matching of per-class BatchNorm statistics, since the reference network has none",
        "atoms have equal weights, the variant without mirror descent",
        "a ConvNet instead of ResNet18, one stored soft label per row instead of one per epoch, no crops: the "
        "published figures (Tiny-ImageNet 7.6 / 41.8 / 59.4) are not comparable",
        "step size, length and the weight of the class term are ours",
    ),
)
