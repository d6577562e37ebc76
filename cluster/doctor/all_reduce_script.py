"""The script that the probe's pods run: one process a pod measures an all-reduce between all of them.

Stands alone: its text is put into a Job, and needs torch and nothing of this project. Rank 0 prints one line of JSON.
What each rank tells of itself goes round as bytes of one length; nothing is unpickled.
"""

import json
import os
import socket
import statistics
import struct
import sys
import time

SIZES = (8 * 1024, 1024 * 1024, 64 * 1024 * 1024)
"""Bytes: a small decode step's sum, a large one's, a prefill's."""

ROUNDS = 7

END = struct.Struct("!4s16sQ")
"""What a rank tells: its IPv4 address, the name of its interface (Linux has them of at most 15 bytes), its /dev/shm."""


def interface_to(host: str, port: int) -> tuple[str, str]:
    """(own address, interface) of the way to a host, as the kernel routes it; the name is "" where it is not known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address = probe.getsockname()[0]
    try:
        import psutil
    except ImportError:
        return address, ""
    found = [name for name, rows in psutil.net_if_addrs().items() if any(row.address == address for row in rows)]
    return address, found[0] if found else ""


def main() -> None:
    """Measure, then tell."""
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, rank=rank, world_size=world)
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    rows: list[dict[str, float]] = []
    for size in SIZES:
        data = torch.zeros(size // 4, device=device)
        times: list[float] = []
        for _ in range(ROUNDS):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(data)
            if backend == "nccl":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        middle = statistics.median(times[2:])
        rows.append({"bytes": size, "ms": middle * 1e3, "gb_per_s": size * 2 * (world - 1) / world / middle / 1e9})
    peer = os.environ["MASTER_ADDR"] if rank else socket.gethostname()
    told = bytearray(packed(*interface_to(peer, int(os.environ["MASTER_PORT"])), shm_bytes()))
    ends = [torch.zeros(END.size, dtype=torch.uint8, device=device) for _ in range(world)]
    dist.all_gather(ends, torch.frombuffer(told, dtype=torch.uint8).to(device))
    if rank == 0:
        ranks = [unpacked(number, bytes(end.tolist())) for number, end in enumerate(ends)]
        sys.stdout.write("\n" + json.dumps({"backend": backend, "all_reduce": rows, "ranks": ranks}) + "\n")
    dist.destroy_process_group()


def packed(address: str, interface: str, shm: int) -> bytes:
    """What a rank tells of itself, in `END.size` bytes."""
    return END.pack(socket.inet_aton(address), interface.encode()[:16], shm)


def unpacked(rank: int, end: bytes) -> dict[str, object]:
    """What a rank has told. Bytes that are no text are shown as such: any are an answer."""
    address, interface, shm = END.unpack(end)
    name = interface.rstrip(b"\0").decode("ascii", "backslashreplace")
    return {"rank": rank, "address": socket.inet_ntoa(address), "interface": name, "shm_bytes": shm}


def shm_bytes() -> int:
    """Size of /dev/shm."""
    seen = os.statvfs("/dev/shm")  # noqa: S108  the pod's own
    return seen.f_blocks * seen.f_frsize


if __name__ == "__main__":
    main()
