"""The release binary, stripped, and the static one where it was built."""

import os

from lab import limit, row, stat


def measure(program, target):
    most = {"limit": limit(8, "MiB")}
    found = [row("release binary, stripped", stat([os.path.getsize(program) / 2**20], "MiB"), most, reach=1)]
    static = os.path.join(target, "cross/x86_64-unknown-linux-musl/release/peervpn")  # .ci/dist
    if os.path.exists(static):
        found.append(row("static musl binary, stripped", stat([os.path.getsize(static) / 2**20], "MiB"), most, reach=1))
    return {"where": "x86_64", "module": "size", "rows": found}
