"""TCP through the tunnel by iperf3, peer to web server behind the exit: kernel WireGuard set up by us beside wg-quick; and,
where the kernel has none, our userspace device beside others, both ends the same. The processors are shared by
everything, so rounds alternate."""

import contextlib
import json
import os
import shutil

from lab import GUEST, Failed, IPERF, WEB, Lab, inside, interleave, progress, row, run, stat

# short and many, not long and few: the machine's own ups and downs are longer than a second
SECONDS, TURNS = 1, 4
WAYS = {
    "one way, 1 stream": [],
    "one way, 8 streams": ["-P", "8"],
    "both ways, 1 stream": ["--bidir"],
    "both ways, 8 streams": ["--bidir", "-P", "8"],
}


def iperf(lab, args):
    """Mbit/s received, both directions added."""
    # without --omit: with --bidir iperf3 3.12 then sometimes counts nothing, and now and then without it, too
    for _ in range(3):
        end = json.loads(run(*inside(lab.peer, "iperf3", "-c", WEB, "-p", IPERF, "-t", SECONDS, "-J", *args)))["end"]
        received = [end[key]["bits_per_second"] for key in ("sum_received", "sum_received_bidir_reverse") if key in end]
        if all(received):
            return sum(received) / 1e6
    raise Failed("iperf3 counted nothing, three times")


class Ours:
    """Both ends by peervpn. Userspace devices share /run/wireguard: names with a `suffix` each."""

    def __init__(self, lab, suffix="", *args):
        self.lab, self.suffix, self.args = lab, suffix, args

    @contextlib.contextmanager
    def up(self):
        with contextlib.ExitStack() as stack:
            exit_ = self.lab.start_exit("--interface", f"pvbexit{self.suffix}", *self.args)
            stack.callback(exit_.down)
            node = self.lab.start_connect(exit_.connect, "--interface", f"pvbpeer{self.suffix}", "--dns", "none", *self.args)
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


def one_more(stack):
    lab = stack.enter_context(Lab())
    lab.child(lab.internet, "iperf3", "-s", "-B", WEB, "-p", IPERF)
    return lab


def measured(bring_up, ways, rounds):
    """Mbit/s by way and setup. `bring_up` has all of them up at once, each in a lab of its own, and they take turns: what
    else the machine does meets all of them alike. Labs are made anew for every round: two of the same setup differ by
    some per cent, by where their memory happens to lie."""
    found = {way: {} for way in ways}
    for _ in range(rounds):
        with contextlib.ExitStack() as stack:
            setups = bring_up(stack)
            for way, args in ways.items():
                turns = interleave(TURNS, *(lambda lab=setup.lab: iperf(lab, args) for setup in setups.values()))
                for name, values in zip(setups, turns):
                    found[way].setdefault(name, []).extend(values)
    return {way: {name: stat(values, "Mbit/s") for name, values in setups.items()} for way, setups in found.items()}


def rows(rounds):
    return (userspace if GUEST is None else kernel)(rounds)


def kernel(rounds):
    progress("throughput of kernel WireGuard, set up by us and by wg-quick")

    def bring_up(stack):
        ours = Ours(one_more(stack))
        stack.enter_context(ours.up())
        quick = WgQuick(one_more(stack), ours.text)
        stack.enter_context(quick.up())
        for setup in (ours, quick):
            setup.lab.reply()
        return {"ours": ours, "set up by wg-quick": quick}

    return [
        row(f"kernel throughput, {way}", found.pop("ours"), found, better="higher", reach=0.98)
        for way, found in measured(bring_up, WAYS, rounds).items()
    ]


def userspace(rounds):
    ways = {way: WAYS[way] for way in ("one way, 1 stream", "both ways, 8 streams")}
    backends = {"ours": "userspace"}
    for program in ("wireguard-go", "boringtun-cli", "gotatun"):
        if path := shutil.which(program):
            backends[program] = f"userspace={path}"
        else:
            progress(f"SKIP: {program}")

    def bring_up(stack):
        setups = {}
        for name, backend in backends.items():
            setups[name] = Ours(one_more(stack), str(len(setups)), "--backend", backend)
            stack.enter_context(setups[name].up())
            setups[name].lab.reply()
        return setups

    # those that carry this at all
    for program in list(backends)[1:]:
        with contextlib.ExitStack() as stack:
            setup = Ours(one_more(stack), "", "--backend", backends[program])
            try:
                stack.enter_context(setup.up())
                iperf(setup.lab, [])
            except Failed as error:
                progress(f"SKIP: {program} does not carry this: {error}")
                del backends[program]
    progress(f"throughput of userspace devices: {', '.join(backends)}")
    return [
        row(f"userspace throughput, {way}", found.pop("ours"), found, better="higher", reach=1)
        for way, found in measured(bring_up, ways, rounds).items()
    ]
