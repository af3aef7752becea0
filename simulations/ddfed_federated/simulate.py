"""A federated run: the method and its baselines on one split, on one back end, saved after every round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ddfed.artifact import SyntheticSet
from ddfed.central import task_facts, versions
from ddfed.data import RealData, Task
from ddfed.devices import keep_memory, resolve_device
from ddfed.domain import Domain
from ddfed.errors import ConfigError, FederationError
from ddfed.ledger import Ledger
from ddfed.registry import registry
from ddfed.runs import RunFolder
from ddfed.store import HardLabels, Pixels
from ddfed_federated.efficiency import to_targets
from ddfed_federated.fairness import per_client
from ddfed_federated.forgetting import Probe, forget
from ddfed_federated.measures import heterogeneity, kept_ties
from ddfed_federated.methods import ServerContext, ServerState
from ddfed_federated.partition import Partition
from ddfed_federated.probe import measured, measured_sets
from ddfed_federated.references import check_references, refer
from ddfed_federated.rounds import Progressing, RoundRow, Rounds, union_of
from ddfed_federated.settings import SimulateSettings, options_of, settings_of
from ddfed_federated.skew import NONE, check_skew, recorded, seen_by
from ddfed_federated.targets import Targets
from ddfed_federated.worker import load_partition, load_task

if TYPE_CHECKING:
    from ddfed_federated.flower.roster import Roster
    from ddfed_federated.flower.survey import Survey


def simulate(
    settings: SimulateSettings,
    folder: RunFolder,
    progress: Progressing | None = None,
    resume: bool = False,
    backend: Callable[[Callable[[Any], None], SimulateSettings], None] | None = None,
    surveyed: bool = False,
) -> dict[str, Any]:
    """Run the method and its baselines.

    Args:
        settings: complete and checked.
        folder: where the run writes itself down.
        progress: told of replies and rounds.
        resume: go on from the folder's checkpoint; the numbers equal the uninterrupted run's.
        backend: where it runs, called with the server's part and the settings; None for the one they name.
        surveyed: whether clients read data of their own, which are then looked at before the first round.

    Returns:
        The summary, also written to ``summary.json``; the main method's last union is saved as an artifact.

    Raises:
        DataError, ConfigError: before anything is started.
        FederationError: no round of the main method had a valid release.
    """
    keep_memory()
    torch.set_num_threads(settings.federation.server_threads)
    domain, task = load_task(settings)
    check_skew(settings, domain, task.info)
    if surveyed and settings.federation.partition == "own":
        settings = _in_one_space(settings, task)
    survey = _survey(settings, task) if surveyed else None
    partition = load_partition(settings) if survey is None else survey.partition()
    _check_methods(settings, domain, task)
    if settings.federation.partition != "own":
        _check_shares(settings, partition)
    check_references(settings.references, task, partition)
    folder_state = folder.load_checkpoint() if resume and folder.has_checkpoint else None
    run = _Run(settings, domain, task, partition, folder, progress or Progressing(), folder_state, survey)
    run_on = backend or registry().load("backend", settings.federation.backend, "federation.backend")
    begun = time.perf_counter()
    run_on(run.main, settings)
    return run.finish(time.perf_counter() - begun)


def _in_one_space(settings: SimulateSettings, task: Task) -> SimulateSettings:
    """Settings that make all sites use the server's space: sets in different ones cannot be merged.

    Raises:
        ConfigError: the data are more than rows in an affine space.
    """
    space = task.info.space
    if type(task.train) is not RealData or space.whitening:
        raise ConfigError(
            f"the split 'own' is for separate rows without whitening, which {task.info.dataset!r} with these settings "
            f"are not: what is measured on all rows would differ between sites"
        )
    options = {"space": {"mean": list(space.mean), "std": list(space.std)}}
    federation = settings.federation.model_copy(update={"partition_options": options})
    return settings.model_copy(update={"federation": federation})


def _survey(settings: SimulateSettings, task: Task) -> Survey:
    from ddfed_federated.flower.survey import Survey

    return Survey(settings, task)


def check_simulate(settings: SimulateSettings) -> None:
    """Everything that can be known to be wrong before a run folder or a client exists.

    Raises:
        DdfedError: says what is wrong.
    """
    resolve_device(settings.run.device)
    domain, task = load_task(settings)
    check_skew(settings, domain, task.info)
    domain.augmentation(settings.server.augment, task.info)
    _check_methods(settings, domain, task)
    _check_shares(settings, load_partition(settings))
    check_references(settings.references, task, load_partition(settings))
    for where, texts in (("forget", settings.forget), ("federation.without", settings.federation.without)):
        Targets.parse(texts).check(settings.federation.clients, task.info.num_classes, where)


def _check_methods(settings: SimulateSettings, domain: Domain, task: Task) -> None:
    """Refuse what the method or a baseline cannot work with."""
    for name in dict.fromkeys([settings.method, *settings.baselines]):
        own = settings_of(settings, name)
        method = registry().load("federated", name)
        options = None if method.control else options_of(own)
        context = ServerContext.of(own, domain, task, options)
        for network in dict.fromkeys([own.distill.network, *own.federation.networks]):
            domain.network(network or domain.default_network(task.info), task.info)
        method.check(context)


def check_deployed(settings: SimulateSettings) -> None:
    """As `check_simulate`, for a federation whose sites may hold their own data.

    Raises:
        DdfedError: says what is wrong.
    """
    if settings.federation.partition != "own":
        check_simulate(settings)
        return
    resolve_device(settings.run.device)
    domain, task = load_task(settings)
    check_skew(settings, domain, task.info)
    domain.augmentation(settings.server.augment, task.info)
    _check_methods(settings, domain, task)
    _in_one_space(settings, task)
    for asked in ("references", "forget"):
        if getattr(settings, asked):
            raise ConfigError(
                f"{asked} = {', '.join(getattr(settings, asked))} needs real rows at the server, and the sites of the "
                f"split 'own' keep theirs to themselves; leave it out"
            )


def _check_shares(settings: SimulateSettings, partition: Partition) -> None:
    """Refuse a split in which no client holds enough rows of any class to distil."""
    sends_sets = registry().load("federated", settings.method).sends_sets
    largest, needed = int(partition.counts.max()), settings.distill.min_count
    if sends_sets and largest < needed:
        raise ConfigError(
            f"no client holds {needed} rows of any class, the least that {settings.method!r} distils: "
            f"{partition.clients} clients share {partition.rows} rows, and the largest share of a class is {largest}. "
            f"Ask for fewer clients, or set distill.min_count to {largest} or less."
        )


def packed(state: ServerState) -> dict[str, Any]:
    """The server's state as checkpoints hold it."""
    return {"round": state.round, "weights": state.weights, "memory": state.memory}


class _Run:
    """State of a run between methods; `main` is what a back end calls with its grid."""

    def __init__(
        self,
        settings: SimulateSettings,
        domain: Domain,
        task: Task,
        partition: Partition,
        folder: RunFolder,
        progress: Progressing,
        saved: dict[str, Any] | None,
        survey: Survey | None,
    ) -> None:
        self.settings, self.domain, self.task, self.partition = settings, domain, task, partition
        self.folder, self.progress = folder, progress
        self.plan = list(dict.fromkeys([settings.method, *settings.baselines]))
        self.rows: dict[str, list[RoundRow]] = {name: [] for name in self.plan}
        self.union: dict[str, Any] | None = None
        self.clients: dict[str, dict[str, Any]] = {}
        self.forgotten: dict[str, Any] | None = None
        #: the main method's end, which is what a finished run forgets from; None for a method that cannot
        self.trained: dict[str, Any] | None = None
        self.saved, self.survey = saved, survey
        if saved:
            for name, rows in saved["rows"].items():
                self.rows[name] = [RoundRow.from_json(row) for row in rows]
            self.union, self.clients = saved["union"], saved["clients"]
            self.forgotten, self.trained = saved["forgotten"], saved.get("trained")
            done = {(row.method, row.round) for rows in self.rows.values() for row in rows}
            folder.truncate_events(lambda e: e["kind"] != "round" or (e["method"], e["round"]) in done)

    def main(self, grid: Any) -> None:
        """Hold all rounds of all methods."""
        from ddfed_federated.flower.roster import Roster

        nodes = Roster(grid, self.settings.federation.clients, self.survey)
        if self.survey is not None:
            self.partition = self.survey.partition()
        (self.folder.path / "partition.json").write_text(self.partition.to_json(), encoding="utf-8")
        for name in self.plan:
            self._method(name, grid, nodes)

    def _method(self, name: str, grid: Any, nodes: Roster) -> None:
        settings = settings_of(self.settings, name)
        progress = replace(self.progress, finished=self._finished(self.progress))
        rounds = Rounds(settings, self.domain, self.task, grid, nodes, progress)
        forgets = bool(self.settings.forget) and name == self.plan[0] and self.forgotten is None
        if self.rows[name] and self.rows[name][-1].round >= rounds.last and not forgets:
            return
        if self.saved and self.saved["method"] == name:
            if settings.federation.backend == "deployed" and rounds.method.remembers(settings):
                raise FederationError(
                    f"clients of {name!r} remember their last round, and Flower keeps that for one run only: a "
                    f"deployed run of it cannot be resumed; start it anew"
                )
            saved = self.saved["state"]
            state = ServerState(saved["round"], saved["weights"], saved["memory"])
            rounds.resume(self.saved["rounds"])
        else:
            state = rounds.begin()
        setting_up = bool(rounds.method.setup) and not self.rows[name]
        while setting_up or state.round < rounds.last:
            for change in nodes.refresh():
                self.folder.event("nodes", method=name, round=state.round + 1, change=change)
            state, row = rounds.set_up(state) if setting_up else rounds.hold(state)
            setting_up = False
            self.rows[name].append(row)
            if name == self.plan[0]:
                self._keep_union(state)
            if state.round >= rounds.last:
                self.clients[name] = self._per_client(rounds, state)
                if name == self.plan[0] and rounds.method.forgets is not None:
                    self.trained = {"state": packed(state), "rounds": rounds.remember()}
            self._save(name, state, rounds)
        if forgets:
            self._forget(name, state, rounds)

    def _forget(self, name: str, state: ServerState, rounds: Rounds) -> None:
        """Let the main method forget; done again from its start where it was interrupted."""
        targets, federation = Targets.parse(self.settings.forget), rounds.settings.federation
        self.folder.truncate_events(lambda e: e["kind"] != "forgetting")
        less = federation.model_copy(update={"without": (*federation.without, *self.settings.forget)})
        settings = rounds.settings.model_copy(update={"federation": less})
        self.forgotten = forget(
            replace(rounds, progress=self._aside(f"{name} forgets {targets}", state.round)),
            state,
            self.rows[name],
            replace(rounds, settings=settings, progress=self._aside(f"{name} without {targets}")),
            Probe.of(self.task, self.partition, targets),
            targets,
        )
        self._save(name, state, rounds)

    def _aside(self, label: str, before: int = 0) -> Progressing:
        """Progress of rounds that are not the run's own, under a name of theirs; ``before`` rounds are not shown."""

        def finished(row: RoundRow) -> None:
            row = replace(row, method=label)
            self.folder.event("forgetting", **row.to_json())
            self.progress.finished(replace(row, round=row.round - before))

        return Progressing(lambda _, number, *rest: self.progress.replied(label, number - before, *rest), finished)

    def _per_client(self, rounds: Rounds, state: ServerState) -> dict[str, Any]:
        """How the last global model serves each client; empty where there is none, but one model a client."""
        if rounds.method.personal:
            return {}
        skewed = self.settings.federation.skew != NONE
        seeing = partial(seen_by, settings=self.settings) if skewed else None
        return per_client(rounds.context.network(state.weights), self.task, self.partition, seeing)

    def _finished(self, progress: Progressing) -> Any:
        def finished(row: RoundRow) -> None:
            self.folder.event("round", **row.to_json())
            progress.finished(row)

        return finished

    def _keep_union(self, state: ServerState) -> None:
        union = union_of(state)
        if union:
            self.union = {"x": union[0], "y": union[1], "clients": union[2], "round": state.round}

    def _save(self, name: str, state: ServerState, rounds: Rounds) -> None:
        self.folder.checkpoint(
            {
                "method": name,
                "state": packed(state),
                "rounds": rounds.remember(),
                "rows": {k: [row.to_json() for row in rows] for k, rows in self.rows.items()},
                "union": self.union,
                "clients": self.clients,
                "forgotten": self.forgotten,
                "trained": self.trained,
            }
        )

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write the artifact and the summary."""
        main = self.rows[self.plan[0]]
        if all(row.note for row in main):
            reasons = sorted({reason for row in main for reason in row.lost})[:3]
            raise FederationError(
                f"no round of {self.plan[0]!r} had a valid release; "
                + (f"the clients said: {'; '.join(reasons)}" if reasons else "no client holds enough records")
            )
        privacy = self._ledger()
        artifact = self._artifact(privacy)
        if artifact is not None:
            artifact.save(self.folder.path)
        context, wanted = ServerContext.of(self.settings, self.domain, self.task), self.settings.references
        methods = {name: self._method_summary(name) for name in self.plan}
        summary = {
            "kind": "federated",
            "status": "finished",
            "task": task_facts(self.task),
            "seed": self.settings.run.seed,
            "settings": self.settings.model_dump(mode="json"),
            "partition": {
                "scheme": self.partition.scheme,
                "options": dict(self.partition.options),
                "hash": self.partition.hash,
                "skew": recorded(self.settings),
                "counts": self.partition.counts.tolist(),
                "measures": self._measures(context),
                "sets": measured_sets(context, self.union, self.partition.clients) if self.union else {},
                "units": [len(share) for share in self.partition.shares],
                "ties": self._ties(),
            },
            "methods": methods,
            "targets": to_targets({name: m["rows"] for name, m in methods.items()}, self.settings.targets),
            "references": {name: refer(name, context, self.partition) for name in dict.fromkeys(wanted)},
            "forgetting": self.forgotten,
            "artifact": artifact.content_hash if artifact is not None else None,
            "privacy": {"statement": privacy.statement(), "events": privacy.to_json()},
            "seconds": round(seconds, 2),
            "versions": versions(),
        }
        self.folder.write_summary(summary)
        return summary

    def _measures(self, context: ServerContext) -> dict[str, float | None]:
        """How unequal the clients are; of rows that sites keep to themselves, as far as counts tell."""
        if self.settings.federation.partition == "own":
            return {**heterogeneity(self.partition.counts)}
        return measured(context, self.partition)

    def _method_summary(self, name: str) -> dict[str, Any]:
        rows, component = self.rows[name], registry().get("federated", name)
        return {
            "title": component.summary,
            "citation": component.facts.get("citation", ""),
            "accuracy": rows[-1].accuracy,
            "bytes_up": sum(row.up for row in rows),
            "bytes_down": sum(row.down for row in rows),
            "clients": self.clients[name],
            "real_seeds": rows[-1].real_seeds,
            "seconds": round(sum(row.seconds for row in rows), 2),
            "rows": [row.to_json() for row in rows],
        }

    def _ties(self) -> dict[str, list[int]]:
        """What ties rows, as [kept, all]; sites with data of their own have no ties to count."""
        if self.settings.federation.partition == "own":
            return {}
        return {name: list(both) for name, both in self.task.train.ties(self.partition.shares).items()}

    def _ledger(self) -> Ledger:
        """What the main method's clients say was asked of their records."""
        ledger = Ledger()
        for row in self.rows[self.plan[0]]:
            ledger.merge(Ledger.from_json(list(row.ledger)))
        return ledger

    def _artifact(self, ledger: Ledger) -> SyntheticSet | None:
        if self.union is None:
            return None
        info, union = self.task.info, self.union
        store = Pixels(info, union["y"])
        store.load({"x": union["x"]})
        return SyntheticSet(
            info=info,
            store=store,
            labels=HardLabels(union["y"], info.num_classes),
            protocol=self.settings.distill.protocol,
            provenance={
                "recipe": self.plan[0],
                "federated": {
                    "round": union["round"],
                    "client_of_item": union["clients"],
                    **({"ties": self._ties(), "kept": kept_ties(self._ties())} if self._ties() else {}),
                },
                "settings": self.settings.model_dump(mode="json"),
                "seed": self.settings.run.seed,
                "data_sha256": self.task.train.content_hash,
                "partition_sha256": self.partition.hash,
                "torch": torch.__version__,
            },
            privacy={"statement": ledger.statement(), "events": ledger.to_json()},
        )
