"""A Ray of three nodes on one machine, as a program: a head without processors, and two nodes with one each.

It writes one line of JSON {address, nodes} and then reads: each line that names a node kills all its processes with
SIGKILL, and is answered once they are gone. It ends with its input. Not in the tests' own process: there the address
of a cluster would be written where every other Ray on the machine looks for one (`TMPDIR` says where it is written).
"""

import contextlib
import json
import sys
from typing import Any

import psutil
from ray.cluster_utils import Cluster

MEMORY = 80 * 1024 * 1024
NOTICES_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 5,
}
"""Ray's own are 15 s until a dead node is noticed: here it is 2.5 s, for who is dead refuses at once. Who lives and is
late has five times the timeout: a machine may stand still for seconds."""


def main() -> None:
    """Start, serve, end."""
    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": NOTICES_SOON}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
        _say({"address": cluster.address, "nodes": [node.node_id for node in nodes]})
        for line in sys.stdin:
            node = next(node for node in nodes if node.node_id == line.strip())
            _kill(node)
            cluster.remove_node(node, allow_graceful=False)
            _say({"gone": node.node_id})
    finally:
        cluster.shutdown()


def _kill(node: Any) -> None:
    """All its processes as if at one moment, as a machine takes them along: its workers do nothing after its raylet.

    Nor before: a raylet that stands still starts no other in their place. (One that was suspended would be woken by the
    kernel as its raylet ends, and work on for up to a second, until it notices.)
    """
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    raylet.suspend()
    workers = raylet.children(recursive=True)
    for process in [*workers, raylet]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
