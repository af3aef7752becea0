"""The one place that knows Flower: wire format, client app, grids, the round loop and the back ends.

Importing this package imports neither flwr nor ray nor torch; it only settles their environment, which both
read when they are imported. Every module here that imports flwr is below this package, so the settings are
always in time. A value that the user has set is left alone.
"""

from __future__ import annotations

import os

for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would otherwise warn about the accelerators of workers that asked for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A call after Ray was ended would otherwise start a second cluster just to be told that it is empty.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray's workers yield to all else (15), so that clients on a busy machine take minutes to start and miss deadlines.
    "RAY_worker_niceness": "0",
}.items():
    os.environ.setdefault(_name, _value)
