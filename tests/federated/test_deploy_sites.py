"""Sites that come and go and hold data of their own, without any process: scripted grids and grids in this process."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import context_to_proto
from flwr.supercore.task_identity import TaskIdentity

import ddfed
from ddfed.artifact import SyntheticSet
from ddfed.config import Layer, to_toml
from ddfed.errors import ConfigError, FederationError
from ddfed.runs import RunFolder
from ddfed_federated.deploy import running
from ddfed_federated.flower import roster as rosters
from ddfed_federated.flower.control import Outcome
from ddfed_federated.flower.grid import LocalGrid
from ddfed_federated.flower.roster import Roster
from ddfed_federated.report import federated_page
from ddfed_federated.rounds import Progressing
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import check_deployed, simulate
from ddfed_federated.worker import load_task

APP = "ddfed_federated.flower.client_app:app"


class Changing:
    """A grid whose nodes change between looks; ``who`` says which client a node is, or answers in its place."""

    poll = 0.001

    def __init__(self, *looks, who):
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.looks, self.who, self.open, self.asked, self.silent = list(looks), who, {}, [], set()

    def get_node_ids(self):
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def push_messages(self, messages):
        for message in messages:
            number = f"m{len(self.asked)}"
            message.metadata.__dict__["_message_id"] = number
            self.open[number] = message
            self.asked.append(message.metadata.dst_node_id)
            yield number

    def pull_messages(self, ids):
        for number in list(ids):
            message = self.open[number]
            if message.metadata.dst_node_id not in self.silent:
                yield self.answer(message)

    def answer(self, message):
        said = self.who[message.metadata.dst_node_id]
        if isinstance(said, Error):
            return Message(said, reply_to=message)
        client, version = said if isinstance(said, tuple) else (said, ddfed.__version__)
        content = {"hello": MetricRecord({"partition": client}), "about": ConfigRecord({"version": version})}
        return Message(RecordDict(content), reply_to=message)


def test_nobody_is_asked_twice_where_nothing_changes():
    grid = Changing([7, 5], who={5: 0, 7: 1})
    roster = Roster(grid, 2)
    assert [roster.refresh() for _ in range(3)] == [[], [], []]
    assert dict(roster) == {0: 5, 1: 7} and list(roster) == [0, 1]
    assert sorted(grid.asked) == [5, 7]


def test_nodes_leave_come_back_and_join():
    who = {5: 0, 7: 1, 9: 2}
    grid = Changing([5, 7], [5, 7], [5], [5, 7], [5, 7, 9], who=who)
    roster = Roster(grid, 2)
    told = [roster.refresh() for _ in range(4)]
    assert told == [[], ["client 1 has left"], ["client 1 has joined"], ["client 2 has joined"]]
    # One that comes back may have been installed anew meanwhile, so it says its version again.
    assert grid.asked == [5, 7, 7, 9]
    assert dict(roster) == who_to_nodes(who)


def who_to_nodes(who):
    return {client: node for node, client in who.items()}


def test_a_node_that_joins_takes_the_place_of_the_client_it_is():
    grid = Changing([5, 7], [5, 7, 9], who={5: 0, 7: 1, 9: 1})
    roster = Roster(grid, 2)
    assert roster.refresh() == ["client 1 is another node now"]
    # The SuperLink counts on a dead node for a minute; it must not get its place back by being listed.
    assert roster.refresh() == [] and dict(roster) == {0: 5, 1: 9}


def test_a_node_of_another_version_or_a_broken_one_is_left_out_and_not_asked_again():
    grid = Changing([5], [5, 7, 9], who={5: 0, 7: (1, "0.0.1"), 9: Error(1001, "no partition id")})
    roster = Roster(grid, 1)
    told = roster.refresh()
    assert len(told) == 2 and "runs ddfed 0.0.1" in told[0] and "no partition id" in told[1]
    assert roster.refresh() == [] and dict(roster) == {0: 5} and grid.asked == [5, 7, 9]


def test_a_joining_node_that_is_slow_to_answer_keeps_the_round_only_so_long(monkeypatch):
    monkeypatch.setattr(rosters, "_HELLO_S", 0.02)
    grid = Changing([5], [5, 7], who={5: 0, 7: 1})
    roster = Roster(grid, 1)
    grid.silent.add(7)
    assert roster.refresh() == [] and roster.refresh() == []
    assert grid.asked == [5, 7]
    grid.silent.clear()
    assert roster.refresh() == ["client 1 has joined"] and dict(roster) == {0: 5, 1: 7}


def test_a_federation_without_nodes_waits_and_then_says_what_to_do(monkeypatch):
    grid = Changing([5], [], [], [5], who={5: 0})
    roster = Roster(grid, 1)
    assert roster.refresh() == ["client 0 has left", "client 0 has joined"]
    monkeypatch.setattr(rosters, "_EMPTY_S", 0.05)
    grid.looks = [[]]
    with pytest.raises(FederationError, match=r"no node has been there for 0.05 s; .* resume the run"):
        roster.refresh()


# --- data of one's own ----------------------------------------------------------------------------------------------


def settings(**sections):
    base = {
        "baselines": [],
        "data": {"train_limit": 300, "test_limit": 100},
        "distill": {"ipc": 2, "steps": 2, "network": "convnet-d2-w16", "min_count": 1},
        "server": {"epochs": 2},
        "federation": {"clients": 2, "rounds": 1},
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


def deployed(chosen, tmp_path, data=()):
    """A run whose sites are nodes in this process, each with a data folder of its own."""

    def backend(serve, s):
        with LocalGrid(APP, s.federation.clients) as grid:
            for node, place in zip(grid.get_node_ids(), data):
                context = grid.context(node)
                context.node_config["data"] = str(place)
                grid._contexts[node] = context_to_proto(context).SerializeToString()
            serve(grid)

    with RunFolder.create(tmp_path, "run", to_toml(chosen)) as folder:
        return simulate(chosen, folder, backend=backend, surveyed=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A server's folder and two sites', of different brightness and size."""
    image = pytest.importorskip("PIL.Image")
    base, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, count, bright in (("server", 5, 128), ("a", 6, 60), ("b", 9, 200)):
        for split in ("train", "test"):
            for number, label in enumerate(("cat", "dog")):
                folder = base / name / split / label
                folder.mkdir(parents=True)
                for i in range(count + number):
                    pixels = np.clip(rng.normal(bright, 25, (8, 8, 3)), 0, 255).astype(np.uint8)
                    image.fromarray(pixels).save(folder / f"{i}.png")
    return base


def own(pictures, name="server"):
    return {"data": {"dataset": "folder", "root": str(pictures / name), "train_limit": None, "test_limit": None}}


def test_sites_distil_their_own_folders_in_the_space_of_the_server(pictures, tmp_path):
    chosen = settings(**own(pictures), federation={"partition": "own"})
    summary = deployed(chosen, tmp_path, [pictures / "a", pictures / "b"])
    assert summary["partition"]["counts"] == [[6, 7], [9, 10]] and summary["partition"]["units"] == [13, 19]
    [run] = tmp_path.glob("*-run")
    syn = SyntheticSet.load(run)
    page = federated_page(summary, load_task(chosen)[0], syn).save(tmp_path / "report.html")
    assert "own" in page.read_text()
    natural, _ = syn.natural()
    owner = torch.tensor(syn.provenance["federated"]["client_of_item"])
    # Site a is dark and b bright: were each standardised by its own mean, both would look alike here.
    assert natural[owner == 0].mean() * 255 == pytest.approx(60, abs=12)
    assert natural[owner == 1].mean() * 255 == pytest.approx(200, abs=12)


def test_sites_that_read_other_files_than_the_server_are_refused_unless_they_are_their_own(pictures, tmp_path):
    data = {**own(pictures)["data"]}
    with pytest.raises(FederationError, match=r"client 1 reads other training data .* federation.partition = 'own'"):
        deployed(settings(data=data, federation={"partition": "iid"}), tmp_path, [pictures / "server", pictures / "a"])


def test_sites_with_other_classes_are_refused(pictures, tmp_path):
    other = shutil.copytree(pictures / "server", tmp_path / "other")
    for split in ("train", "test"):
        (other / split / "cat").rename(other / split / "horse")
    chosen = settings(**own(pictures), federation={"partition": "own"})
    with pytest.raises(
        FederationError, match=r"client 1 have items .* in classes dog, horse; those of the server .* cat, dog"
    ):
        deployed(chosen, tmp_path, [pictures / "a", other])


def test_a_site_without_its_folder_says_so(pictures, tmp_path):
    chosen = settings(**own(pictures), federation={"partition": "own"})
    with pytest.raises(FederationError, match="a client failed before the first round: .*nowhere"):
        deployed(chosen, tmp_path, [pictures / "a", pictures / "nowhere"])


def test_sites_with_the_same_files_give_the_numbers_of_a_simulation(tmp_path):
    chosen = settings()
    with RunFolder.create(tmp_path, "here", to_toml(chosen)) as folder:
        here = simulate(chosen, folder)
    there = deployed(chosen, tmp_path)
    assert there["artifact"] == here["artifact"] and there["partition"] == here["partition"]


def test_own_data_must_be_separate_rows_and_have_no_references(pictures):
    check_deployed(settings(**own(pictures), federation={"partition": "own"}))
    with pytest.raises(ConfigError, match="references = local needs real rows at the server"):
        check_deployed(settings(**own(pictures), federation={"partition": "own"}, references=["local"]))
    data = {**own(pictures)["data"], "options": {"whitening": "mtt"}}
    with pytest.raises(ConfigError, match="separate rows without whitening"):
        check_deployed(settings(data=data, federation={"partition": "own"}))


# --- the truth about a run ------------------------------------------------------------------------------------------


class Told:
    """In Control's place: a SuperLink that says how a run stands."""

    def __init__(self, *outcomes):
        self.outcomes, self.started, self.stopped = list(outcomes), None, []

    def start(self, app, config):
        self.started = config
        return 17

    def outcome(self, number):
        assert number == 17
        said = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(said, BaseException):
            raise said
        return said

    def stop(self, number):
        self.stopped.append(number)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_LOOK_S", 0.0)
    return RunFolder.create(tmp_path, "run", "")


def see(control, folder, notes=None):
    return running.run(control, folder.path, folder, Progressing(), (notes if notes is not None else []).append)


RUNNING, DONE = Outcome("running", "", ""), Outcome("finished", "completed", "")


def test_a_run_is_done_only_when_it_completed_and_its_summary_is_there(folder):
    with pytest.raises(FederationError, match="has no summary"):
        see(Told(RUNNING, DONE), folder)
    folder.write_summary({"status": "finished", "answer": 42})
    control = Told(RUNNING, RUNNING, DONE)
    assert see(control, folder)["answer"] == 42 and control.stopped == []
    assert control.started == {"run-folder": str(folder.path.resolve())}


@pytest.mark.parametrize("how", ["failed", "stopped"])
def test_a_run_that_failed_is_an_error_also_with_a_summary_left_from_before(folder, how):
    folder.write_summary({"status": "finished"})
    folder.checkpoint({"x": torch.zeros(1)})
    with pytest.raises(FederationError, match=rf"(?s)the run {how}: ServerApp failed.*--resume"):
        see(Told(RUNNING, Outcome("finished", how, "ServerApp failed")), folder)


def test_ctrl_c_stops_the_run_and_a_superlink_that_is_gone_says_how_to_go_on(folder):
    control = Told(RUNNING, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        see(control, folder)
    assert control.stopped == [17]
    with pytest.raises(FederationError, match="(?s)nobody answers.*No round was finished"):
        see(Told(FederationError("nobody answers")), folder)


def test_changes_of_nodes_are_told_once(folder):
    folder.write_summary({"status": "finished"})
    folder.event("nodes", method="feddm", round=2, change="client 1 has left")
    notes = []
    see(Told(RUNNING, DONE), folder, notes)
    assert notes == ["Flower run 17 started"]

    class Later(Told):
        def outcome(self, number):
            folder.event("nodes", method="feddm", round=3, change="client 1 has joined")
            return super().outcome(number)

    see(Later(RUNNING, DONE), folder, notes)
    assert notes[2:] == ["feddm, before round 3: client 1 has joined"]
