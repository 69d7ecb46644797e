"""What the benchmarks share: namespaces, processes with a clock, medians with their spread. Standard library only."""

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PEERVPN = os.environ.get("PEERVPN", "target/release/peervpn")
GUEST = os.environ.get("GUEST")  # "uml", "qemu", or None: natively
# without a guest's kernel WireGuard: devices of both ends share /run/wireguard, so they have names of their own
ON_EXIT, ON_PEER = (
    ([], [])
    if GUEST
    else tuple(["--backend", "userspace", "--interface", name] for name in ("pvbexit", "pvbpeer"))
)
WEB = "192.0.2.80"
EXIT, PEER = "203.0.113.20", "198.51.100.10"
PORT = 51820
ECHO = 7
IPERF = 5201


class Failed(Exception):
    """A measurement that came to nothing; its row says so."""


def progress(text):
    print(f"   {text}", file=sys.stderr, flush=True)


# --- numbers -----------------------------------------------------------------------------------------------------


def stat(values, unit):
    """Median and range of what was measured."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values), "unit": unit}


def limit(value, unit):
    """What something must not exceed, in a rival's place."""
    return {"median": value, "low": value, "high": value, "n": 0, "unit": unit}


def row(name, ours, others, better="lower", reach=None, note=""):
    """One line of the table: ours and others as `stat`s by name; the ratio is others' best to ours, above 1 is ours."""
    return {"name": name, "ours": ours, "others": others, "better": better, "reach": reach, "note": note}


def interleave(rounds, *measured):
    """Calls each in turn, `rounds` times, so that whatever else the machine does meets all of them alike."""
    values = [[] for _ in measured]
    for _ in range(rounds):
        for taken, measure in zip(values, measured):
            taken.append(measure())
    return values


def save(group, rows):
    """Into the directory that the host reads."""
    directory = os.environ["RESULTS"]
    with open(os.path.join(directory, f"{group}.json"), "w", encoding="utf-8") as file:
        json.dump({"kernel": os.uname().release, "cores": os.cpu_count(), "rows": rows}, file)


# --- processes ---------------------------------------------------------------------------------------------------


def run(*command, **options):
    """Runs to the end; what it printed."""
    options.setdefault("stderr", subprocess.PIPE)
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def entered(space):
    """This thread inside a namespace; setns(2)."""
    with open("/proc/self/ns/net", "rb") as home, open(f"/run/netns/{space}", "rb") as there:
        if LIBC.setns(there.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), f"setns {space}")
        try:
            yield
        finally:
            LIBC.setns(home.fileno(), 0x40000000)


def start(space, *command, **options):
    """The process, started in a namespace by nobody in between: that would be measured, too."""
    if os.path.exists(own_resolver(space)):
        return subprocess.Popen(inside(space, *command), **options)
    with entered(space):
        return subprocess.Popen([str(part) for part in command], **options)


def timed(space, *command):
    """Seconds from before its start in a namespace until it has ended."""
    with tempfile.TemporaryFile("w+") as complaint:
        started = time.monotonic()
        done = start(space, *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaint).wait()
        taken = time.monotonic() - started
        if done != 0:
            complaint.seek(0)
            raise Failed(f"{' '.join(map(str, command))}: {complaint.read()}")
    return taken


def own_resolver(space):
    """The /etc/resolv.conf of a namespace, if it has one of its own (`Lab.own_resolver`); ip-netns(8)."""
    return f"/etc/netns/{space}/resolv.conf"


def inside(space, *command):
    """The command in a namespace; with an /etc/resolv.conf of its own where it has one (`Lab.own_resolver`), else without
    the mounts that make one."""
    if os.path.exists(own_resolver(space)):
        return ["ip", "netns", "exec", space, *map(str, command)]
    return ["nsenter", f"--net=/run/netns/{space}", "--", *map(str, command)]


class Node:
    """A `peervpn exit` or `connect` of a namespace, its JSON events with the times they came."""

    def __init__(self, lab, space, *args, state=None, under=()):
        self.lab, self.space = lab, space
        self.places = ["--state-dir", state or lab.path(f"{space}.state"), "--run-dir", lab.path(f"{space}.run")]
        self.log = open(lab.path(f"{space}.log"), "a", encoding="utf-8")
        self.events, self.changed = [], threading.Condition()
        self.started = time.monotonic()
        self.process = start(
            space, *under, PEERVPN, *self.places, *args, "--json",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            now = time.monotonic()
            with self.changed:
                self.events.append((now, json.loads(line)))
                self.changed.notify_all()
        with self.changed:
            self.events.append((time.monotonic(), {"event": None}))
            self.changed.notify_all()

    def wait(self, event, limit=60, count=1):
        """When and what; seconds are of the monotonic clock."""
        deadline = time.monotonic() + limit
        with self.changed:
            while True:
                found = [(at, said) for at, said in self.events if said["event"] == event]
                if len(found) >= count:
                    return found[count - 1]
                ended = any(said["event"] is None for _, said in self.events)
                if ended or not self.changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    with open(self.log.name, encoding="utf-8") as log:
                        raise Failed(f"{self.space}: no event {event!r}: {log.read()[-2000:]}")

    def ask(self, *args):
        """The command line that asks this node something."""
        return inside(self.space, PEERVPN, *self.places, *args)

    def timed(self, *args):
        """Seconds that a question took."""
        return timed(self.space, PEERVPN, *self.places, *args)

    def down(self):
        """Seconds that `peervpn down` took."""
        taken = self.timed("down")
        self.process.wait(30)
        self.reader.join()
        return taken

    def memory(self):
        """Resident bytes, now."""
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


# --- the lab -----------------------------------------------------------------------------------------------------

LABS = itertools.count()


class Lab:
    """A peer, an exit, and the internet in between with a web server:

        peer 198.51.100.10 --- internet, 192.0.2.80 --- exit 203.0.113.20
    """

    def __init__(self, delay_ms=0):
        self.dir = tempfile.mkdtemp(prefix="pvbench.", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.tag = f"pvb{os.getpid()}{next(LABS)}"
        self.nodes, self.children = [], []
        self.internet, self.exit, self.peer = (f"{self.tag}{place}" for place in ("i", "e", "p"))
        for space in (self.internet, self.exit, self.peer):
            run("ip", "netns", "add", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        sysctls = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
        run(*inside(self.internet, "sh", "-c", sysctls))
        self.batch(self.internet, f"addr add {WEB}/32 dev lo")
        for space, link, address, network, v6 in (
            (self.exit, "e", EXIT, "203.0.113", "2001:db8:e"),
            (self.peer, "p", PEER, "198.51.100", "2001:db8:1"),
        ):
            self.batch(
                self.internet,
                f"link add name {link} type veth peer name eth0 netns {space}",
                f"addr add {network}.1/24 dev {link}",
                f"addr add {v6}::1/64 dev {link} nodad",
                f"link set {link} up",
            )
            self.batch(
                space,
                f"addr add {address}/24 dev eth0",
                f"addr add {v6}::10/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via {network}.1",
                f"route add default via {v6}::1",
            )
        if delay_ms:
            # half of the round trip each way, on the wire to the peer
            for space, link in ((self.internet, "p"), (self.peer, "eth0")):
                run(*inside(space, "tc", "qdisc", "add", "dev", link, "root", "netem", "delay", f"{delay_ms / 2}ms"))
        with entered(self.internet):
            self.echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.echo.bind((WEB, ECHO))
        with entered(self.peer):
            self.probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        threading.Thread(target=self._echo, daemon=True).start()

    def _echo(self):
        # answers with where the question came from
        while True:
            _, source = self.echo.recvfrom(64)
            self.echo.sendto(source[0].encode(), source)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in [node.process for node in self.nodes] + self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
        for child in [node.process for node in self.nodes] + self.children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
        for space in (self.internet, self.exit, self.peer):
            subprocess.run(["ip", "netns", "del", space], check=False)
            shutil.rmtree(f"/etc/netns/{space}", ignore_errors=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    @contextlib.contextmanager
    def own_resolver(self):
        """The peer has an /etc/resolv.conf of its own: ip-netns(8). Costs every start of a program some mounts."""
        directory = f"/etc/netns/{self.peer}"
        os.makedirs(directory)
        with open(os.path.join(directory, "resolv.conf"), "w", encoding="utf-8") as file:
            file.write("nameserver 192.0.2.53\n")
        try:
            yield
        finally:
            shutil.rmtree(directory)

    def path(self, name):
        return os.path.join(self.dir, name)

    def batch(self, space, *lines):
        run("ip", "-n", space, "-batch", "-", input="\n".join(lines))

    def reply(self, limit=20):
        """Asks the web server until it answers someone who comes from the exit; when that was."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.probe.settimeout(1)
                self.probe.sendto(b"?", (WEB, ECHO))
                if self.probe.recv(64) == EXIT.encode():
                    return time.monotonic()
            time.sleep(0.002)
        raise Failed("no reply through the tunnel")

    def child(self, space, *command):
        """A program that runs until the end of the lab."""
        quiet = subprocess.DEVNULL
        child = subprocess.Popen(inside(space, *command), stdin=quiet, stdout=quiet, stderr=quiet)
        self.children.append(child)
        return child

    def start_exit(self, *args, **options):
        node = Node(self, self.exit, "exit", "--accept", "any", "--no-stun", "--no-portmap", "--endpoint",
                    f"{EXIT}:{PORT}", "--dns", "192.0.2.53", *args, **options)
        self.nodes.append(node)
        ready = node.wait("ready")
        node.ready, node.connect = ready[0], ready[1]["connect"]
        return node

    def start_connect(self, target, *args, **options):
        node = Node(self, self.peer, "connect", target, *args, **options)
        self.nodes.append(node)
        return node


def have(*programs):
    """Which of them are missing."""
    return [program for program in programs if not shutil.which(program)]
