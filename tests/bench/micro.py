"""What one core does in a second: `cargo bench` (tests/bench/micro.rs) as rows, nothing beside."""

import glob
import json
import os
import subprocess
import tempfile

from lab import row


def newest(target):
    """The benchmark as cargo built it last; `None` if it did not."""
    built = [path for path in glob.glob(os.path.join(target, "release/deps/micro-*")) if os.access(path, os.X_OK)]
    return max(built, key=os.path.getmtime, default=None)


def measure(target):
    program = newest(target)
    if not program:
        print("SKIP: cargo bench --no-run --bench micro")
        return None
    with tempfile.TemporaryDirectory(prefix="pvbench.") as results:
        env = {**os.environ, "CRITERION_HOME": results}
        subprocess.run([program, "--bench", "--noplot"], env=env, check=True, stdout=subprocess.DEVNULL)
        found = []
        for path in glob.glob(os.path.join(results, "*/*/new")):
            with open(os.path.join(path, "benchmark.json"), encoding="utf-8") as file:
                what = json.load(file)
            with open(os.path.join(path, "estimates.json"), encoding="utf-8") as file:
                found.append((what, json.load(file)["median"]))
    rows = [as_row(what, median) for what, median in sorted(found, key=lambda pair: pair[0]["full_id"])]
    return {"where": "native", "module": "micro", "rows": rows}


def as_row(what, median):
    """Nanoseconds as criterion has them, with the interval of 95 % confidence, as how many a second or how long."""
    interval = median["confidence_interval"]
    ends = median["point_estimate"], interval["lower_bound"], interval["upper_bound"]
    name = what["full_id"].replace("/", ": ", 1)
    if what.get("throughput"):
        middle, high, low = (1e9 / end for end in ends)
        unit, better = "a second", "higher"
    else:
        middle, low, high = (end / 1e6 for end in ends)
        unit, better = "ms", "lower"
        if middle < 0.1:
            middle, low, high, unit = 1e3 * middle, 1e3 * low, 1e3 * high, "µs"
    load = os.getloadavg()[0]
    note = f"on a busy machine, load average {load:.0f}" if load >= 2 * os.cpu_count() else ""
    return row(f"one core: {name}", {"median": middle, "low": low, "high": high, "n": 2, "unit": unit}, {}, better, note=note)
