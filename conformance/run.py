#!/usr/bin/env python3
"""Runs the conformance flows of every language against three nodes, quiet and while the leader is killed every few seconds.

A flow is a few calls of an official SDK, in a key space of its own. Each language has one program that only knows its flows:
this program starts it, tells it by a line of JSON which flow to run on which node, and judges what it answers. So the
cluster, the killing, the order, the patience and the verdict are the same for all languages.

 * A flow that is cut short by a dead node or an unknown outcome begins anew in another key space, beside kills only.
 * An answer that is wrong fails the run, whoever died; so does a program that ends, or that answers nothing.
 * A language whose toolchain is missing or whose packages cannot be fetched is skipped with a line that says so; one that
   does not build is no reason to skip it.
 * No kill at all fails the run that was to have some.

A program writes its flows first, {"flows": [...], "sdk": "..."}, and then one line per request {"flow", "endpoint", "endpoints",
"space", "tag", "username", "password", "database", "state", "key", "other_key"}: {"result": "ok"}, {"result": "wrong", "text"}, or {"result": "error",
"code", "text"} with the status of the call that failed, and "expected" if it was to be refused otherwise.

The nodes of a demo of our own sign states, and "key" is the file of the public key; "other_key" is that of somebody else. SDKs that
can, verify every signature. Nodes that are attached to may sign or not: then there are no keys.

    conformance/run.py --demo target/release/alhambra --kills 4
"""

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent
sys.path.insert(0, str(TOP / "examples"))
from demo_cluster import GIVE_UP_AFTER_S, Cluster, start_demo  # noqa: E402

# What a client sees when a node dies under it: nothing is wrong with the answer, there is none.
CUT_SHORT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
# A login is of one node until tokens are of the cluster.
OTHER_LOGIN = {"not logged in", "invalid token", "session not found", "no session found"}
# A flow of a dozen calls, each of which may take as long as its client lets it.
ANSWER_S = 300
PREPARE_S = 600
# The key that signs, its public half, and the public half of another one.
SIGNS, KEY, OTHER_KEY = (TOP / "node" / "testdata" / f"{name}.pem" for name in ("signing_key", "signing_key.pub", "other_key.pub"))
# Of key spaces, none of which is used twice.
NUMBERS = itertools.count()


class Failed(Exception):
    """The run is over: what is wrong, in words."""


class Skipped(Exception):
    """This language cannot be run on this machine: why."""


def cache():
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "alhambra" / "conformance"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def needs(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            raise Skipped(f"{tool} is missing")


# What fetching packages says when the lists that we keep are wrong, which is no reason to skip anything.
OUR_LISTS = ("npm error code EUSAGE", "npm error code EJSONPARSE", "errors parsing go.mod", "checksum mismatch",
             "Non-parseable POM", "ProjectBuildingException")


def call(command, folder, failure, **environment):
    """Runs a command of a toolchain; what it said goes into the failure."""
    try:
        done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PREPARE_S, check=False)
    except subprocess.TimeoutExpired:
        raise failure(f"{' '.join(map(str, command))}: not done within {PREPARE_S} s") from None
    if done.returncode != 0:
        failure = Failed if any(text in done.stdout for text in OUR_LISTS) else failure
        said = f"{' '.join(map(str, command))}: {done.stdout.strip()}"
        # A skipped language is one line; what is wrong with ours is told whole.
        raise failure(" ".join(said.split())[:300] if failure is Skipped else said)


def prepare_python():
    venv = os.environ.get("VENV") or cache() / "venv"
    call([TOP / "scripts" / "python-env.sh", venv], TOP, Skipped)
    return [pathlib.Path(venv) / "bin" / "python", HERE / "python" / "flows.py"], {}


def prepare_go():
    needs("go")
    here, program = HERE / "go", cache() / "flows-go"
    call(["go", "mod", "download"], here, Skipped, GOFLAGS="-mod=readonly")
    call(["go", "build", "-o", program, "."], here, Failed, GOFLAGS="-mod=readonly -buildvcs=false", CGO_ENABLED="0")
    return [program], {}


def prepare_node():
    needs("node", "npm")
    # The packages lie where `require` looks for them without a folder beside the program.
    wanted = [HERE / "node" / name for name in ("package.json", "package-lock.json")]
    packages = cache() / f"node-{hashlib.sha256(b''.join(file.read_bytes() for file in wanted)).hexdigest()[:16]}"
    if not (packages / "installed").exists():
        packages.mkdir(exist_ok=True)
        for file in wanted:
            shutil.copy(file, packages)
        call(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], packages, Skipped)
        (packages / "installed").touch()
    return ["node", HERE / "node" / "flows.js"], {"NODE_PATH": str(packages / "node_modules")}


def prepare_java():
    needs("java", "javac", "mvn")
    here, classes = HERE / "java", cache() / "java"
    paths = classes / "classpath"
    classes.mkdir(exist_ok=True)
    # Maven only fetches, so that what fails after it is ours.
    call(["mvn", "-q", "-B", "dependency:build-classpath", f"-Dmdep.outputFile={paths}"], here, Skipped)
    found = {"CLASSPATH": f"{paths.read_text().strip()}{os.pathsep}{classes}"}
    call(["javac", "-Xlint:all,-serial", "-proc:none", "-Werror", "-d", classes, "Flows.java"], here, Failed, **found)
    version = re.search(r"<artifactId>immudb4j</artifactId>\s*<version>([^<]*)", (here / "pom.xml").read_text()).group(1)
    return ["java", "-Xmx256m", "Flows", version], found


PREPARE = {"python": prepare_python, "go": prepare_go, "node": prepare_node, "java": prepare_java}


class Program:
    """The flows of one language, in a process of their own that lives as long as the run."""

    def __init__(self, language, folder):
        self.language = language
        command, environment = PREPARE[language]()
        self.state = pathlib.Path(folder) / f"state-{language}"
        self.state.mkdir()
        self.log = pathlib.Path(folder) / f"{language}.log"
        self.answers = queue.Queue()
        # What the SDK writes into its folder is nothing that a clone should see.
        self.process = subprocess.Popen(list(map(str, command)), cwd=self.state, env={**os.environ, **environment},
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("wb"), text=True)
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            hello = self.answer()
            self.flows, self.sdk = hello["flows"], hello["sdk"]
        except BaseException:
            self.stop()
            raise

    def listen(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def answer(self):
        try:
            line = self.answers.get(timeout=ANSWER_S)
        except queue.Empty:
            raise Failed(f"{self.language}: no answer within {ANSWER_S} s") from None
        if line is None:
            self.process.wait()
            said = self.log.read_text(errors="replace")[-3000:]
            raise Failed(f"{self.language}: the program ended with {self.process.returncode}: {said}")
        try:
            return json.loads(line)
        except ValueError:
            raise Failed(f"{self.language}: no line of JSON: {line[:500]!r}") from None

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # the answer says how it ended
        return self.answer()

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Killer:
    """Kills the leader with SIGKILL every few seconds until it is told to stop."""

    def __init__(self, cluster, every_s):
        self.cluster, self.every_s, self.kills = cluster, every_s, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.failure = None

    def run(self):
        while not self.stop.wait(self.every_s):
            try:
                os.kill(self.cluster.leader()["pid"], signal.SIGKILL)
                self.kills += 1
            except ProcessLookupError:
                continue  # it was killed before the demo said so
            except Exception as error:  # pylint: disable=broad-except
                self.failure = error
                return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.stop.set()
        self.thread.join()
        if kind is None and self.failure is not None:
            raise Failed(f"no leader could be killed any more: {self.failure}")
        if kind is None:
            self.cluster.wait_ready()


def attempt(program, cluster, place, flow, signed):
    """Runs a flow on one node, in a key space of its own."""
    number = next(NUMBERS)
    username, password, database = cluster.login()
    return program.ask({
        "flow": flow,
        "endpoint": cluster.nodes()[place]["endpoint"],
        "endpoints": [node["endpoint"] for node in cluster.nodes()],
        "space": f"conformance/{os.getpid()}-{number}-{program.language}-{flow}/",
        "tag": f"{os.getpid()}x{number}",
        "username": username,
        "password": password,
        "database": database,
        "state": str(program.state),
        "key": str(KEY) if signed else "",
        "other_key": str(OTHER_KEY) if signed else "",
    })


def until_done(program, cluster, place, flow, kills, signed):
    """Runs a flow until it goes through; answers how often it was cut short."""
    again, deadline = 0, time.monotonic() + GIVE_UP_AFTER_S
    while True:
        answer = attempt(program, cluster, place, flow, signed)
        if answer["result"] == "ok":
            return again
        where = f"{program.language}: {flow} on node {place + 1}" + (f" at {answer['where']}" if "where" in answer else "")
        if answer["result"] != "error":
            raise Failed(f"{where}: {answer['text']}")
        cut = answer["code"] in CUT_SHORT or answer["text"] in OTHER_LOGIN
        if not (kills and cut) or time.monotonic() > deadline:
            wanted = f" instead of {answer['expected']!r}" if "expected" in answer else ""
            raise Failed(f"{where}: {answer['code']}: {answer['text']!r}{wanted} (cut short {again} times before)")
        again += 1
        time.sleep(0.1)


def run(program, cluster, seconds, kills, rng, stop, signed):
    """Every flow on every node, and more of them until the time is over; answers how many ran and how many began anew."""
    ran, again = 0, 0
    until = time.monotonic() + seconds
    every = [(place, flow) for place in range(len(cluster.nodes())) for flow in sorted(program.flows)]
    order = []
    while (ran < len(every) or time.monotonic() < until) and not stop.is_set():
        if not order:
            order = rng.sample(every, len(every))
        again += until_done(program, cluster, *order.pop(), kills, signed)
        ran += 1
    return ran, again


def beside_each_other(programs, work):
    """One thread per language; the first failure stops the others and is raised."""
    found, failures, stop = {}, [], threading.Event()

    def one(program):
        try:
            found[program.language] = work(program, stop)
        except BaseException as error:  # pylint: disable=broad-except
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=one, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def start_programs(languages, folder):
    """A program per language that this machine can run, made beside each other; the others are named with their reason."""

    def start(language):
        started = time.monotonic()
        try:
            program = Program(language, folder)
        except Skipped as reason:
            print(f"skipped: {language}: {reason}", flush=True)
            return None
        print(f"{language}: {len(program.flows)} flows with {program.sdk}, ready in {time.monotonic() - started:.1f} s", flush=True)
        return program

    with concurrent.futures.ThreadPoolExecutor() as workers:
        starting = [workers.submit(start, language) for language in languages]
    failed = [one.exception() for one in starting if one.exception() is not None]
    programs = [one.result() for one in starting if one.exception() is None and one.result() is not None]
    if failed:
        for program in programs:
            program.stop()
        raise failed[0]
    return programs


def both_runs(programs, cluster, arguments):
    cluster.wait_ready()
    # Each language has its own order, which does not depend on which others run.
    signed = arguments.demo is not None
    orders = {program.language: random.Random(f"{arguments.seed} {program.language}") for program in programs}
    for program in programs:
        started = time.monotonic()
        ran, _ = run(program, cluster, 0, False, orders[program.language], threading.Event(), signed)
        print(f"{program.language}, quiet: {ran} flows ok in {time.monotonic() - started:.1f} s", flush=True)
    if not arguments.kills:
        return
    started = time.monotonic()
    with Killer(cluster, arguments.kills) as killer:
        found = beside_each_other(programs, lambda program, stop: run(
            program, cluster, arguments.seconds, True, orders[program.language], stop, signed))
    for language, (ran, again) in found.items():
        print(f"{language}, leader killed {killer.kills} times: {ran} flows ok, {again} cut short and begun anew, in "
              f"{time.monotonic() - started:.1f} s", flush=True)
    if killer.kills == 0:
        raise Failed("no leader was killed: more seconds, or kills more often")


def say_how_the_cluster_is(cluster):
    """What a failure beside kills has to be explained with: each node's own word, and the end of what the demo said."""
    for node in cluster.nodes():
        status, page = cluster.page(node, "/readyz")
        print(f"node {node['node']}, process {node['pid']}: readyz {status}: {' '.join(page.split())[:300]}", file=sys.stderr)
    log = cluster.record.parent / "demo.log"
    if log.exists():
        print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:]), file=sys.stderr, end="", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--demo", metavar="BINARY", help="start a demo of its own with this alhambra binary")
    where.add_argument("--attach", metavar="DIR", help="use the running demo of this folder")
    parser.add_argument("--language", default=",".join(PREPARE), help="these languages, with commas (default: all)")
    parser.add_argument("--flow", metavar="NAME", help="only this flow")
    parser.add_argument("--base-port", type=int, default=3322, help="base port of the own demo")
    parser.add_argument("--kills", type=float, metavar="SECONDS", help="then again, killing the leader this often")
    parser.add_argument("--seconds", type=float, default=30, help="how long flows run beside kills, at least")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    languages = arguments.language.split(",")
    unknown = [language for language in languages if language not in PREPARE]
    if unknown:
        parser.error(f"no flows in {', '.join(unknown)}; there are {', '.join(PREPARE)}")
    print(f"seed {arguments.seed}", flush=True)
    # For the flows that start a node of their own.
    if arguments.demo:
        os.environ["ALHAMBRA_SERVER"] = str(pathlib.Path(arguments.demo).resolve())
    else:
        os.environ.pop("ALHAMBRA_SERVER", None)
    with tempfile.TemporaryDirectory(prefix="conformance-") as own:
        programs, demo, cluster = [], None, None
        try:
            programs = start_programs(languages, own)
            for program in programs:
                program.flows = [flow for flow in program.flows if arguments.flow in (None, flow)]
            programs = [program for program in programs if program.flows]
            if not programs:
                sys.exit("skipped: no language can be run here" if arguments.flow is None else "error: no such flow")
            folder = arguments.attach or pathlib.Path(own) / "demo"
            if arguments.demo:
                folder.mkdir()
                demo = start_demo(arguments.demo, arguments.base_port, str(folder), ALHAMBRA_SIGNINGKEY=str(SIGNS))
            cluster = Cluster(folder)
            both_runs(programs, cluster, arguments)
        except Failed as error:
            # Said before anything is stopped, which can hang as well.
            print(f"FAILED: {error} (seed {arguments.seed})", file=sys.stderr, flush=True)
            if cluster is not None:
                say_how_the_cluster_is(cluster)
            sys.exit(1)
        finally:
            for program in programs:
                program.stop()
            if demo is not None:
                demo.send_signal(signal.SIGTERM)
                demo.wait(timeout=GIVE_UP_AFTER_S)


if __name__ == "__main__":
    main()
