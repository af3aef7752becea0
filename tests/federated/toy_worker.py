"""Client functions for the tests, importable in worker processes and on Ray. What they do is asked for in
the settings: ``{"<client>": "<deed>"}``; any other client does its work."""

from __future__ import annotations

import json
import os
import sys
import time

import torch
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.federation import Broadcast, Release
from ddfed.seeds import Streams


def answer(
    settings: str, client: int, broadcast: Broadcast, state: dict[str, Tensor]
) -> tuple[Release, dict[str, Tensor]]:
    """A set of noise around the broadcast weights, plus what the client remembers of earlier rounds."""
    deed = json.loads(settings).get(str(client), "")
    calls = state.get("calls", torch.zeros((), dtype=torch.int64)) + 1
    state["calls"] = calls
    if deed == "raise":
        raise ValueError(f"boom of client {client}")
    if deed == "decline":
        raise ConfigError("nothing to do here")
    if deed == "exit":
        sys.exit(3)
    if deed == "die":
        os._exit(7)
    if deed == "hang":
        time.sleep(3600)
    if deed == "slow":
        time.sleep(1.0)
    generator = Streams(0).child("client", client).torch("noise", broadcast.round)
    x = torch.randn((4, 3, 8, 8), generator=generator) + float(sum(w.float().sum() for w in broadcast.weights.values()))
    for _ in range(3):
        x = torch.tanh(x.flatten(1) @ torch.ones(192, 192).mul(0.01)).view_as(x) + x
    y = torch.tensor([0, 1, 2, 3])
    metrics = {"calls": float(calls), "threads": float(torch.get_num_threads())}
    release = Release(client, broadcast.round, {"set": {"x": x, "y": y}}, 10, (1, 2, 3, 4), metrics)
    return release, {"calls": calls, "memory": x.mean()}
