"""How much of the machine others used while something was measured."""

import os
import resource
import time

import psutil


class OtherUse:
    """From its creation on: CPU time of all processes but this one, its ended children and one running process tree."""

    def __init__(self, server_pid: int | None) -> None:
        self._server_pid = server_pid
        self._started_s = time.monotonic()
        self._busy_s, self._own_s = _busy_s(), self._own()

    def share(self) -> float:
        """Others' part of all cores since the creation, 0 to 1; what a hypervisor took away counts as theirs."""
        elapsed_s = (time.monotonic() - self._started_s) * (os.cpu_count() or 1)
        others_s = (_busy_s() - self._busy_s) - (self._own() - self._own_s)
        return max(0.0, others_s / elapsed_s)

    def _own(self) -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages) + tree_cpu_s(self._server_pid)


def tree_cpu_s(pid: int | None) -> float:
    """CPU seconds of a process and its children."""
    if pid is None:
        return 0.0
    try:
        process = psutil.Process(pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(time.user + time.system for time in times)


def tree_rss_mib(pid: int) -> float:
    """Resident memory of a process and its children, MiB."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def _busy_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
