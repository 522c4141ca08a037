#!/usr/bin/env python3
"""Records the SHA-256 of every file below a folder, while the leader of the cluster is killed, and loses nothing.

The program is what a user would write with the official Python SDK (package immudb-py, nothing of it is changed):

 1. It hashes every file below a folder (default: the standard library of the Python that runs it).
 2. It records half of them one by one with verifiedSet, the other half in batches with setAll, each followed by
    verifiedGet. In the middle the leader is killed with SIGKILL. After an error the outcome of a write is unknown:
    a verified read decides before anything is written again, on another node where this one is gone.
 3. It reads every file back, verified, from each node by itself, and checks that history has exactly one revision.

It does so twice: attached to the leader, which is killed, and attached to a follower while the leader is killed.
The trusted state is carried over all nodes and both runs: a node with another history would be found out.

    scripts/python-env.sh
    .venv/bin/python examples/notarize.py --demo target/release/alhambra

With a running `alhambra demo --dir DIR`, use --attach DIR instead of --demo.
"""

import argparse
import hashlib
import json
import os
import pathlib
import signal
import sys
import sysconfig
import tempfile
import threading
import time

import grpc
from google.protobuf.empty_pb2 import Empty
from immudb import ImmudbClient
from immudb.rootService import RootService

from demo_cluster import GIVE_UP_AFTER_S, Cluster, start_demo

# Longer than the server's own limit for a call, so that the server's answer is heard.
CALL_TIMEOUT_S = 20
BATCH_FILES = 100


class CarriedState(RootService):
    """The trusted state, kept whichever node is asked; it only moves forward."""

    def __init__(self):
        self._state = None

    def init(self, dbname, service):
        if self._state is None:
            self._state = service.CurrentState(Empty())

    def get(self):
        return self._state

    def set(self, root):
        if root.txId >= self._state.txId:
            self._state = root


class NotAbsentNotEqual(Exception):
    """A key holds something that this program never wrote."""


class Killer:
    """Kills the leader with SIGKILL while a write is under way."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.victim = cluster.leader()
        self.killed_at = None
        self._thread = None

    def strike(self):
        def kill():
            os.kill(self.victim["pid"], signal.SIGKILL)
            self.killed_at = time.monotonic()

        self._thread = threading.Thread(target=kill)
        self._thread.start()

    def done(self):
        self._thread.join()


class Notary:
    """A connection to one node at a time, and writes that are surely in the ledger exactly once."""

    def __init__(self, cluster, state, endpoint):
        self.cluster, self.state = cluster, state
        self.endpoints = [node["endpoint"] for node in cluster.nodes()]
        self.at = self.endpoints.index(endpoint)
        self.client = None
        self.transactions = 0
        self.errors = []
        self.unknown_applied = 0
        self.fences = 0
        self.last_success_at = None
        self.connect()

    @property
    def endpoint(self):
        return self.endpoints[self.at]

    def connect(self):
        self.close()
        username, password, database = self.cluster.login()
        client = ImmudbClient(self.endpoint, rs=self.state, timeout=CALL_TIMEOUT_S)
        client.login(username, password, database.encode())
        self.client = client

    def close(self):
        if self.client is not None:
            self.client.shutdown()
            self.client = None

    def write(self, entries):
        """Writes all entries as one transaction, exactly once, whatever happens on the way."""
        deadline = time.monotonic() + GIVE_UP_AFTER_S
        while True:
            try:
                if self.client is None:
                    self.connect()
                if len(entries) == 1:
                    # Raises by itself when the proof does not hold.
                    self.client.verifiedSet(*next(iter(entries.items())))
                else:
                    self.client.setAll(entries)
            except grpc.RpcError as error:
                self.note(error)
                if self.decide(entries):
                    self.unknown_applied += 1
                    break
                if time.monotonic() > deadline:
                    raise
                continue
            break
        self.transactions += 1
        self.last_success_at = time.monotonic()

    def decide(self, entries):
        """Whether a write whose outcome is unknown is in the ledger: all of it or nothing.

        The fence comes first: once it is committed, everything that was proposed before it is committed or gone, so
        what the verified reads then show is final.
        """
        deadline = time.monotonic() + GIVE_UP_AFTER_S
        while True:
            try:
                if self.client is None:
                    self.connect()
                self.fences += 1
                fence = f"notarize/fence/{os.getpid()}/{time.time_ns()}".encode()
                self.client.verifiedSet(fence, b"before this, all is decided")
                found = [self.read(key) for key in entries]
            except grpc.RpcError as error:
                self.note(error)
                if time.monotonic() > deadline:
                    raise
                continue
            if found == list(entries.values()):
                return True
            if found == [None] * len(entries):
                return False
            raise NotAbsentNotEqual(f"a transaction is in the ledger in part or changed: {list(entries)[:3]} ...")

    def note(self, error):
        """Keeps the error for the summary; leaves a node that is gone or does not know this login any more."""
        text = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else repr(error)
        self.errors.append(f"{self.endpoint}: {text}")
        still_there = isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if not still_there:
            self.close()
            self.at = (self.at + 1) % len(self.endpoints)
            # A refused connection costs nothing; do not ask the dead more often than needed.
            time.sleep(0.02)

    def read(self, key):
        """The value, verified against the carried state; None when the key is absent."""
        try:
            answer = self.client.verifiedGet(key)
        except grpc.RpcError as error:
            if error.details() is not None and error.details().endswith("key not found"):
                return None
            raise
        if answer is None:
            return None
        if not answer.verified or answer.key != key:
            raise NotAbsentNotEqual(f"{key!r}: the answer does not belong to the question")
        return answer.value


def digests(folder):
    """(relative path, SHA-256 as hex) of every file below the folder, in order; links are not followed."""
    found = []
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file() and not path.is_symlink() and "site-packages" not in path.relative_to(folder).parts:
            found.append((path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


def notarize(cluster, state, files, attach_to):
    """One run; returns its summary."""
    cluster.wait_ready()
    killer = Killer(cluster)
    followers = [node for node in cluster.nodes() if node["node"] != killer.victim["node"]]
    first = killer.victim if attach_to == "leader" else followers[0]
    notary = Notary(cluster, state, first["endpoint"])
    space = f"notarize/{attach_to}/{time.time_ns()}/"
    wanted = {f"{space}{path}".encode(): digest.encode() for path, digest in files}
    keys = list(wanted)

    started = time.monotonic()
    written, failover_s, killed_after = 0, None, None
    # Chunks alternate between the two ways of writing, so that the kill can meet either.
    for number, begin in enumerate(range(0, len(keys), BATCH_FILES)):
        chunk = {key: wanted[key] for key in keys[begin:begin + BATCH_FILES]}
        if number % 2 == 0:
            for key in chunk:
                if killer.killed_at is None and killed_after is None and written >= len(keys) // 2:
                    killed_after = written
                    killer.strike()
                notary.write({key: chunk[key]})
                written += 1
                if killed_after is not None and failover_s is None:
                    killer.done()
                    if notary.last_success_at > killer.killed_at:
                        failover_s = notary.last_success_at - killer.killed_at
        else:
            notary.write(chunk)
            for key in chunk:
                check_written(notary, key, chunk[key])
            written += len(chunk)
    writing_s = time.monotonic() - started
    ended_at = notary.endpoint
    notary.close()

    cluster.wait_ready()
    per_node = []
    for node in cluster.nodes():
        reader = Notary(cluster, state, node["endpoint"])
        verified = sum(reader.read(key) == wanted[key] for key in keys)
        single = sum(
            [item.value for item in reader.client.history(key, 0, 10, False)] == [wanted[key]] for key in keys
        )
        reader.close()
        per_node.append({"endpoint": node["endpoint"], "verified": verified, "one_revision": single})
    return {
        "attached_to": attach_to,
        "files": len(keys),
        "transactions": notary.transactions,
        "fences": notary.fences,
        "leader_killed": killer.victim["endpoint"],
        "leader_killed_after_files": killed_after,
        "failover_s": None if failover_s is None else round(failover_s, 2),
        "errors": notary.errors,
        "unknown_outcomes_applied": notary.unknown_applied,
        "first_endpoint": first["endpoint"],
        "last_endpoint": ended_at,
        "writing_s": round(writing_s, 1),
        "nodes": per_node,
    }


def check_written(notary, key, value):
    """A verified read of what was just written; goes on with another node where this one is gone."""
    deadline = time.monotonic() + GIVE_UP_AFTER_S
    while True:
        try:
            if notary.client is None:
                notary.connect()
            found = notary.read(key)
        except grpc.RpcError as error:
            notary.note(error)
            if time.monotonic() > deadline:
                raise
            continue
        if found != value:
            raise NotAbsentNotEqual(f"{key!r} was acknowledged and reads as {found!r}")
        return


def holds(summary):
    """Whether a run kept every promise."""
    files = summary["files"]
    return (
        summary["failover_s"] is not None
        and len(summary["nodes"]) >= 3
        and all(node["verified"] == files and node["one_revision"] == files for node in summary["nodes"])
    )


def show(summary):
    print(f"run attached to the {summary['attached_to']} ({summary['first_endpoint']})")
    print(f"  files            {summary['files']}")
    print(f"  transactions     {summary['transactions']} and {summary['fences']} fences in {summary['writing_s']} s")
    print(f"  leader killed at file {summary['leader_killed_after_files']} ({summary['leader_killed']}, SIGKILL)")
    print(f"  failover         {summary['failover_s']} s from the kill to the next acknowledged write")
    print(f"  went on at       {summary['last_endpoint']}")
    print(f"  errors seen      {len(summary['errors'])}, of these writes {summary['unknown_outcomes_applied']} were in"
          " the ledger and were not written again")
    for text in summary["errors"][:5]:
        print(f"                   {text}")
    for node in summary["nodes"]:
        print(f"  {node['endpoint']}   verified {node['verified']} of {summary['files']}, exactly one revision "
              f"{node['one_revision']} of {summary['files']}")
    print(f"  {'ok' if holds(summary) else 'FAILED'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--demo", metavar="BINARY", help="start a demo of its own with this alhambra binary")
    where.add_argument("--attach", metavar="DIR", help="use the running demo of this folder")
    parser.add_argument("--base-port", type=int, default=3322, help="base port of the own demo")
    parser.add_argument("--folder", default=sysconfig.get_paths()["stdlib"], help="files to record")
    parser.add_argument("--runs", default="leader,follower", help="attach to these, one run each")
    parser.add_argument("--limit", type=int, help="only the first N files")
    parser.add_argument("--json", action="store_true", help="print the summaries as JSON")
    arguments = parser.parse_args()

    files = digests(arguments.folder)[: arguments.limit]
    if not files:
        sys.exit(f"error: no files below {arguments.folder}\n  what to do: name another folder with --folder")
    with tempfile.TemporaryDirectory(prefix="notarize-") as own:
        demo = start_demo(arguments.demo, arguments.base_port, own) if arguments.demo else None
        try:
            cluster, state = Cluster(arguments.attach or own), CarriedState()
            summaries = []
            for attach_to in arguments.runs.split(","):
                summaries.append(notarize(cluster, state, files, attach_to))
                if not arguments.json:
                    show(summaries[-1])
            if arguments.json:
                print(json.dumps(summaries, indent=2))
        finally:
            if demo is not None:
                demo.send_signal(signal.SIGTERM)
                demo.wait(timeout=GIVE_UP_AFTER_S)
    sys.exit(0 if all(holds(summary) for summary in summaries) else 1)


if __name__ == "__main__":
    main()
