"""An exit with 10,000 peers beside wg with the same ones, and many unknown peers that join at once. Kernel back end in a
guest; natively the bundled userspace device, under our exit and under wg alike."""

import base64
import ipaddress
import json
import os
import random
import resource
import subprocess
import time

from lab import GUEST, ON_EXIT, PEERVPN, PORT, Failed, Lab, inside, limit, progress, row, run, start, stat, timed
from tunnels import milliseconds

PEERS = 10_000
LINK = "wgmany"
ADDED = ("10.250.0.1/32", "fd07::1/128")
CROWD = os.environ.get("PEERVPN_CROWD", "target/debug/examples/crowd")


def key(generator):
    return base64.b64encode(generator.randbytes(32)).decode()


def crowd_of(number):
    """As many peers, always the same: key, addresses."""
    generator, taken, peers = random.Random(51820), set(), []
    while len(peers) < number:
        v4 = ipaddress.IPv4Address((10 << 24) + (1 << 16) + generator.randrange(200 << 16))
        if v4 in taken or int(v4) & 255 in (0, 255):
            continue
        taken.add(v4)
        v6 = ipaddress.IPv6Address((0xFD << 120) + (7 << 64) + generator.getrandbits(63))
        peers.append({"public_key": key(generator), "tunnel_addresses": {"v4": str(v4), "v6": str(v6)}})
    return peers


def peers_file(peers):
    """As the exit keeps it, src/join/peers.rs."""
    lines = [json.dumps({**peer, "how": "added", "added_at": 1767225600}) for peer in peers]
    return '{"version":3,\n"peers":[\n' + ",\n".join(lines) + '],\n"revoked":[],\n"invites":[]}\n'


class Ours:
    def __init__(self, lab, peers):
        self.lab, self.node = lab, None
        state = lab.path(f"{lab.exit}.state")
        os.makedirs(state, 0o700, exist_ok=True)
        with open(os.path.join(state, "peers.json"), "w", encoding="utf-8") as file:
            file.write(peers_file(peers))

    def start(self):
        self.node = self.lab.start_exit(*ON_EXIT)
        return self.node.ready - self.node.started

    def ask(self, *args):
        return self.node.timed(*args)

    def stop(self):
        return self.node.down()


class Wg:
    """A device by ip and wg, with the same routes by `ip -batch`."""

    def __init__(self, lab, peers):
        self.space, self.device = lab.exit, None
        self.config, self.routes, self.few = (lab.path(name) for name in ("many.conf", "many.routes", "one.routes"))
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(f"[Interface]\nPrivateKey = {key(random.Random(1))}\nListenPort = {PORT + 1}\n")
            for peer in peers:
                v4, v6 = peer["tunnel_addresses"].values()
                file.write(f"[Peer]\nPublicKey = {peer['public_key']}\nAllowedIPs = {v4}/32, {v6}/128\n")
        with open(self.routes, "w", encoding="utf-8") as file:
            for peer in peers:
                for address in peer["tunnel_addresses"].values():
                    file.write(f"route add {address} dev {LINK}\n")

    def start(self):
        """Seconds of the device with its peers, and of the routes to them."""
        began = time.monotonic()
        if not GUEST:
            # as src/node/device.rs starts it: a byte lets it begin, and it is there with its socket
            self.device = start(self.space, PEERVPN, "__userspace-device", LINK, stdin=subprocess.PIPE)
            self.device.stdin.write(b"!")
            self.device.stdin.flush()
            while not os.path.exists(f"/run/wireguard/{LINK}.sock"):
                time.sleep(0.001)
        else:
            timed(self.space, "ip", "link", "add", LINK, "type", "wireguard")
        for command in (f"wg setconf {LINK} {self.config}", f"ip address add 10.0.0.1/32 dev {LINK}",
                        f"ip link set {LINK} up"):
            timed(self.space, *command.split())
        peers = time.monotonic() - began
        return peers, peers + timed(self.space, "ip", "-batch", self.routes)

    def ask(self, *args):
        return timed(self.space, "wg", *args)

    def one(self, verb, *args):
        """Seconds to add or revoke one peer, and that with its two routes."""
        alone = self.ask("set", LINK, "peer", *args)
        with open(self.few, "w", encoding="utf-8") as file:
            file.writelines(f"route {verb} {address} dev {LINK}\n" for address in ADDED)
        return alone, alone + timed(self.space, "ip", "-batch", self.few)

    def stop(self):
        if self.device is None:
            return timed(self.space, "ip", "link", "delete", LINK)
        began = time.monotonic()
        self.device.terminate()
        self.device.wait(30)
        run("rm", "-f", f"/run/wireguard/{LINK}.sock")
        return time.monotonic() - began


def many_peers(lab, rounds):
    progress(f"{PEERS} peers beside wg")
    peers, extra = crowd_of(PEERS), random.Random(2)
    ours, theirs = Ours(lab, peers), Wg(lab, peers)
    names = ("start", "add one", "status --json", "revoke one", "stop and start")
    mine, wg, with_routes = ({n: [] for n in names} for _ in range(3))
    memory = []
    for _ in range(rounds):
        mine["start"].append(ours.start())
        new = key(extra)
        for _ in range(3):
            new = key(extra)
            mine["add one"].append(ours.ask("peers", "add", new))
            mine["status --json"].append(ours.ask("status", "--json"))
            mine["revoke one"].append(ours.ask("peers", "revoke", new))
        memory.append(ours.node.memory() / 2**20)
        stopped = ours.stop()
        mine["stop and start"].append(stopped + ours.start())
        ours.stop()
        alone, routed = theirs.start()
        wg["start"].append(alone)
        with_routes["start"].append(routed)
        for _ in range(3):
            new = key(extra)
            alone, routed = theirs.one("add", new, "allowed-ips", ",".join(ADDED))
            wg["add one"].append(alone)
            with_routes["add one"].append(routed)
            wg["status --json"].append(theirs.ask("show", LINK, "dump"))
            alone, routed = theirs.one("delete", new, "remove")
            wg["revoke one"].append(alone)
            with_routes["revoke one"].append(routed)
        stopped = theirs.stop()
        alone, routed = theirs.start()
        wg["stop and start"].append(stopped + alone)
        with_routes["stop and start"].append(stopped + routed)
        theirs.stop()
    beside = {"start": "wg setconf", "add one": "wg set", "status --json": "wg show dump", "revoke one": "wg set remove",
              "stop and start": "device deleted, wg setconf"}
    found = []
    for name in names:
        others = {beside[name]: stat(milliseconds(wg[name]), "ms")}
        if with_routes[name]:
            others["and the same routes"] = stat(milliseconds(with_routes[name]), "ms")
        found.append(row(f"{PEERS} peers: {name}", stat(milliseconds(mine[name]), "ms"), others, reach=1 / 1.2))
    found.append(row(f"{PEERS} peers: resident memory", stat(memory, "MiB"), {"limit": limit(30, "MiB")}, reach=1))
    return found


def crowds(lab, sizes):
    """Peers that nobody knows, all asking in the same instant."""
    if not os.access(CROWD, os.X_OK):
        raise Failed(f"no {CROWD}: cargo build --example crowd")
    # a socket each
    resource.setrlimit(resource.RLIMIT_NOFILE, (16_384, 16_384))
    run("ip", "-n", lab.peer, "route", "add", "local", "198.18.0.0/15", "dev", "lo")
    run("ip", "-n", lab.internet, "route", "add", "198.18.0.0/15", "via", "198.51.100.10")
    found = []
    for size in sizes:
        progress(f"{size} unknown peers at once")
        exit_ = lab.start_exit(state=lab.path(f"crowd{size}"))
        public_key, endpoint = exit_.connect.split("@")
        said = json.loads(run(*inside(lab.peer, CROWD, public_key, endpoint, size, "198.18.0.1")))
        exit_.down()
        # linear from 3 s for 200
        beside = {"limit": limit(3.0 * size / 200, "s")}
        found.append(row(f"{size} unknown peers at once, all in", stat([said["last_s"]], "s"), beside, reach=1,
                         note=f"{said['joined']} joined, half of them after {said['half_s']:.2f} s"))
    return found


def rows(rounds):
    with Lab() as lab:
        found = many_peers(lab, rounds)
    if not GUEST:
        return found
    with Lab() as lab:
        return found + crowds(lab, (200, 2000))
