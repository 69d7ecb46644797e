"""The release binary, stripped, and the static one where it was built."""

import os

from lab import row, stat


def measure(program, target):
    limit = {"limit": {"median": 8, "low": 8, "high": 8, "n": 0, "unit": "MiB"}}
    found = [row("release binary, stripped", stat([os.path.getsize(program) / 2**20], "MiB"), limit, reach=1)]
    static = os.path.join(target, "static/peervpn")
    if os.path.exists(static):
        found.append(row("static musl binary, stripped", stat([os.path.getsize(static) / 2**20], "MiB"), limit, reach=1))
    return {"where": "x86_64", "module": "size", "rows": found}
