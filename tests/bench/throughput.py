"""TCP through the tunnel by iperf3, peer to web server behind the exit: kernel WireGuard set up by us beside wg-quick; and,
where the kernel has none, our userspace device beside others, both ends the same. The processors are shared by
everything, so rounds alternate."""

import contextlib
import json
import os
import shutil
import time

from lab import Failed, IPERF, WEB, Lab, inside, interleave, progress, row, run, stat

SECONDS = 2
WAYS = {
    "one way, 1 stream": [],
    "one way, 8 streams": ["-P", "8"],
    "both ways, 1 stream": ["--bidir"],
    "both ways, 8 streams": ["--bidir", "-P", "8"],
}


def iperf(lab, args):
    """Mbit/s received, both directions added."""
    # without --omit: with --bidir iperf3 3.12 then sometimes counts nothing
    command = ["iperf3", "-c", WEB, "-p", IPERF, "-t", SECONDS, "-J", *args]
    end = json.loads(run(*inside(lab.peer, *command)))["end"]
    received = [end[key]["bits_per_second"] for key in ("sum_received", "sum_received_bidir_reverse") if key in end]
    return sum(received) / 1e6


def all_ways(lab, ways):
    lab.reply()
    return {way: iperf(lab, args) for way, args in ways.items()}


class Ours:
    """Both ends by peervpn. Userspace devices share /run/wireguard: a name each."""

    def __init__(self, lab, *args):
        self.lab, self.args = lab, args

    @contextlib.contextmanager
    def up(self):
        with contextlib.ExitStack() as stack:
            exit_ = self.lab.start_exit("--interface", "pvbexit", *self.args)
            stack.callback(exit_.down)
            node = self.lab.start_connect(exit_.connect, "--interface", "pvbpeer", "--dns", "none", *self.args)
            node.wait("connected")
            stack.callback(node.down)
            self.text = [run(*side.ask("export", "--show-keys")) for side in (exit_, node)]
            yield


class WgQuick:
    """Both ends by wg-quick, the exit with forwarding and masquerade as its users write them."""

    def __init__(self, lab, texts):
        self.lab, self.files = lab, [lab.path("wgqe.conf"), lab.path("wgqp.conf")]
        nft = "add table inet wgq; add chain inet wgq post { type nat hook postrouting priority 100; }; " \
              "add rule inet wgq post oifname != \"%i\" masquerade"
        up = f"PostUp = echo 1 > /proc/sys/net/ipv4/ip_forward; nft '{nft}'\nPostDown = nft delete table inet wgq\n"
        for file, text, extra in zip(self.files, texts, (up, "")):
            lines = [line for line in text.splitlines() if not line.startswith(("DNS", "MTU"))]
            with open(file, "w", opener=lambda path, flags: os.open(path, flags, 0o600), encoding="utf-8") as out:
                out.write("\n".join(lines).replace("[Interface]\n", "[Interface]\n" + extra, 1) + "\n")

    @contextlib.contextmanager
    def up(self):
        places = list(zip((self.lab.exit, self.lab.peer), self.files))
        for space, file in places:
            run(*inside(space, "wg-quick", "up", file))
        try:
            yield
        finally:
            for space, file in reversed(places):
                run(*inside(space, "wg-quick", "down", file))


def measured(lab, setup, ways):
    def measure():
        with setup.up():
            return all_ways(lab, ways)
    return measure


def attempt(measure):
    """None where a rival fails."""
    def guarded():
        try:
            return measure()
        except Failed as error:
            progress(str(error))
            return None
    return guarded


def rows(rounds):
    with Lab() as lab:
        lab.child(lab.internet, "iperf3", "-s", "-B", WEB, "-p", IPERF)
        time.sleep(0.5)
        return userspace(lab, rounds) if os.environ.get("GUEST") is None else kernel(lab, rounds)


def kernel(lab, rounds):
    progress("throughput of kernel WireGuard, set up by us and by wg-quick")
    ours = Ours(lab)
    with ours.up():
        pass
    ours_found, quick_found = interleave(
        rounds, measured(lab, ours, WAYS), measured(lab, WgQuick(lab, ours.text), WAYS)
    )
    return [
        row(f"kernel throughput, {way}", stat([found[way] for found in ours_found], "Mbit/s"),
            {"set up by wg-quick": stat([found[way] for found in quick_found], "Mbit/s")}, better="higher", reach=0.98)
        for way in WAYS
    ]


def userspace(lab, rounds):
    ways = {way: WAYS[way] for way in ("one way, 1 stream", "both ways, 8 streams")}
    devices = {"peervpn": "userspace"}
    for program in ("wireguard-go", "boringtun-cli", "gotatun"):
        path = shutil.which(program)
        if path:
            devices[program] = f"userspace={path}"
        else:
            progress(f"SKIP: {program}")
    progress(f"throughput of userspace devices: {', '.join(devices)}")
    setups = [measured(lab, Ours(lab, "--backend", backend), ways) for backend in devices.values()]
    found = {}
    for device, values in zip(devices, interleave(rounds, *map(attempt, setups))):
        if all(values):
            found[device] = values
        else:
            progress(f"SKIP: {device} does not carry this")
    return [
        row(f"userspace throughput, {way}", stat([f[way] for f in found["peervpn"]], "Mbit/s"),
            {name: stat([f[way] for f in values], "Mbit/s") for name, values in found.items() if name != "peervpn"},
            better="higher", reach=1)
        for way in ways
    ]
