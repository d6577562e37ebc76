"""Times a sum of two ranks over gloo and over connections of our own: `python -m tests.distributed.sum_bench`.

With `--hosts` the ranks run in two network namespaces, which needs root; else both on the loopback interface.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
import torch.distributed as dist

from serving.engine.distributed.sockets import SocketSum
from tests.e2e.server import Process
from tests.hosts.net import Network

PORT = 29_517
SIZES = (1 << 10, 18 << 10, 150 << 10)
"""Bytes: a step of one sequence, of sixteen, and a prefill of 130 tokens, of a model 576 wide in bfloat16."""
RUNS = 2000


def rank_main(rank: int, address: str) -> None:
    """One rank: time both ways in turn, so that a busy moment strikes both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=rank, world_size=2)
    own = SocketSum(rank, 2, 60.0)
    for size in SIZES:
        tensor = torch.zeros(size // 2, dtype=torch.bfloat16)
        took = [(timed(dist.all_reduce, tensor), timed(own.all_reduce, tensor)) for _ in range(RUNS)]
        for name, each in zip(("gloo", "own"), zip(*took, strict=True), strict=True):
            p90 = statistics.quantiles(each, n=10)[-1]
            print(f"{size >> 10:4d} KiB  {name:4s}  median {statistics.median(each):6.0f} us  p90 {p90:6.0f} us")
    dist.barrier()
    dist.destroy_process_group()


def timed(all_reduce: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> float:
    """Microseconds of one sum."""
    began = time.perf_counter()
    all_reduce(tensor)
    return (time.perf_counter() - began) * 1e6


def start(stack: ExitStack, hosts: bool) -> Sequence[Process]:
    """Both ranks."""
    command = (sys.executable, "-m", "tests.distributed.sum_bench")
    if not hosts:
        where = {"GLOO_SOCKET_IFNAME": "lo"}
        return [Process(*command, "--rank", str(rank), "--address", "127.0.0.1", **where) for rank in range(2)]
    machines = stack.enter_context(Network(2)).hosts
    where = {"GLOO_SOCKET_IFNAME": "eth0"}
    return [
        host.run(*command, "--rank", str(rank), "--address", machines[0].address, **where)
        for rank, host in enumerate(machines)
    ]


def main() -> None:
    """Start both ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank is not None:
        rank_main(asked.rank, asked.address)
        return
    with ExitStack() as stack:
        first, _ = start(stack, asked.hosts)
        for _ in range(2 * len(SIZES)):
            print(first.wait_for_line("median"))
        first.wait()


if __name__ == "__main__":
    main()
