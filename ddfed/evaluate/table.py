"""The evaluation table: the set, random items of the same budget with hard and with soft labels, and full data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ddfed.artifact import SyntheticSet
from ddfed.data import RealData, Task
from ddfed.domain import Augmentation, Domain, Network
from ddfed.errors import ArtifactError, ConfigError, DataError, one_of, suggest
from ddfed.evaluate.protocols import Protocol, RidgeProtocol
from ddfed.evaluate.ridge import KernelRegression
from ddfed.evaluate.training import Quality, Rows, accuracy, probed, quality, train, train_in_stages
from ddfed.gate import PlainGate
from ddfed.pool import PoolContext, Training, trained_network
from ddfed.registry import registry
from ddfed.seeds import Streams, isolated
from ddfed.select import initial_inputs
from ddfed.stages import Stages
from ddfed.store import HardLabels, LabelStore, Lesson, TeacherLabels

Report = Callable[[str, int, int], None]
Recipe = Protocol | RidgeProtocol

#: Rows that every domain has; real items chosen by a selector of the registry may stand there as well.
BASELINES = ("random", "label-only", "full")


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Args:
        subject: ``"dm"``, ``"random"``, ``"label-only"``, ``"full data"``.
        network: what was trained.
        protocol: how, with any departure in its name.
        accuracies: test accuracy of each fresh network, in [0, 1], after the epoch that ``epoch`` says.
        items: stored items trained on.
        seconds: wall time of the row.
        note: what a reader must know to compare.
        ece: expected calibration error of each network's softmax, in [0, 1]; empty where there are no probabilities.
        nll: mean negative log-likelihood of each, in nats; empty likewise.
        epoch: ``last``, or ``best by validation``: which epoch of the training counts.
    """

    subject: str
    network: str
    protocol: str
    accuracies: tuple[float, ...]
    items: int
    seconds: float
    note: str = ""
    ece: tuple[float, ...] = ()
    nll: tuple[float, ...] = ()
    epoch: str = "last"

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Population deviation over networks, the convention of the field."""
        return statistics.pstdev(self.accuracies)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean, "std": self.std}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measurement:
        fields: dict[str, Any] = {k: v for k, v in row.items() if k not in ("mean", "std")}
        lists: dict[str, Any] = {k: tuple(fields[k]) for k in ("accuracies", "ece", "nll") if k in fields}
        return cls(**{**fields, **lists})


@dataclass(frozen=True, eq=False)
class Material:
    """What one network is trained on.

    Args:
        rows: row numbers -> (rows, targets) on the device.
        count: how many there are.
        labels: whose loss, regression targets and stored batches go with the targets.
        stages: in which the rows are trained on, where the recipe has stages.
        redrawn: gives the rows of an epoch where they are drawn anew; None where they stay.
        coupled: a network must see the rows together; see `ddfed.store.Store.coupled`.
    """

    rows: Rows
    count: int
    labels: LabelStore
    stages: Stages | None = None
    redrawn: Callable[[torch.Generator], Rows] | None = None
    coupled: bool = False

    @classmethod
    def of(cls, x: Tensor, y: Tensor, labels: LabelStore) -> Material:
        return cls(lambda index: (x[index], y[index]), len(x), labels)


@dataclass(frozen=True, eq=False)
class Subject:
    """A row of the table before it is measured.

    Args:
        name: for the table.
        items: stored items.
        make: repeat -> what its network is trained on.
        note: for the table.
        varies: repeats differ by more than the network.
    """

    name: str
    items: int
    make: Callable[[int], Material]
    note: str = ""
    varies: bool = False


def synthetic_subject(syn: SyntheticSet, name: str, device: torch.device) -> Subject:
    """The set itself; decoded once, unless its rows are drawn anew for every epoch."""
    x, y = (t.to(device) for t in syn.decoded())
    material = replace(Material.of(x, y, syn.labels), stages=syn.stages, coupled=syn.store.coupled)
    note = ""
    if syn.redraws:

        def redrawn(generator: torch.Generator) -> Rows:
            x, y = (t.to(device) for t in syn.redrawn(generator))
            return lambda index: (x[index], y[index])

        material = replace(material, redrawn=redrawn)
        note = (
            f"other rows in every epoch, from weights of {syn.store.size_bytes} bytes: "
            f"{syn.store.plain_items_per_class:.1f} plain items per class"
        )
    elif not isinstance(syn.labels, HardLabels):
        note = f"{syn.labels.size_bytes} bytes of labels"
    return Subject(name, len(syn), lambda repeat: material, note)


def random_subject(syn: SyntheticSet, real: RealData, streams: Streams, device: torch.device) -> Subject:
    """Real items of the same bytes per class, drawn anew for each repeat; hard labels."""
    note = "real items, same number per class, new ones for each network"
    if syn.redraws:
        note = "real items of the same bytes per class, as many as there are, new ones for each network"
    return _drawn_subject("random", _budget(syn, real), real, streams, device, note, syn.store.coupled)


def same_rows_subject(syn: SyntheticSet, real: RealData, streams: Streams, device: torch.device) -> Subject:
    """As many real items as an epoch on the set has rows: what a set whose rows are drawn is compared with as well."""
    held = torch.bincount(syn.labels.classes, minlength=syn.info.num_classes)
    counts = torch.minimum(held, real.class_counts).tolist()
    note = "real items, as many as an epoch on the set has rows, new ones for each network"
    return _drawn_subject("random, same rows", counts, real, streams, device, note)


def _drawn_subject(
    name: str,
    counts: Sequence[int],
    real: RealData,
    streams: Streams,
    device: torch.device,
    note: str,
    coupled: bool = False,
) -> Subject:
    """Real items with hard labels, so many of each class; beside a coupled set with what lies between them."""

    def make(repeat: int) -> Material:
        x, classes = _random_items(counts, real, streams, repeat, device, coupled)
        return replace(Material.of(x, classes, HardLabels(classes, real.info.num_classes)), coupled=coupled)

    return Subject(name, sum(counts), make, note, varies=True)


def _budget(syn: SyntheticSet, real: RealData) -> list[int]:
    return torch.minimum(syn.budget, real.class_counts).tolist()


def _random_items(
    counts: Sequence[int], real: RealData, streams: Streams, repeat: int, device: torch.device, coupled: bool = False
) -> tuple[Tensor, Tensor]:
    generator = streams.torch("random subset", repeat)
    picks = [m[torch.randperm(len(m), generator=generator)[:n]] for m, n in zip(real.class_index, counts)]
    rows = torch.cat(picks)
    return real.items(rows, coupled).to(device), real.labels[rows].to(device)


def full_subject(real: RealData, device: torch.device, note: str) -> Subject:
    """Every real row, made ready batch by batch."""

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        batch = real.batch(index)
        return batch.inputs.to(device), batch.classes.to(device)

    material = Material(rows, len(real), HardLabels(real.labels, real.info.num_classes))
    return Subject("full data", len(real), lambda repeat: material, note)


def measure(
    subject: Subject,
    task: Task,
    domain: Domain,
    network: str,
    protocol: Recipe,
    repeats: int,
    streams: Streams,
    device: torch.device,
    report: Report | None = None,
) -> Measurement:
    """Train ``repeats`` fresh networks on the subject and test them.

    Networks, order and augmentation hang on (network, repeat) alone, so that subjects are compared on the
    same initial weights. A regression is made once for a subject that does not vary.
    """
    begun, found = time.perf_counter(), []
    if isinstance(protocol, RidgeProtocol) and not subject.varies:
        repeats = 1
    for repeat in range(repeats):
        material, text = subject.make(repeat), f"{subject.name} {network} {repeat + 1}/{repeats}"
        if isinstance(protocol, RidgeProtocol):
            found.append(_regressed(material, task, protocol))
            _tell(report, text, 1, 1)
        else:
            net = fresh_network(domain, task, network, streams, repeat, device, material.labels.outputs)
            names = streams.child("evaluation", network, repeat)
            with isolated(names.seed("noise")):  # a network's own randomness, such as dropout
                _train(net, material, task, domain, protocol, names, _reporter(report, text, protocol.epochs))
            found.append(_judged(net, task, protocol, streams.torch("probe", repeat)))
    return Measurement(
        subject.name,
        network,
        protocol.name,
        tuple(one.accuracy for one in found),
        subject.items,
        round(time.perf_counter() - begun, 3),
        subject.note,
        tuple(one.ece for one in found if one.ece is not None),
        tuple(one.nll for one in found if one.nll is not None),
        "best by validation" if isinstance(protocol, Protocol) and protocol.choose else "last",
    )


def _judged(net: Network, task: Task, protocol: Protocol, rows: torch.Generator) -> Quality:
    if not protocol.probe:
        return quality(net, task.test)
    shown, few = task.train, protocol.probe_rows
    if few:
        picks = [members[torch.randperm(len(members), generator=rows)[:few]] for members in shown.class_index]
        shown = shown.subset(torch.cat(picks))
    return probed(net, shown, task.test, protocol.probe)


def fresh_network(
    domain: Domain,
    task: Task,
    network: str,
    streams: Streams,
    repeat: int,
    device: torch.device,
    outputs: int | None = None,
) -> Network:
    """The untrained network of a repeat, the same for every subject whose labels ask for as many outputs."""
    with isolated(streams.seed("evaluation network", network, repeat)):
        return domain.network(network, task.info.with_outputs(outputs or task.info.num_classes)).to(device)


def _train(
    net: Network,
    material: Material,
    task: Task,
    domain: Domain,
    protocol: Protocol,
    streams: Streams,
    on_epoch: Callable[[int], None] | None,
) -> None:
    replay = material.labels.replay
    if protocol.stages > 1 and material.stages is not None:
        train_in_stages(
            net,
            material.rows,
            material.stages,
            material.labels.loss,
            protocol,
            domain.augmentation(protocol.augment, task.info),
            streams,
            cell_axes=task.info.cell_axes,
            on_epoch=on_epoch,
        )
        return
    train(
        net,
        material.rows,
        material.count,
        material.labels.loss,
        protocol,
        domain.augmentation(replay.augment if replay else protocol.augment, task.info),
        streams,
        cell_axes=task.info.cell_axes,
        on_epoch=on_epoch,
        replay=replay,
        redrawn=material.redrawn,
        coupled=material.coupled,
        judge=None if task.validation is None else partial(accuracy, data=task.validation),
    )


def _regressed(material: Material, task: Task, protocol: RidgeProtocol) -> Quality:
    """Scores of a regression are no probabilities, so there is no calibration."""
    x, y = material.rows(torch.arange(material.count))
    fit = KernelRegression(x, material.labels.vectors(y), protocol.kernel, protocol.ridge)
    right = 0
    for part in task.test.passes(torch.arange(len(task.test)), 1000):
        batch = task.test.batch(part)
        right += int((fit(batch.inputs).argmax(1) == batch.classes).sum())
    return Quality(right / len(task.test))


def _reporter(report: Report | None, text: str, epochs: int) -> Callable[[int], None] | None:
    return None if report is None else lambda epoch: report(text, epoch, epochs)


def _tell(report: Report | None, text: str, done: int, total: int) -> None:
    if report is not None:
        report(text, done, total)


@dataclass(frozen=True, eq=False)
class Bench:
    """A set on its task with what the rows of a table share.

    Args:
        syn: the set.
        task: the data it was made from; its space must agree with the set's.
        domain: modality adapter.
        name: what tables call the set.
        repeats: fresh networks per row.
        baselines: of `BASELINES`, or selectors of the registry: ``"herding"`` for real items of the same budget,
            ``"herding:1"`` for one of each class; None for those of the domain.
        teacher_steps: of the network that labels the row "label-only"; None for two passes over the data, at least
            100 steps. Soft labels of few items want a network that is stopped early.
        teacher_network: which network that is; the domain's default when empty.
        streams: randomness.
        device: where networks live.
        report: called with (text, epoch, epochs) as training goes.
        known: rows that were measured before, in the order of the table; they are not measured again.
        on_row: told of each row that is measured.

    Raises:
        ArtifactError: the set and the data disagree in shape, classes or space.
        ConfigError: an unknown baseline.
        DataError: there are no test rows.
    """

    syn: SyntheticSet
    task: Task
    domain: Domain
    name: str = "distilled"
    repeats: int = 3
    baselines: tuple[str, ...] | None = None
    teacher_steps: int | None = None
    teacher_network: str = ""
    streams: Streams = field(default_factory=lambda: Streams(0))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Report | None = None
    known: Sequence[Measurement] = ()
    on_row: Callable[[Measurement], None] = lambda row: None

    def __post_init__(self) -> None:
        check_fits(self.syn, self.task)
        for baseline in self.beside:
            check_baseline(baseline)

    @property
    def beside(self) -> tuple[str, ...]:
        """The baselines that are wanted."""
        return self.domain.default_baselines(self.task.info) if self.baselines is None else self.baselines

    @cached_property
    def teacher(self) -> Network:
        """The network behind the row "label-only": trained once, whatever the number of rows."""
        title = f"full data, {self._teacher_name} labels"
        context = self._context("label-only", lambda what, done, total: _tell(self.report, title, done, total))
        return trained_network(context, self._training, "teacher")

    def _context(self, name: str, report: Report) -> PoolContext:
        """What whoever looks at all of the real data may use."""
        held, info, domain = PlainGate(self.task.train), self.task.info, self.domain
        return PoolContext(
            build=lambda: domain.network(self._teacher_name, info),
            gate=held,
            streams=self.streams.child(name),
            classes=held.held(),
            device=self.device,
            augmentation_named=self._augmentation,
            report=report,
        )

    def selected(self, baseline: str) -> Subject:
        """Real items that a selector chooses, as many as fit the set's budget or as the baseline says."""
        name, _, asked = baseline.partition(":")
        real, rule = self.task.train, registry().load("selector", name, "evaluate.baselines")
        counts = _budget(self.syn, real)
        per_class = int(asked) if asked else max(counts)
        held = [c for c in PlainGate(real).held() if counts[c]]

        def make(repeat: int) -> Material:
            context = replace(self._context(baseline, lambda *_: None), classes=tuple(held))
            context.streams = self.streams.child(baseline, repeat)
            x = initial_inputs(real, rule, per_class, context, top_up=True).to(self.device)
            classes = torch.tensor(held).repeat_interleave(per_class)
            return Material.of(x, classes.to(self.device), HardLabels(classes, real.info.num_classes))

        note = f"real items by selector {name!r}, {per_class} of each class"
        return Subject(baseline, per_class * len(held), make, note, varies=True)

    @property
    def _training(self) -> Training:
        plain = Training()
        few = max(100, -(-2 * len(self.task.train) // plain.batch))
        return replace(plain, steps=self.teacher_steps or few)

    @property
    def _teacher_name(self) -> str:
        return self.teacher_network or self.domain.default_network(self.task.info)

    def synthetic(self) -> Subject:
        return synthetic_subject(self.syn, self.name, self.device)

    def random(self) -> Subject:
        return random_subject(self.syn, self.task.train, self.streams, self.device)

    def label_only(self) -> Subject:
        """The items of `random` with soft labels of a network trained on real data.

        What labels alone are worth; stands beside every method that uses soft labels. Source: Qin et al., A Label
        is Worth a Thousand Images in Dataset Distillation, NeurIPS 2024.
        """
        return self.random_taught("label-only", TeacherLabels)

    def random_taught(self, name: str, kind: type[TeacherLabels], **options: Any) -> Subject:
        """The items of `random` with taught labels of any kind."""
        real, info = self.task.train, self.task.info

        def make(repeat: int) -> Material:
            x, classes = _random_items(_budget(self.syn, real), real, self.streams, repeat, self.device)
            labels = kind(classes.cpu(), info.num_classes, **options)
            rows, items, views = labels.expand(info, x, torch.arange(len(x)))
            streams = self.streams.child("labels of random items", repeat)
            labels.teach(Lesson(self.teacher, rows, items, views, self._augmentation, streams))
            return Material.of(rows, labels.targets(items, views).to(self.device), labels)

        note = (
            f"the random items with soft labels of a {self._teacher_name} trained {self._training.steps} steps on "
            f"all {len(real)} rows"
        )
        return Subject(name, sum(_budget(self.syn, real)), make, note, varies=True)

    def _augmentation(self, name: str) -> Augmentation | None:
        return self.domain.augmentation(name, self.task.info)

    def recipe(self, protocol: str = "", epochs: int | None = None) -> Recipe:
        """An evaluation recipe as it is used for this set; the set's own when none is named."""
        found: Recipe = registry().load("protocol", protocol or self.syn.protocol, "the protocol")
        found = found.for_dataset(self.task.info.dataset).for_set(self.syn.training).with_epochs(epochs)
        if isinstance(found, Protocol) and found.choose and self.task.validation is None:
            return replace(found, choose=0, name=f"{found.name}, last epoch")
        return found

    def tables(self, networks: Sequence[str] = (), protocol: str = "", epochs: int | None = None) -> list[Measurement]:
        """The set and its baselines for each network; see `evaluate`."""
        recipe = self.recipe(protocol, epochs)
        if isinstance(recipe, RidgeProtocol):
            if networks:
                raise ConfigError(
                    f"{recipe.name} trains no network, so it cannot take {', '.join(networks)}; name none"
                )
            return self.table(recipe.kernel, recipe)
        names = tuple(networks) or (self.domain.default_judge(self.task.info),)
        for network in names:
            with isolated(0):
                self.domain.network(network, self.task.info)  # a wrong name is found before an hour is spent
        return [row for network in names for row in self.table(network, recipe)]

    def table(self, network: str, recipe: Recipe) -> list[Measurement]:
        """The set and its baselines under one network and recipe; only what was made in stages is trained in them."""
        subjects, plain = [(self.synthetic(), recipe)], recipe.unstaged()
        if isinstance(recipe, Protocol) and recipe.probe:
            bare = replace(self.synthetic(), name="untrained", items=0, note="the network as it is built, probed alike")
            subjects.append((bare, replace(recipe, epochs=0)))
        if "random" in self.beside:
            subjects.append((self.random(), plain))
            if self.syn.redraws:
                rows = same_rows_subject(self.syn, self.task.train, self.streams, self.device)
                subjects.append((rows, plain))
        subjects += [(self.selected(one), plain) for one in self.beside if one not in BASELINES]
        if "label-only" in self.beside:
            subjects.append((self.label_only(), plain))
        if "full" in self.beside:
            subjects.append(_full(self.syn, self.task, plain, self.device))
        return [self.measure(subject, network, how) for subject, how in subjects]

    def _check_labels(self, recipe: Recipe) -> None:
        """Representations name no class, so a network that learned them must be probed."""
        if self.syn.labels.represents and not (isinstance(recipe, Protocol) and recipe.probe):
            raise ConfigError(
                f"the labels of this set are representations, and {recipe.name} tests a network's own classes. Use a "
                f"protocol that probes features, such as E-ssl."
            )

    @cached_property
    def _known(self) -> list[Measurement]:
        return list(self.known)

    def measure(self, subject: Subject, network: str, recipe: Recipe) -> Measurement:
        self._check_labels(recipe)
        if self._known:
            row = self._known.pop(0)
            if (row.subject, row.network, row.protocol) == (subject.name, network, recipe.name):
                return row
            self._known.clear()  # of another table
        row = self._measured(subject, network, recipe)
        self.on_row(row)
        return row

    def _measured(self, subject: Subject, network: str, recipe: Recipe) -> Measurement:
        return measure(
            subject,
            self.task,
            self.domain,
            network,
            recipe,
            self.repeats,
            self.streams,
            self.device,
            self.report,
        )


def evaluate(
    syn: SyntheticSet,
    task: Task,
    domain: Domain,
    *,
    name: str = "distilled",
    networks: Iterable[str] = (),
    protocol: str = "",
    epochs: int | None = None,
    repeats: int = 3,
    baselines: Iterable[str] | None = None,
    teacher_steps: int | None = None,
    streams: Streams | None = None,
    device: torch.device | None = None,
    report: Report | None = None,
    known: Sequence[Measurement] = (),
    on_row: Callable[[Measurement], None] = lambda row: None,
) -> list[Measurement]:
    """The table of a set: itself, random items of its budget, the same softly labelled, and full data.

    Args:
        syn: the set.
        task: the data it was made from; its space must agree with the set's.
        domain: modality adapter.
        name: what the table calls the set.
        networks: networks to train; the domain's default when empty (more make the cross-architecture table).
        protocol: evaluation recipe; the set's own when empty.
        epochs: overrides the recipe's, and is said in the protocol's name.
        repeats: fresh networks per row.
        baselines: of ``"random"``, ``"label-only"``, ``"full"`` and selectors, as wanted; the domain's when None.
        teacher_steps: of the first network on real data, once, for the soft labels of "label-only"; see `Bench`.
        streams: randomness; seed 0 by default.
        device: the CPU by default.
        report: called with (text, epoch, epochs) as training goes.
        known, on_row: see `Bench`; together they let a table go on where it was stopped.

    Raises:
        ArtifactError: the set and the data disagree in shape, classes or space.
        ConfigError: an unknown baseline, or a recipe that cannot take the networks or epochs asked for, or that
            needs a step size which the set does not carry.
        UnknownNameError: no such protocol or network.
    """
    wanted = tuple(networks)
    bench = Bench(
        syn,
        task,
        domain,
        name,
        repeats,
        None if baselines is None else tuple(baselines),
        teacher_steps,
        wanted[0] if wanted else "",
        streams or Streams(0),
        device or torch.device("cpu"),
        report,
        known,
        on_row,
    )
    return bench.tables(wanted, protocol, epochs)


def _full(syn: SyntheticSet, task: Task, recipe: Recipe, device: torch.device) -> tuple[Subject, Recipe]:
    """Full data at the number of gradient steps that the recipe spends on the set.

    The recipe's epochs over full data would be hundreds of times the work; equal steps are affordable and
    still an upper reference. A regression takes as many rows as its kernel may have. The row says so.
    """
    if isinstance(recipe, RidgeProtocol):
        some = task.limit(max(recipe.most, task.info.num_classes), None).train
        cut = f"{len(some)} of {len(task.train)} rows, taken from each class in turn"
        note = cut if len(some) < len(task.train) else f"all {len(some)} rows"
        return full_subject(some, device, note), recipe
    full = recipe.on_full_data(len(syn.decoded()[0]), len(task.train))
    note = f"{full.epochs} epochs over all {len(task.train)} rows, about as many steps as on the set"
    return full_subject(task.train, device, note), full


def check_baseline(name: str) -> None:
    """Refuse a row that does not exist, or an odd number of items.

    Raises:
        ConfigError, UnknownNameError: says what is possible.
    """
    if name in BASELINES:
        return
    selector, colon, asked = name.partition(":")
    known = list(dict.fromkeys([*BASELINES, *registry().names("selector")]))
    if selector not in registry().names("selector"):
        raise ConfigError(f"unknown baseline {name!r}.{suggest(name, known)} Possible: {one_of(known)}")
    if colon and not (asked.isdigit() and int(asked)):
        raise ConfigError(
            f"baseline {name!r}: after the colon stands the number of items of each class, as in 'random:1'"
        )


def check_fits(syn: SyntheticSet, task: Task) -> None:
    """Refuse a set made for other data or another space.

    Raises:
        ArtifactError: says what differs.
    """
    if not len(task.test):
        raise DataError(f"{task.info.dataset!r} has no test rows to evaluate on")
    for what, mine, theirs, fits in (
        ("shape", syn.info.shape, task.info.shape, syn.info.shape == task.info.shape),
        ("classes", syn.info.classes, task.info.classes, syn.info.classes == task.info.classes),
        ("space", syn.info.space, task.info.space, syn.info.space.agrees(task.info.space)),
    ):
        if not fits:
            raise ArtifactError(
                f"the set's {what} is {mine}, the data's is {theirs}; evaluate on the data set it was made from "
                f"({syn.info.domain}/{syn.info.dataset}) with the same options"
            )
