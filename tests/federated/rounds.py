"""A miniature server for the tests of grids and back ends."""

from __future__ import annotations

import hashlib
import json

import torch
from flwr.app import Message

from ddfed.federation import Broadcast, Release
from ddfed_federated.flower import loop, wire

WEIGHTS = {"b.weight": torch.arange(6.0).view(2, 3) / 10, "a.steps": torch.tensor(3)}
TOY = "toy_worker:answer"


def messages(nodes, round_number, deeds=None, codec="float32", only=None, threads=1, limit_s=0.0):
    """One training message per client, in the order of the clients."""
    broadcast = Broadcast(round_number, WEIGHTS, {}, {"rate": 0.5})
    settings = json.dumps({str(k): v for k, v in (deeds or {}).items()})
    orders = [wire.Order(p, "toy", settings, codec, threads, TOY, limit_s) for p in nodes if only is None or p in only]
    contents = wire.encode_broadcasts(broadcast, orders)
    return [
        Message(content, nodes[order.client], "train", group_id=str(round_number))
        for content, order in zip(contents, orders)
    ]


def split_replies(replies, nodes) -> tuple[dict[int, Release], dict[int, str]]:
    """Releases and error texts by client."""
    client = {node: p for p, node in nodes.items()}
    good, bad = {}, {}
    for reply in replies:
        p = client[reply.metadata.src_node_id]
        if reply.has_error():
            bad[p] = wire.error_text(reply)
        else:
            good[p] = wire.decode_release(reply.content)
            assert good[p].client == p
    return dict(sorted(good.items())), dict(sorted(bad.items()))


def digest(releases: dict[int, Release]) -> str:
    """One hash of everything the clients released."""
    sha = hashlib.sha256()
    for p, release in releases.items():
        sha.update(f"{p} {release.round} {release.examples} {dict(release.metrics)}".encode())
        for name, tensor in release.set.items():
            sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def play(rounds, clients, deeds_of_round=None, timeout=60.0):
    """A ``main`` for the back ends: ``[(digest, good clients, {client: error})]`` per round."""

    def main(grid):
        nodes = loop.wait_for_nodes(grid, clients, timeout=120)
        told = []
        for r in range(1, rounds + 1):
            deeds = (deeds_of_round or {}).get(r, {})
            replies, _ = loop.collect(grid, messages(nodes, r, deeds), timeout=timeout)
            good, bad = split_replies(replies, nodes)
            told.append((digest(good), list(good), bad))
        return told

    return main
