"""What flood.sh says of forged initiations, as rows."""

import os
import subprocess
import sys

from lab import limit, row, stat


def numbers(cell):
    return [float(part) for part in cell.replace("%", "").replace("+", "").split(",") if part.strip() not in ("", "-")]


def measure(here, env, where, backend):
    script = os.path.join(here, "flood.sh")
    print(f"== flood, {where}", file=sys.stderr, flush=True)
    done = subprocess.run([script, backend, "1"], env=env, stdout=subprocess.PIPE, text=True, check=False)
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in done.stdout.splitlines()]
    found = []
    for cell in cells:
        if len(cell) < 8 or not numbers_only(cell[2]):
            continue
        name = f"{cell[2]} forged initiations a second ({cell[0]}), {backend} back end"
        found.append(row(f"{name}: join", stat(numbers(cell[3])[:1], "ms"), {"limit": limit(1000, "ms")}, reach=1))
        _, flooded, without = numbers(cell[6])
        found.append(row(f"{name}: forwarding", stat([flooded], "Mbit/s"),
                         {"no node running": stat([without], "Mbit/s")}, better="higher", reach=0.8))
    if not found:
        print(f"SKIP: flood, {where}: {done.stdout}", file=sys.stderr)
        return None
    return {"where": where, "module": "flood", "rows": found}


def numbers_only(cell):
    return cell.replace(".", "", 1).isdigit()
