"""Who can be asked: clients by partition id, while nodes leave, come back and join."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ddfed.errors import FederationError
from ddfed_federated.flower.loop import collect, introduced, wait_for_nodes

if TYPE_CHECKING:
    from ddfed_federated.flower.survey import Survey

#: Seconds until all clients of a run must be there.
_START_S = 300.0
#: Seconds a node that joins has to say who it is; a SuperNode starts a process for it.
_HELLO_S = 30.0
#: Seconds a round waits for a node when there is none at all.
_EMPTY_S = 180.0


class Roster(Mapping[int, int]):
    """Partition id -> node id of those who are there now.

    In a simulation nobody comes or goes. In a deployment a SuperNode that was killed drops out once the SuperLink
    misses it, and one that joins takes the place of whoever was the same client before.

    Args:
        grid: any grid.
        clients: how many must be there at the start.
        survey: asks sites about their data; none in a simulation.

    Raises:
        FederationError: as `wait_for_nodes`, or a site's data do not fit.
    """

    def __init__(self, grid: Grid, clients: int, survey: Survey | None = None) -> None:
        self._grid, self._survey = grid, survey
        self._nodes = wait_for_nodes(grid, clients, timeout=_START_S, hello=self._hello, heard=self._heard)
        self._strangers: set[int] = set()
        self._hellos: dict[str, int] = {}

    def __getitem__(self, client: int) -> int:
        return self._nodes[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def _hello(self) -> RecordDict:
        return RecordDict() if self._survey is None else self._survey.question

    def _heard(self, client: int, reply: Message) -> None:
        if self._survey is not None:
            self._survey.hear(client, reply)

    def refresh(self) -> list[str]:
        """Look who is there, and ask those who are new who they are; call between rounds.

        Returns:
            What changed, in words.

        Raises:
            FederationError: nobody is there, and nobody came for some minutes.
        """
        end = time.monotonic() + _EMPTY_S
        told = self._look()
        while not self._nodes:
            if time.monotonic() > end:
                raise FederationError(
                    f"no node has been there for {_EMPTY_S:g} s; start them again, then resume the run"
                )
            time.sleep(float(getattr(self._grid, "poll", 0.1)))
            told += self._look()
        return told

    def _look(self) -> list[str]:
        there = set(self._grid.get_node_ids())
        told = [f"client {k} has left" for k, node in self._nodes.items() if node not in there]
        self._nodes = {k: node for k, node in self._nodes.items() if node in there}
        self._strangers &= there
        self._hellos = {i: node for i, node in self._hellos.items() if node in there}
        for reply in self._introductions(there):
            told.append(self._admit(reply))
        return told

    def _introductions(self, there: set[int]) -> list[Message]:
        late = list(self._grid.pull_messages(list(self._hellos))) if self._hellos else []
        for reply in late:
            reply.metadata.__dict__["_src_node_id"] = self._hellos.pop(reply.metadata.reply_to_message_id)
        known = {
            *self._nodes.values(),
            *self._strangers,
            *self._hellos.values(),
            *(r.metadata.src_node_id for r in late),
        }
        new = sorted(there - known)
        if not new:
            return late
        hellos = [Message(self._hello, node, "query.hello", group_id="0") for node in new]
        replies, missing = collect(self._grid, hellos, timeout=_HELLO_S)
        self._hellos.update({i: node for i, node in missing.items() if not i.startswith("refused-")})
        return late + replies

    def _admit(self, reply: Message) -> str:
        node = reply.metadata.src_node_id
        try:
            client = introduced(reply)
            self._heard(client, reply)
        except FederationError as error:
            self._strangers.add(node)
            return f"node {node} is left out: {error}"
        before = self._nodes.get(client)
        if before is not None:
            # Asking the one before would give two answers of one client.
            self._strangers.add(before)
        self._nodes = dict(sorted({**self._nodes, client: node}.items()))
        return f"client {client} {'is another node now' if before is not None else 'has joined'}"
