"""Starts an answering program once for each device, by torch's own launcher (torchrun).

Each process answers its part and the first merges them, see `sharding`. Statuses and signals pass
through as if there were one process.
"""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Sequence

from llava.common.signals import EXIT_INTERRUPTED, ending_signals


def launch(command: Sequence[str], count: int) -> int:
    """Run `python COMMAND` in `count` processes; the exit status of the first that failed, or 0.

    A signal is handed on to all of them and waited for.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What ends a process is said by the process itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        max_restarts=0,
        monitor_interval=0.1,
    )
    handlers = {number: signal.getsignal(number) for number in ending_signals()}
    try:
        elastic_launch(config, sys.executable)(*command)
    except (SignalException, KeyboardInterrupt):  # the latter while it starts
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status  # as shells say it of a killed process
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0
