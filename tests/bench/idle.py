"""What an exit costs while nobody uses it: resident memory, wake-ups, processor time, of all its processes; on the kernel
back end and on the userspace one, beside an idle wireguard-go."""

import glob
import os
import time

from lab import GUEST, Lab, inside, limit, progress, row, run, stat

SECONDS = 60
CLOCK = os.sysconf("SC_CLK_TCK")


def family(pid):
    """The process and those that it started."""
    children = []
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        with open(task, encoding="utf-8") as file:
            children += [int(child) for child in file.read().split()]
    return [pid] + [grandchild for child in children for grandchild in family(child)]


def field(path, name):
    with open(path, encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def snapshot(pids):
    """Resident KiB, voluntary context switches of all threads (proc_pid_status(5)), clock ticks."""
    resident = wakeups = ticks = 0
    for pid in pids:
        resident += field(f"/proc/{pid}/status", "VmRSS")
        for task in glob.glob(f"/proc/{pid}/task/*/status"):
            wakeups += field(task, "voluntary_ctxt_switches")
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            ticks += sum(map(int, file.read().rsplit(") ", 1)[1].split()[11:13]))
    return resident, wakeups, ticks


def measure(pids):
    before = snapshot(pids)
    time.sleep(SECONDS)
    after = snapshot(pids)
    # proc_pid_smaps(5): what several processes have in common, each its share; not every kernel tells
    rollups = [f"/proc/{pid}/smaps_rollup" for pid in pids]
    shares = sum(field(path, "Pss:") for path in rollups) if all(map(os.path.exists, rollups)) else None
    return {
        "resident memory": (after[0] / 1024, "MiB", 10),
        **({"resident memory, what is shared counted once": (shares / 1024, "MiB", 10)} if shares else {}),
        "wake-ups a minute": ((after[1] - before[1]) * 60 / SECONDS, "", 6),
        "processor time an hour": ((after[2] - before[2]) / CLOCK * 3600 / SECONDS, "s", 1),
    }


def rows(_rounds):
    """Natively: kernel WireGuard is none of a process's costs, so there a node alone is measured where the guest has it."""
    with Lab() as lab:
        backend = "kernel" if GUEST else "userspace"
        exit_ = lab.start_exit("--interface", "pvbidle", "--backend", backend)
        time.sleep(10)
        progress(f"an idle exit, {backend} back end, for {SECONDS} s")
        ours = measure(family(exit_.process.pid))
        others = {}
        if not GUEST:
            other = lab.child(lab.peer, "env", "WG_SUDO=1", "wireguard-go", "-f", "wgidle")
            time.sleep(2)
            run(*inside(lab.peer, "ip", "link", "set", "wgidle", "up"))
            time.sleep(2)
            progress("an idle wireguard-go")
            others = measure(family(other.pid))
    found = []
    for name, (value, unit, most) in ours.items():
        beside = {"limit": limit(most, unit)}
        if name in others:
            beside["wireguard-go"] = stat([others[name][0]], unit)
        found.append(row(f"idle exit, {backend} back end: {name}", stat([value], unit), beside, reach=1))
    return found
