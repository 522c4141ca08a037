"""A demo of three nodes as the programs here use it: started, watched, asked who leads. Only Python's own library."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

# The cluster has this long to take writes again before a program gives up.
GIVE_UP_AFTER_S = 60


class Cluster:
    """The nodes of a demo: endpoints, health, who leads, which process."""

    def __init__(self, folder):
        self.record = pathlib.Path(folder) / "demo.json"

    def nodes(self):
        return json.loads(self.record.read_text())["nodes"]

    def login(self):
        record = json.loads(self.record.read_text())
        return record["username"], record["password"], record["database"]

    def page(self, node, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{node['metrics_port']}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def leader(self):
        """The one node that says it leads the database."""
        database = self.login()[2]
        said = re.compile(r'^alhambra_raft_is_leader\{[^}]*db="%s"[^}]*\} 1(\.0)?$' % re.escape(database), re.M)

        def only_one():
            leading = [node for node in self.nodes() if said.search(self.page(node, "/metrics")[1])]
            return leading[0] if len(leading) == 1 else None

        return wait_for(only_one, "exactly one leader")

    def wait_ready(self):
        for number in [node["node"] for node in self.nodes()]:

            def ready():
                node = next(node for node in self.nodes() if node["node"] == number)
                return self.page(node, "/readyz")[0] == 200

            wait_for(ready, f"node {number} to be ready")


def wait_for(condition, what):
    """Asks until the condition holds and returns what it gave; gives up loudly."""
    deadline = time.monotonic() + GIVE_UP_AFTER_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {GIVE_UP_AFTER_S} s for {what}")
        time.sleep(0.05)


def start_demo(binary, base_port, folder, **environment):
    """Starts a demo of three nodes, with these variables as well, and returns its process once it serves."""
    log = open(pathlib.Path(folder) / "demo.log", "wb")
    demo = subprocess.Popen(
        [binary, "demo", "--dir", folder, "--base-port", str(base_port), "--json"], stdout=subprocess.PIPE, stderr=log,
        env={**os.environ, **environment}
    )
    if not demo.stdout.readline():
        demo.wait()
        sys.exit(pathlib.Path(log.name).read_text())
    return demo
