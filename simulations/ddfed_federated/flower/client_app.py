"""The Flower app of one client: decode, call the worker function, encode. All work is elsewhere.

The worker function is plain::

    answer(settings_json: str, client: int, broadcast: Broadcast, state: dict[str, Tensor])
        -> tuple[Release, dict[str, Tensor]]

A message names it as ``module:function``. What a server may name is for the client's machine to decide: only
`wire.DEFAULT_WORKER` and those listed, comma-separated, in the environment variable ``DDFED_WORKERS``.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from torch import Tensor

import ddfed
from ddfed.errors import ConfigError, DdfedError, FederationError, one_of
from ddfed.federation import Broadcast, Release
from ddfed_federated.flower import wire
from ddfed_federated.flower.survey import QUESTION, facts, localised

Answer = Callable[[str, int, Broadcast, dict[str, Tensor]], tuple[Release, dict[str, Tensor]]]

#: Code of an error reply for an error that ddfed raised on purpose; Flower's own codes are below 1000.
DECLINED = 1001
_STATE = "state"

logger = logging.getLogger("ddfed.client")
app = ClientApp()


def _worker(target: str) -> Answer:
    allowed = [wire.DEFAULT_WORKER, *filter(None, os.environ.get("DDFED_WORKERS", "").split(","))]
    if target not in allowed:
        raise ConfigError(
            f"worker {target!r} is not allowed on this client; allowed are {one_of(allowed)}. "
            f"Set DDFED_WORKERS in the client's environment to allow more"
        )
    module, _, attribute = target.partition(":")
    function: Answer = getattr(importlib.import_module(module), attribute)
    return function


def partition_id(context: Context) -> int:
    """The client's number.

    Raises:
        FederationError: the node was started without one.
    """
    value = context.node_config.get("partition-id")
    if not isinstance(value, int):
        raise FederationError(
            f"this node has no partition id (got {value!r}); "
            f"start it with --node-config 'partition-id=0 num-partitions=3'"
        )
    return value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch threads for one call. Put back afterwards: in a serial run the server shares the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """End this process if the call takes too long, where the process is one that Ray replaces.

    Ray can neither cancel a call of an actor nor tell Flower to; without this a client that never answers
    takes a worker with it for the rest of the run.
    """
    if seconds <= 0 or not in_ray_actor():
        yield
        return
    timer = threading.Timer(seconds, os._exit, (70,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def in_ray_actor() -> bool:
    """Whether this process is an actor of Ray, which replaces it when it ends."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def failure(error: BaseException, message: Message) -> Message:
    """An error reply that says in one line what happened and where.

    The traceback goes to the client's log, not to the server.
    """
    logger.debug("client failed", exc_info=error)
    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, DdfedError):
        return Message(Error(DECLINED, text[:2000]), reply_to=message)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text[:2000] + where), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do one round's work. Any error becomes an error reply and leaves the stored state as it was."""
    try:
        broadcast, order = wire.decode_broadcast(message.content)
        client = partition_id(context)
        if order.client != client:
            raise FederationError(f"a message for client {order.client} reached client {client}")
        state = _load_state(context)
        with _threads(order.client_threads), _limit(order.limit_s):
            settings = localised(order.settings, context.node_config, client)
            release, state = _worker(order.worker)(settings, client, broadcast, state)
        content = wire.encode_release(release, order.codec)
        stored = wire.pack(state)
    except (Exception, SystemExit) as error:
        return failure(error, message)
    context.state[_STATE] = stored
    return Message(content, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who is there: partition id, number of partitions, version, and what else the server asks of a site's data."""
    try:
        client, total = partition_id(context), int(context.node_config.get("num-partitions", 0))
        content = RecordDict({"hello": MetricRecord({"partition": client, "partitions": total})})
        content["about"] = ConfigRecord({"version": ddfed.__version__})
        for name, asked in message.content.config_records.items():
            content.update(facts(asked, context.node_config, client) if name == QUESTION else {})
    except Exception as error:
        return failure(error, message)
    return Message(content, reply_to=message)


@app.query("get_state")
def get_state(message: Message, context: Context) -> Message:
    """What the client remembers, for the checkpoint of a simulation."""
    try:
        _simulated_only()
        stored = context.state.get(_STATE)
    except Exception as error:
        return failure(error, message)
    record = stored if isinstance(stored, ArrayRecord) else ArrayRecord()
    return Message(RecordDict({_STATE: record}), reply_to=message)


@app.query("set_state")
def set_state(message: Message, context: Context) -> Message:
    """Put a stored state back when a simulation is resumed."""
    try:
        _simulated_only()
        record = message.content[_STATE]
        if not isinstance(record, ArrayRecord):
            raise FederationError("set_state needs an ArrayRecord called 'state'")
        wire.unpack(record, "state")
    except Exception as error:
        return failure(error, message)
    context.state[_STATE] = record
    return Message(RecordDict(), reply_to=message)


def _simulated_only() -> None:
    if os.environ.get("DDFED_SIMULATION") != "1":
        raise FederationError("a client's state is set from outside in simulations only")


def _load_state(context: Context) -> dict[str, Tensor]:
    record = context.state.get(_STATE)
    return wire.unpack(record, _STATE) if isinstance(record, ArrayRecord) else {}
