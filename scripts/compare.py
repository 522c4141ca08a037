#!/usr/bin/env python3
"""Loads three-node etcd, the three-node demo and a single node in one run, and prints the tables side by side.

All systems are loaded by the same program, an independent load generator (Go, official clients of both sides), whose
folder is an argument: it has to be a main package with the flags -target -addrs -mode -clients -batch -seconds -every.
Each system is started on an empty folder, loaded alone, and stopped before the next.

    scripts/compare.py --alhambra target/release/alhambra --kvbench KVBENCH_DIR --output docs/benchmarks-latest.md

With --targets N it measures two rows alone, each N times in turn with what it is compared with, because one pair says
little on a shared machine: one-entry sets of 100 clients beside etcd, and verified gets beside plain ones.

Needs: go, and etcd (Debian: apt-get install etcd-server).
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

READY_WITHIN_S = 60
ROW = re.compile(
    r"clients\s+(?P<clients>\d+) batch\s+(?P<batch>\d+) \|\s+(?P<ops>\d+) op/s\s+(?P<entries>\d+) entries/s \| "
    r"p50\s+(?P<p50>[\d.]+) p95\s+(?P<p95>[\d.]+) p99\s+(?P<p99>[\d.]+) ms \| errors (?P<errors>\d+) \| "
    r"longest gap (?P<gap>\d+) ms"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--alhambra", required=True, metavar="BINARY", help="release build")
    parser.add_argument("--kvbench", required=True, metavar="DIR", help="folder of the load generator")
    parser.add_argument("--etcd", default="etcd", metavar="BINARY")
    parser.add_argument("--seconds", type=int, default=6, help="per row")
    parser.add_argument("--base-port", type=int, default=3322)
    parser.add_argument("--failovers", type=int, default=3, help="leaders killed under load; 0 leaves this out")
    parser.add_argument("--targets", type=int, metavar="N", help="only the rows that have a target, N times in turn")
    parser.add_argument("--output", metavar="FILE", help="write the Markdown here too")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
        scratch = pathlib.Path(scratch)
        load = scratch / "kvbench"
        subprocess.run(["go", "build", "-o", load, "."], cwd=arguments.kvbench, check=True)
        bench = Bench(load, arguments.seconds)
        if arguments.targets:
            write(arguments, targets(arguments, bench, scratch) + "\n")
            return
        report = Report(arguments, scratch)

        with Etcd(arguments.etcd, scratch) as etcd:
            report.add("etcd, 3 nodes", bench, "etcd", etcd.endpoints, [("set", 1), ("set", 100), ("get", 1)])
        with Demo(arguments.alhambra, scratch, 3, arguments.base_port) as demo:
            report.add("Alhambra, 3 nodes", bench, "immudb", demo.endpoints, OURS)
            report.failovers = [failover(bench, demo) for _ in range(arguments.failovers)]
        with Demo(arguments.alhambra, scratch, 1, arguments.base_port) as demo:
            report.add("Alhambra, 1 node", bench, "immudb", demo.endpoints, OURS)

        write(arguments, report.markdown())


def write(arguments, text):
    print(text)
    if arguments.output:
        pathlib.Path(arguments.output).write_text(text)


OURS = [("set", 1), ("set", 100), ("set", 1000), ("vset", 1), ("get", 1), ("vget", 1)]
CLIENTS = [1, 10, 100]


def targets(arguments, bench, scratch):
    """Text with the two ratios that are demanded."""
    out = [f"Machine: {machine(scratch)}", ""]
    sets, theirs = [], []

    def rate(*row, **more):
        row = bench.row(*row, **more)
        if row["errors"]:
            sys.exit(f"error: {row['errors']:.0f} calls failed, so the rate says nothing: {row['texts']}")
        return row["ops"]

    for number in range(arguments.targets):
        folder = scratch / f"round-{number}"
        folder.mkdir()
        with Etcd(arguments.etcd, folder) as etcd:
            theirs.append(rate("etcd", etcd.endpoints, "set", 100, 1))
        with Demo(arguments.alhambra, folder, 3, arguments.base_port) as demo:
            sets.append(rate("immudb", demo.endpoints, "set", 100, 1))
    out.append(pairs("100 clients, one-entry sets per second, three nodes beside three-node etcd", sets, theirs, 1.5))
    # The Go SDK writes its trusted state to a file after every verified read.
    for where, folder in [("in memory", "/dev/shm"), ("on the disk", str(scratch))]:
        verified, plain = [], []
        with (Demo(arguments.alhambra, scratch / where.replace(" ", "-"), 3, arguments.base_port) as demo,
              tempfile.TemporaryDirectory(prefix="compare-", dir=folder) as states):
            for _ in range(arguments.targets):
                for mode, rates in [("get", plain), ("vget", verified)]:
                    rates.append(rate("immudb", demo.endpoints, mode, 100, 1, "-keys", "20000", folder=states))
        out.append(pairs(f"100 clients, verified gets per second beside plain ones, folder of the SDK {where}", verified,
                         plain, 0.5))
    return "\n".join(out)


def pairs(what, ours, others, wanted):
    """What was measured, in the order of the rounds, and the ratio of the sums."""
    each = ", ".join(f"{mine:,.0f} / {other:,.0f}" for mine, other in zip(ours, others))
    return f"{what}: {each}: {sum(ours) / sum(others):.2f} together (wanted: {wanted})"


class Bench:
    """The load generator."""

    def __init__(self, binary, seconds):
        self.binary, self.seconds = binary, seconds

    def row(self, target, endpoints, mode, clients, batch, *more, seconds=None, folder=None):
        command = [self.binary, "-target", target, "-addrs", ",".join(endpoints), "-mode", mode, "-clients",
                   str(clients), "-batch", str(batch), "-seconds", str(seconds or self.seconds), *more]
        environment = os.environ | ({"TMPDIR": folder} if folder else {})
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        found = ROW.search(done.stdout)
        if done.returncode != 0 or found is None:
            sys.exit(f"error: the load generator failed: {done.stdout}{done.stderr}\n  what to do: run {command}")
        row = {name: float(value) for name, value in found.groupdict().items()}
        row["texts"] = [line.strip() for line in done.stdout.splitlines()[1:]]
        print(f"{target} {mode}: {found.group(0)}", file=sys.stderr)
        return row


class Report:
    """Rows by system, the machine, and the ratios that matter."""

    def __init__(self, arguments, scratch):
        self.arguments, self.rows, self.failovers = arguments, {}, []
        self.machine = machine(scratch)

    def add(self, system, bench, target, endpoints, kinds):
        for mode, batch in kinds:
            for clients in CLIENTS:
                self.rows[system, mode, clients, batch] = bench.row(target, endpoints, mode, clients, batch)

    def markdown(self):
        systems = list(dict.fromkeys(key[0] for key in self.rows))
        out = [
            f"Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
            f"Machine: {self.machine}",
            f"Load: keys of 32 random bytes, values of 128; {self.arguments.seconds} s per row; generator, servers and "
            "all replicas share the processors; loopback, no TLS; endpoints spread over the nodes; one system at a "
            "time, each on an empty folder.",
            "",
            "| call | clients | batch | " + " | ".join(f"{system}: op/s | entries/s | p50 ms | p99 ms | errors"
                                                       for system in systems) + " |",
            "|---|---|---|" + "---|" * (5 * len(systems)),
        ]
        kinds = list(dict.fromkeys(key[1:] for key in self.rows))
        order = ["set", "vset", "get", "vget"]
        for mode, clients, batch in sorted(kinds, key=lambda kind: (order.index(kind[0]), kind[2], kind[1])):
            cells = []
            for system in systems:
                row = self.rows.get((system, mode, clients, batch))
                cells.append("- | - | - | - | -" if row is None else
                             f"{row['ops']:,.0f} | {row['entries']:,.0f} | {row['p50']:.2f} | {row['p99']:.2f} | "
                             f"{row['errors']:.0f}")
            out.append(f"| {mode} | {clients} | {batch} | " + " | ".join(cells) + " |")
        out += ["", *self.ratios(), ""]
        if self.failovers:
            gaps = ", ".join(f"{gap:.0f}" for gap in sorted(self.failovers))
            out += [f"Failover: longest time without an acknowledged write after SIGKILL of the leader, 10 paced "
                    f"clients, {len(self.failovers)} times: {gaps} ms (must: at most 3,000).", ""]
        failed = [(key, row["texts"]) for key, row in self.rows.items() if row["texts"]]
        out += [f"Errors of {key}: {'; '.join(texts)}" for key, texts in failed]
        return "\n".join(out) + "\n"

    def ratios(self):
        ours, theirs = "Alhambra, 3 nodes", "etcd, 3 nodes"

        def get(system, mode, clients, batch, what):
            return self.rows[system, mode, clients, batch][what]

        latency = get(ours, "set", 1, 1, "p50") / max(get(theirs, "set", 1, 1, "p50"), 0.001)
        rate = get(ours, "set", 100, 1, "ops") / max(get(theirs, "set", 100, 1, "ops"), 1)
        entries = get(ours, "set", 10, 100, "entries") / max(get(theirs, "set", 10, 100, "entries"), 1)
        reads = get(ours, "get", 10, 1, "ops")
        return [
            "| three nodes against three nodes | measured | wanted | |",
            "|---|---|---|---|",
            f"| 1 client, one-entry commit: median against etcd's | {latency:.2f} x | at most 1 x | {ok(latency <= 1)} |",
            f"| 100 clients, one-entry commits per second against etcd's | {rate:.2f} x | more than 1 x | {ok(rate > 1)} |",
            f"| 10 clients of 100 entries: entries per second against etcd's | {entries:.1f} x | at least 5 x | "
            f"{ok(entries >= 5)} |",
            f"| 10 clients, get per second | {reads:,.0f} | at least 5,000 | {ok(reads >= 5000)} |",
        ]


def ok(holds):
    return "holds" if holds else "MISSED"


class Etcd:
    """Three etcd nodes on loopback, defaults."""

    def __init__(self, binary, scratch):
        self.endpoints = [f"127.0.0.1:{port}" for port in (23790, 23800, 23810)]
        peers = [f"http://127.0.0.1:{port}" for port in (23791, 23801, 23811)]
        cluster = ",".join(f"n{i}={peer}" for i, peer in enumerate(peers))
        self.commands = [
            [binary, "--name", f"n{i}", "--data-dir", str(scratch / f"etcd-{i}"), "--listen-peer-urls", peer,
             "--initial-advertise-peer-urls", peer, "--listen-client-urls", f"http://{self.endpoints[i]}",
             "--advertise-client-urls", f"http://{self.endpoints[i]}", "--initial-cluster", cluster,
             "--initial-cluster-state", "new"]
            for i, peer in enumerate(peers)
        ]
        self.log = open(scratch / "etcd.log", "wb")

    def __enter__(self):
        self.processes = [subprocess.Popen(command, stdout=self.log, stderr=self.log) for command in self.commands]

        def healthy():
            return all('"health":"true"' in (page(f"http://{endpoint}/health") or "") for endpoint in self.endpoints)

        wait_for(healthy, "etcd")
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=READY_WITHIN_S)


class Demo:
    """`alhambra demo` with some number of nodes."""

    def __init__(self, binary, scratch, nodes, base_port):
        scratch.mkdir(exist_ok=True)
        self.folder = scratch / f"demo-{nodes}"
        self.command = [binary, "demo", "--dir", str(self.folder), "--nodes", str(nodes), "--base-port",
                        str(base_port), "--json"]
        self.log = open(scratch / f"demo-{nodes}.log", "wb")

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.log)
        if not self.process.stdout.readline():
            self.process.wait()
            sys.exit(pathlib.Path(self.log.name).read_text())
        self.endpoints = [node["endpoint"] for node in self.nodes()]
        return self

    def nodes(self):
        return json.loads((self.folder / "demo.json").read_text())["nodes"]

    def leader(self):
        said = re.compile(r'^alhambra_raft_is_leader\{[^}]*db="defaultdb"[^}]*\} 1(\.0)?$', re.M)
        leading = []

        def one():
            leading[:] = [node for node in self.nodes()
                          if said.search(page(f"http://127.0.0.1:{node['metrics_port']}/metrics") or "")]
            return len(leading) == 1

        wait_for(one, "exactly one leader")
        return leading[0]

    def ready(self):
        return all(page(f"http://127.0.0.1:{node['metrics_port']}/readyz") is not None for node in self.nodes())

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=READY_WITHIN_S)


def failover(bench, demo):
    """Longest gap without a success when the leader is killed in the middle of paced writes, in ms."""
    wait_for(demo.ready, "all nodes to be ready")
    victim = demo.leader()
    timer = threading.Timer(4, os.kill, (victim["pid"], signal.SIGKILL))
    timer.start()
    row = bench.row("immudb", demo.endpoints, "set", 10, 1, "-every", "10ms", seconds=12)
    timer.join()
    wait_for(demo.ready, "the killed node to be back")
    return row["gap"]


def page(url):
    """The page's text, or None when it cannot be had or is not 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def wait_for(condition, what):
    deadline = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"error: waited {READY_WITHIN_S} s for {what}")
        time.sleep(0.05)


def machine(scratch):
    """One line: processor, memory, kernel, and what one fdatasync of 4 KiB costs here."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.M)
    took = []
    with open(scratch / "fdatasync", "wb", buffering=0) as file:
        for _ in range(500):
            begin = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - begin)
    return (f"{os.cpu_count()} cores {model.group(1) if model else ''}, "
            f"{int(memory.group(1)) / 2**20:.0f} GiB memory, Linux {os.uname().release}, "
            f"fdatasync of a 4 KiB append: median {statistics.median(took) * 1e6:.0f} us")


if __name__ == "__main__":
    main()
