"""Typed settings. An unknown key is an error that suggests the near one (see `ddfed.config`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddfed.config import Layer, Resolved, resolve
from ddfed.errors import ConfigError, one_of
from ddfed.registry import registry

if TYPE_CHECKING:
    from ddfed.pool import Training


class Settings(BaseModel):
    """Frozen, and strict about names; no number is infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _finite_options(cls, value: Any) -> Any:
        # Free-form tables hold numbers that pydantic does not look at, and that JSON could not say.
        for name, inner in value.items() if isinstance(value, Mapping) else ():
            if isinstance(inner, float) and not math.isfinite(inner):
                raise ValueError(f"{name} must be finite, got {inner}")
            cls._finite_options(inner)
        return value


class DataSettings(Settings):
    """Which data, and from where."""

    domain: str = Field("image", description="modality; `ddfed domains list`")
    dataset: str = Field("digits", description="data set of the domain; `ddfed datasets list`")
    root: Path | None = Field(None, description="folder that holds the data set's files; none for embedded data")
    options: dict[str, Any] = Field(default_factory=dict, description="the domain's own settings, such as whitening")
    train_limit: int | None = Field(None, ge=1, description="use only this many training rows (class-balanced)")
    test_limit: int | None = Field(None, ge=1, description="use only this many test rows (class-balanced)")


class TeacherSettings(Settings):
    """The networks trained on real data that teach: labels (stores `teacher`, `gift`, ...) and the pool `teachers`."""

    steps: int = Field(300, ge=1, description="training steps; fewer make an early-stopped expert")
    batch: int = Field(256, ge=1, description="real rows per step")
    lr: float = Field(0.01, gt=0, description="step size of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    augment: str = Field("none", description="augmentation while it trains")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the step size, over all its steps")
    networks: tuple[str, ...] = Field(
        (), description="its network, empty for the one that judges; of several, labels are the mean of their logits"
    )
    objective: Literal["classes", "barlow"] = Field(
        "classes", description="what it learns: classes, or that two views of a row are alike (Barlow Twins)"
    )
    redundancy: float = Field(0.005, gt=0, description="barlow: weight of correlations between different outputs")
    outputs: int = Field(0, ge=0, description="numbers that it gives; 0 for as many as classes, which classes need")

    @model_validator(mode="after")
    def _fits(self) -> TeacherSettings:
        if self.objective == "classes" and self.outputs:
            raise ValueError(f"outputs = {self.outputs} is for objective = 'barlow'; classes have an output each")
        if self.objective == "barlow" and self.augment == "none":
            raise ValueError("objective = 'barlow' compares two views of a row, and augment = 'none' makes them equal")
        return self

    def training(self) -> Training:
        """As the pools take it."""
        from ddfed.pool import Training

        return Training(**self.model_dump(exclude={"networks", "outputs"}))


class ExpertTraining(Settings):
    """How the experts of trajectory matching are trained on real data (pool `X`, `ddfed experts make`)."""

    epochs: int = Field(50, ge=1, description="a snapshot is kept after each")
    passes: int = Field(1, ge=1, description="over the data in an epoch, for data of a few steps a pass")
    batch: int = Field(256, ge=1, description="real rows per step")
    lr: float = Field(0.01, gt=0, description="step size of SGD")
    momentum: float = Field(0.0, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0, description="of SGD")
    augment: str = Field("none", description="augmentation while they train, a draw of its own for each row")
    rho: float = Field(0.0, ge=0, description="climb of flat training (GSAM); 0 for plain SGD")
    alpha: float = Field(0.0, ge=0, description="of flat training: weight of the orthogonal part")
    curriculum: bool = Field(False, description="easy rows first, and easiest left out later (PAD)")

    def training(self, steps: int) -> Training:
        """As the pools take it."""
        from ddfed.pool import Training

        return Training(steps, **self.model_dump(exclude={"epochs", "passes", "curriculum"}))


class StageSettings(Settings):
    """A set made part after part, each for networks that were trained on the parts before it."""

    count: int = Field(1, ge=1, description="parts of equal size that the items of each class are made in")
    window: int = Field(
        0, ge=0, description="parts that networks are trained on together, the newest included; 0 for all so far"
    )
    epochs: int = Field(20, ge=1, description="of the protocol's, on each finished part, before a network judges")


class KeepSettings(Settings):
    """Keep the iterate that does best on validation rows instead of the last one (central runs)."""

    every: int = Field(0, ge=0, description="outer steps between trials of the set as it is; 0 keeps the last")
    begins: float = Field(0.0, ge=0, lt=1, description="part of the outer steps before the first trial")
    epochs: int = Field(200, ge=1, description="of the protocol, for the network that tries it")
    repeats: int = Field(1, ge=1, description="networks that try it; their mean counts")


class TermSettings(Settings):
    """An objective that rides on the recipe's own."""

    objective: str = Field(description="which; any engine may be a term")
    weight: float = Field(1.0, gt=0, description="what its cotangents are multiplied by")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the engine")


class PartSettings(Settings):
    """The eight parts of a recipe, and how they run.

    store -> decode -> label -> augment -> objective(pool, real rows) -> cotangent -> outer step -> evaluate
    """

    ipc: int = Field(10, ge=1, description="budget per class, counted in plain items")
    steps: int = Field(1000, ge=0, description="outer steps; 0 keeps the initialisation (selection)")
    network: str = Field("", description="network that judges; empty for the domain's default")
    init: str = Field("random", description="selector that gives the initial items, or 'noise'")
    init_options: dict[str, Any] = Field(
        default_factory=dict, description="of the selector: train_steps, direction, ... (a wrong name lists them)"
    )
    store: str = Field("pixels", description="parametrisation: pixels, multi-formation, mirrored, dct, field, ...")
    store_options: dict[str, Any] = Field(default_factory=dict, description="options of the store, below")
    labels: str = Field("hard", description="label store: hard, logits (learned), teacher, ...")
    labels_options: dict[str, Any] = Field(default_factory=dict, description="options of the label store, below")
    teacher: TeacherSettings = TeacherSettings()
    augment: str = Field("none", description="siamese augmentation of real and synthetic rows")
    objective: str = Field("mean", description="matching engine")
    objective_options: dict[str, Any] = Field(default_factory=dict, description="options of the engine, below")
    terms: tuple[TermSettings, ...] = Field(
        (), description="further objectives whose cotangents are added to the engine's: {objective, weight, options}"
    )
    pool: str = Field("R", description="which networks judge: R, RS, RT, Q, T, teachers, exact, ball, ...")
    pool_options: dict[str, Any] = Field(default_factory=dict, description="options of the pool, below")
    sampler: str = Field("uniform", description="which real rows an engine is shown: uniform, kmeans")
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="options of the sampler, below")
    scope: Literal["joint", "sequential"] = Field("joint", description="one step for all classes, or one per class")
    stages: StageSettings = StageSettings()
    keep: KeepSettings = KeepSettings()
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="of the stored values: sgd or adam")
    lr: float = Field(1.0, gt=0, description="step size of the stored values")
    momentum: float = Field(0.5, ge=0, lt=1, description="of SGD")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of Adam")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the step sizes, over all outer steps")
    lr_floor: float = Field(0.0, ge=0, le=1, description="where the cosine ends, as a part of the step size")
    clip: float = Field(0.0, ge=0, description="longest gradient, in usual ones (running mean); 0 for any")
    label_lr: float = Field(1.0, gt=0, description="step size of learned labels")
    label_momentum: float | None = Field(None, ge=0, lt=1, description="of learned labels; none for that of the items")
    clamp: bool = Field(False, description="keep stored values in their natural range, where the store has one")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of an average of the stored values that is released instead")
    min_count: int = Field(1, ge=1, description="classes with fewer real rows are left out")
    top_up: bool = Field(False, description="draw with replacement where a class has fewer rows than asked")
    protocol: str = Field("E-dsa", description="evaluation recipe the set is made for")
    chunk: int = Field(128, ge=1, description="real rows per forward pass")
    bf16: bool = Field(False, description="real side in bfloat16")
    compile: bool = Field(False, description="torch.compile the network's passes")


class EvaluateSettings(Settings):
    """How the result is judged."""

    protocol: str = Field("", description="evaluation recipe; empty for the one the set was made for")
    networks: tuple[str, ...] = Field((), description="networks trained on the set; empty for the domain's default")
    repeats: int = Field(3, ge=1, description="fresh networks per row of the table")
    epochs: int | None = Field(None, ge=1, description="overrides the protocol's epochs; said in every table")
    baselines: tuple[str, ...] | None = Field(
        None,
        description="rows beside the result: random (items of the budget), label-only (the same with soft labels), "
        "full (data, at equal steps), or a selector such as herding (herding:1: one of a class); none for the domain's",
    )
    teacher_steps: int | None = Field(
        None,
        ge=1,
        description='steps (of 256 real rows) of the network that labels the row "label-only", stopped early; none for '
        "two passes over the data, at least 100 steps",
    )


class RunSettings(Settings):
    """Where and how a run happens."""

    seed: int = Field(0, description="root of all randomness")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', 'cuda:1', 'mps'")
    threads: int = Field(0, ge=0, description="torch threads; 0 for OMP_NUM_THREADS, or the number of cores")
    out: Path = Field(Path("runs"), description="where run folders are made")
    name: str = Field("", description="name of the run folder, after its date")
    checkpoint_every: int = Field(100, ge=1, description="outer steps between checkpoints")


class DistillSettings(Settings):
    """`ddfed distill`."""

    method: str = Field("dm", description="recipe; `ddfed methods list`")
    data: DataSettings = DataSettings()
    distill: PartSettings = PartSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    run: RunSettings = RunSettings()


class ExpertSettings(Settings):
    """`ddfed experts make`."""

    folder: Path = Field(description="where the experts are kept")
    count: int = Field(10, ge=1, description="experts; what the folder has already is kept")
    network: str = Field("", description="network; empty for the domain's default")
    dtype: Literal["float16", "float32"] = Field("float16", description="how weights are stored")
    data: DataSettings = DataSettings()
    training: ExpertTraining = ExpertTraining()
    chunk: int = Field(128, ge=1, description="real rows per pass")
    run: RunSettings = RunSettings()


class ScoreSettings(Settings):
    """The networks that score the items of a finished set (YOCO, section 3 and the authors' settings)."""

    network: str = Field("", description="network; empty for the domain's default")
    epochs: int = Field(100, ge=1, description="epochs it is trained on the set")
    best: int = Field(10, ge=1, description="epochs of the highest accuracy on the set that are averaged")
    networks: int = Field(1, ge=1, description="networks that are averaged")

    @model_validator(mode="after")
    def _enough_epochs(self) -> ScoreSettings:
        if self.best > self.epochs:
            raise ValueError(f"the best {self.best} of {self.epochs} epochs cannot be averaged; lower score.best")
        return self


class PruneSettings(Settings):
    """`ddfed prune`."""

    artifact: Path = Field(description="run folder, or folder of the set that loses items")
    ipc: int = Field(ge=1, description="budget per class that is left, counted in plain items")
    rule: Literal["yoco", "el2n", "random"] = Field(
        "yoco", description="which items stay: of the lowest error of logits, of probabilities, or random ones"
    )
    score: ScoreSettings = ScoreSettings()
    data: DataSettings = DataSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    run: RunSettings = RunSettings()


def resolve_prune(layers: Sequence[Layer]) -> Resolved[PruneSettings]:
    """Settings of a pruning: defaults < the card's data < files < --set < options.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    artifact = value_of(layers, "artifact", None)
    return resolve(PruneSettings, [*_card_layer(artifact), *layers])


def _card_layer(artifact: str | Path | None) -> list[Layer]:
    """The data that a set's card says it was made from; nothing where there is no card to read."""
    path = Path(artifact or "")
    card = (path if path.is_dir() else path.parent) / "card.json"
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
        data = found["provenance"].get("settings", {}).get("data")
        task = {"domain": found["task"]["domain"], "dataset": found["task"]["dataset"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # what is wrong with a set is said by who loads it
    return [Layer(str(card), {"data": data or task})]


def value_of(layers: Sequence[Layer], path: str, default: Any) -> Any:
    """The last value that the layers give to a dotted key, or the default."""
    found = default
    for layer in layers:
        node: Any = layer.values
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                break
            node = node[key]
        else:
            found = node
    return found


def origin_of(layers: Sequence[Layer], path: str, default: str) -> str:
    """Where the last value of a dotted key came from."""
    missing = object()
    return next(
        (layer.origin for layer in reversed(layers) if value_of([layer], path, missing) is not missing), default
    )


def recipe_layers(method: str, origin: str, layers: Sequence[Layer], section: str) -> list[Layer]:
    """A recipe's defaults and the presets that fit the data set and budget, to lie below the user's layers.

    A recipe for one modality brings it along.

    Raises:
        ConfigError: the recipe is not for the modality that is asked for.
    """
    # A recipe can be told without the packages that its modality needs; who loads the data asks for them.
    recipe = registry().get("recipe", method, origin).read()
    below = [Layer(f"recipe {method}", {section: dict(recipe.defaults)})]
    if recipe.domains:
        below.append(Layer(f"recipe {method}", {"data": {"domain": recipe.domains[0]}}))
    domain = value_of([*below, *layers], "data.domain", DataSettings().domain)
    dataset = value_of(layers, "data.dataset", DataSettings().dataset)
    if recipe.domains and domain not in recipe.domains:
        raise ConfigError(
            f"method {method!r} is for {one_of(recipe.domains)}, and data.domain is {domain!r} (from "
            f"{origin_of(layers, 'data.domain', 'the default')}). `ddfed methods list` shows what each is for."
        )
    ipc = value_of([*below, *layers], f"{section}.ipc", PartSettings().ipc)
    domain = value_of(layers, "data.domain", "image")
    for preset in recipe.presets:
        if preset.fits(dataset, ipc, domain):
            below.append(Layer(f"preset {method}/{preset.label}", {section: dict(preset.values)}))
    return below


#: Parts that are chosen by name, and where their options stand.
PART_OPTIONS = {part: f"{part}_options" for part in ("init", "store", "labels", "objective", "pool", "sampler")}


def without_foreign_options(layers: Sequence[Layer], section: str) -> list[Layer]:
    """The layers, less the options of parts that a later layer replaces by another.

    A recipe's ``store_options`` are for its store: who asks for another store by name must not inherit them.
    """
    kept = [dict(layer.values) for layer in layers]
    for part, options in PART_OPTIONS.items():
        named = [(i, value_of([layer], f"{section}.{part}", None)) for i, layer in enumerate(layers)]
        names = [(i, name) for i, name in named if name is not None]
        replaced = max((i for (_, before), (i, name) in pairwise(names) if name != before), default=0)
        for values in kept[:replaced]:
            if options in values.get(section, {}):
                values[section] = {k: v for k, v in values[section].items() if k != options}
    return [Layer(layer.origin, values) for layer, values in zip(layers, kept)]


def resolve_distill(layers: Sequence[Layer]) -> Resolved[DistillSettings]:
    """Settings of a central run: defaults < recipe < preset < files < --set < options.

    Raises:
        ConfigError: an unknown key, a wrong value, or an unknown method.
    """
    method = value_of(layers, "method", "dm")
    below = recipe_layers(method, origin_of(layers, "method", "the default"), layers, "distill")
    return resolve(DistillSettings, without_foreign_options([*below, *layers], "distill"))
