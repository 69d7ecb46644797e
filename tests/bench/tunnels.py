"""How fast a tunnel comes up and goes, and how fast our commands answer, beside wg-quick and wg. Kernel back end in a
guest; natively the userspace one, where a process start and a page fault cost what they cost on a real processor."""

import os
import time

from lab import GUEST, ON_EXIT, ON_PEER, PEERVPN, Lab, Node, interleave, limit, progress, row, run, stat, timed

ON_UML = GUEST == "uml"


def milliseconds(seconds):
    return [1000 * value for value in seconds]


def ours(lab, target, *args, state=None):
    """Seconds from exec to the first reply through the tunnel, and what `down` took."""
    node = Node(lab, lab.peer, "connect", target, *ON_PEER, *args, state=state)
    lab.nodes.append(node)
    node.wait("connected")
    up = lab.reply() - node.started
    return up, node.down()


class WgQuick:
    """The same tunnel by wg-quick: the configuration that our node exports, and its DNS."""

    def __init__(self, lab, text, dns):
        self.lab, self.config = lab, lab.path("wgq0.conf")
        lines = [line for line in text.splitlines() if not line.startswith(("DNS", "MTU"))]
        if dns:
            lines.insert(1, f"DNS = {dns}")
        with open(self.config, "w", opener=lambda path, flags: os.open(path, flags, 0o600), encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def measure(self):
        start = time.monotonic()
        timed(self.lab.peer, "wg-quick", "up", self.config)
        up = self.lab.reply() - start
        return up, timed(self.lab.peer, "wg-quick", "down", self.config)


def configuration(lab, target, *args):
    """What a connected node exports, with the servers it asks."""
    node = Node(lab, lab.peer, "connect", target, *ON_PEER, *args)
    lab.nodes.append(node)
    dns = node.wait("connected")[1]["dns"]
    text = run(*node.ask("export", "--show-keys"))
    node.down()
    return text, ", ".join(dns)


def beside_wg_quick(lab, exit_, rounds, title, *args):
    """Up and down, of which the same configuration is asked."""
    progress(f"connect beside wg-quick, {title}")
    text, dns = configuration(lab, exit_.connect, *args)
    quick = WgQuick(lab, text, dns)
    pairs = interleave(rounds, lambda: ours(lab, exit_.connect, *args), quick.measure)
    (up, down), (quick_up, quick_down) = (tuple(zip(*pair)) for pair in pairs)
    return [
        row(f"connect, exec to first reply, {title}", stat(milliseconds(up), "ms"),
            {"wg-quick": stat(milliseconds(quick_up), "ms")}, reach=10 if ON_UML else 4),
        row(f"down, {title}", stat(milliseconds(down), "ms"),
            {"wg-quick": stat(milliseconds(quick_down), "ms")}, reach=4),
    ]


def rows(rounds):
    with Lab() as lab:
        exit_ = lab.start_exit(*ON_EXIT)
        found = commands(lab, exit_, rounds)
        if GUEST:
            found = beside_wg_quick(lab, exit_, rounds, "without DNS", "--dns", "none") + found
        if GUEST == "qemu":
            # an emulated processor: what the delays of a network would add is arithmetic
            return found
        if GUEST:
            with lab.own_resolver():
                found += beside_wg_quick(lab, exit_, rounds, "with DNS")
        found += joining(lab, exit_, rounds, 0)
    if not GUEST:
        # not every kernel has netem; the guest's has
        return found
    with Lab(delay_ms=50) as lab:
        return found + joining(lab, lab.start_exit(*ON_EXIT), rounds, 50)


def joining(lab, exit_, rounds, delay):
    """A known peer beside the floor, an unknown one beside a known one."""
    progress(f"connect at {delay} ms, known and unknown peer")
    count = iter(range(10_000))
    ours(lab, exit_.connect, "--dns", "none")
    known, unknown = interleave(
        rounds,
        lambda: ours(lab, exit_.connect, "--dns", "none")[0],
        lambda: ours(lab, exit_.connect, "--dns", "none", state=lab.path(f"stranger{delay}-{next(count)}"))[0],
    )
    known, unknown = stat(milliseconds(known), "ms"), stat(milliseconds(unknown), "ms")
    found = []
    if delay:
        floor = {"floor: 2 round trips": limit(2 * delay, "ms")}
        found.append(row(f"connect at {delay} ms round trip", known, floor, reach=1 / 1.5))
    later = {**known, **{key: known[key] + delay for key in ("median", "low", "high")}}
    beside = {"known peer + 1 round trip": later} if delay else {"known peer": known}
    found.append(row(f"unknown peer, {delay} ms round trip", unknown, beside, reach=1 if delay else None))
    return found


def commands(lab, exit_, rounds):
    """Start and answer of the commands that people and scripts call often."""
    progress("--version and status beside wg show")
    node = lab.start_connect(exit_.connect, "--dns", "none", *ON_PEER)
    node.wait("connected")
    interface = ON_PEER[-1] if ON_PEER else "peervpn0"
    version, status, show = interleave(
        4 * rounds,
        lambda: timed(lab.peer, PEERVPN, "--version"),
        lambda: node.timed("status"),
        lambda: timed(lab.peer, "wg", "show", interface),
    )
    node.down()
    shown = {"wg show": stat(milliseconds(show), "ms")}
    return [
        row("peervpn --version", stat(milliseconds(version), "ms"), shown, reach=1 / 1.5),
        row("peervpn status", stat(milliseconds(status), "ms"), shown, reach=1 / 1.5),
    ]
