#!/usr/bin/env python3
"""The flows of the official Python SDK (package immudb-py, nothing of it is changed). `conformance/run.py` says which, and judges.

Each flow is a few calls as a user would make them, with everything that the SDK verifies by itself, in a key space of its own.
"""

import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import sys

import ecdsa
import grpc
from immudb import ImmudbClient, datatypes, datatypesv2

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
from notarize import CALL_TIMEOUT_S, CarriedState  # noqa: E402

FLOWS = {}


class Wrong(Exception):
    """An answer that no server should give."""


def flow(function):
    FLOWS[function.__name__] = function
    return function


def same(found, expected, what):
    if found != expected:
        raise Wrong(f"{what}: {found!r} instead of {expected!r}")


@contextlib.contextmanager
def refused(text):
    """The call inside must be refused with exactly this text."""
    try:
        yield
    except grpc.RpcError as error:
        if error.details() != text:
            error.expected = text
            raise
    else:
        raise Wrong(f"not refused: {text}")


@flow
def values_and_history(client, space, _):
    key = space + b"value"
    for n in range(3):
        answer = client.verifiedSet(key, b"%d" % n)
        same(answer.verified, True, "verifiedSet")
    same(client.get(key).value, b"2", "get")
    same(client.verifiedGet(key).value, b"2", "verifiedGet")
    same(client.verifiedGetAt(key, answer.id).value, b"2", "verifiedGetAt")
    same(client.verifiedGetSince(key, answer.id).value, b"2", "verifiedGetSince")
    same(client.verifiedGet(key, atRevision=1).value, b"0", "verifiedGet of a revision")
    same([item.value for item in client.history(key, 0, 10, True)], [b"2", b"1", b"0"], "history")
    client.delete(datatypes.DeleteKeysRequest(keys=[key]))
    same(client.get(key), None, "a deleted key")
    same([item.value for item in client.history(key, 0, 10, False)], [b"0", b"1", b"2", b""], "history with a deletion")


@flow
def many_at_once(client, space, _):
    pairs = {space + b"%03d" % n: b"v%d" % n for n in range(100)}
    client.setAll(pairs)
    same(client.getAll(list(pairs)), pairs, "getAll")
    same(client.scan(b"", space, False, 1000), pairs, "scan")
    same(list(client.scan(b"", space, True, 3)), list(reversed(list(pairs)))[:3], "scan downward")


@flow
def expiry(client, space, _):
    now = datetime.datetime.now()
    client.expireableSet(space + b"past", b"v", now - datetime.timedelta(hours=1))
    client.expireableSet(space + b"future", b"v", now + datetime.timedelta(hours=1))
    with refused("tbtree: key not found: expired entry"):
        client.get(space + b"past")
    same(client.get(space + b"future").value, b"v", "a value that lives")
    same(list(client.scan(b"", space, False, 10)), [space + b"future"], "scan")


@flow
def references(client, space, _):
    target, name = space + b"target", space + b"reference"
    client.verifiedSet(target, b"old")
    client.setReference(target, name)
    same(client.get(name).value, b"old", "get through a reference")
    client.verifiedSet(target, b"new")
    found = client.verifiedGet(name)
    same((found.verified, found.value), (True, b"new"), "verifiedGet through a reference")
    same(client.verifiedSetReference(target, space + b"second").verified, True, "verifiedSetReference")
    with refused("referenced key cannot be a reference"):
        client.setReference(name, space + b"third")
    with refused("final key cannot be converted into a reference"):
        client.setReference(target, target)
    with refused("tbtree: key not found"):
        client.setReference(space + b"absent", space + b"fourth")


@flow
def sorted_sets(client, space, _):
    keys = [space + b"%d" % n for n in range(5)]
    client.setAll({key: b"value" for key in keys})
    for score, key in zip([3.0, 1.0, 2.0, -1.0], keys):
        client.zAdd(space, score, key)
    same(client.verifiedZAdd(space, 2.5, keys[4]).verified, True, "verifiedZAdd")

    def scores(**options):
        return [entry.score for entry in client.zScan(space, **options).entries]

    bounds = {"seekKey": b"", "seekScore": 0, "seekAtTx": 0, "inclusive": True, "limit": 10, "desc": False}
    same(scores(**bounds, minscore=0.0, maxscore=9.0), [1.0, 2.0, 2.5, 3.0], "zScan")
    same(scores(**bounds, minscore=2.0, maxscore=2.5), [2.0, 2.5], "zScan between")
    same(scores(**{**bounds, "desc": True}, minscore=1.0, maxscore=3.0), [2.5, 2.0, 1.0], "zScan downward")


def own_reference(target, key):
    """A reference bound to the transaction that writes it; the constructor knows none."""
    request = datatypes.ReferenceRequest(referencedKey=target, key=key)
    request.boundRef = True
    return request


@flow
def one_transaction_of_many_operations(client, space, _):
    first, second = space + b"first", space + b"second"
    header = client.execAll([
        datatypes.KeyValue(first, b"1"),
        datatypes.KeyValue(second, b"2"),
        datatypes.ReferenceRequest(referencedKey=first, key=space + b"reference"),
        own_reference(first, space + b"own"),
        datatypes.ZAddRequest(set=space, score=1.5, key=second),
    ])
    same(header.nentries, 5, "entries of the transaction")
    client.verifiedSet(first, b"changed")
    same(client.get(space + b"reference").value, b"changed", "a free reference")
    same(client.get(space + b"own").value, b"1", "a reference bound to its own transaction")
    same(len(client.txById(header.id)), 5, "txById")
    same(client.verifiedTxById(header.id)[:2], [first, second], "verifiedTxById")
    with refused("empty set"):
        client.execAll([])
    with refused("rpc error: code = InvalidArgument desc = duplicated keys are not supported in single batch transaction: "
                 f"key/reference '{first.decode()}'"):
        client.execAll([datatypes.KeyValue(first, b"1"), datatypes.KeyValue(first, b"2")])


@flow
def streams(client, space, _):
    # With the state of an empty database the SDK's verified streams compare with transaction 0, which no proof has.
    client.verifiedSet(b"before/" + space, b"v")
    sizes = [1, 1000, 65527, 65528, 65529, 1 << 20]
    values = {space + b"%08d" % size: os.urandom(size) for size in sizes}
    for number, (key, value) in enumerate(values.items()):
        if number % 2:
            client.streamSetFullValue(key, value, chunkSize=[777, 65536, 100_000][number % 3])
        else:
            answer = client.streamVerifiedSet(key, io.BytesIO(value), len(value))
            same(answer.verified, True, "streamVerifiedSet")
        found = client.streamGetFull(key)
        same((found.key, found.value == value), (key, True), "streamGet")
        found = client.streamVerifiedGet(key)
        same((found.key, found.verified, found.value == value), (key, True, True), "streamVerifiedGet")
        same(client.get(key).value == value, True, "get of what was streamed")
    found = {pair.key: pair.value for pair in client.streamScan(prefix=space, limit=100)}
    same(found == values, True, "streamScan")
    smallest = space + b"%08d" % 1
    client.set(smallest, b"again")
    versions = [pair.value for pair in client.streamHistory(smallest)]
    same(versions, [values[smallest], b"again"], "streamHistory")
    with refused("tbtree: key not found"):
        client.streamGetFull(space + b"absent")


@flow
def streams_of_sets_and_operations(client, space, _):
    first, second = space + b"first", space + b"second"
    header = client.streamExecAll([
        datatypes.KeyValue(first, b"1" * 70_000),
        datatypes.KeyValue(second, b"2"),
        datatypes.ZAddRequest(set=space, score=2.0, key=first),
        datatypes.ZAddRequest(set=space, score=1.0, key=second),
    ])
    found = [(entry.key, entry.score, len(entry.value)) for entry in client.streamZScan(set=space, limit=10)]
    same(found, [(second, 1.0, 1), (first, 2.0, 70_000)], "streamZScan")
    exported = b"".join(chunk.content for chunk in client.exportTx(header.id))
    same(second in exported and first in exported, True, "exportTx")


@flow
def users(client, space, asked):
    endpoint, database, key = asked["endpoint"], asked["database"], space + b"key"
    name = "u" + asked["tag"]
    client.set(key, b"value")
    client.createUser(name, "first", 1, database)
    with refused("user already exists"):
        client.createUser(name, "first", 1, database)
    listed = {user.user.decode(): user for user in client.listUsers().userlist.users}
    same([(p.database, p.permission) for p in listed[name].permissions], [(database, 1)], "listUsers")

    def enter(password):
        other = ImmudbClient(endpoint, timeout=CALL_TIMEOUT_S)
        other.login(name, password, database.encode())
        return other

    reader = enter("first")
    same(reader.get(key).value, b"value", "get of a reader")
    with refused("permission denied"):
        reader.set(key, b"not allowed")
    with refused("permission denied"):
        reader.getAll([key])
    # Whoever is changed has to log in again.
    client.changePermission(0, name, database, 2)
    with refused("not logged in"):
        reader.get(key)
    enter("first").set(key, b"allowed")
    client.changePassword(name, "second", "")
    with refused("invalid user name or password"):
        enter("first")
    enter("second")
    client.setActiveUser(False, name)
    with refused("user is not active"):
        enter("second")


@flow
def transactions_in_order(client, space, _):
    ids = [client.set(space + b"%d" % n, b"v").id for n in range(5)]
    found = client.txScan(ids[0], limit=2500).txs
    same(found[0].header.id, ids[0], "txScan begins there")
    same([tx.header.id for tx in found], list(range(ids[0], ids[0] + len(found))), "txScan leaves nothing out")


@flow
def administration(client, space, asked):
    name = "c" + asked["tag"]
    settings = datatypesv2.DatabaseSettingsV2(maxKeyLen=32)
    created = client.createDatabaseV2(name, settings=settings, ifNotExists=True)
    same((created.name, created.settings.maxKeyLen), (name, 32), "createDatabaseV2")
    changed = client.updateDatabaseV2(name, datatypesv2.DatabaseSettingsV2(syncFrequency=30))
    same(changed.settings.syncFrequency, 30, "updateDatabaseV2")
    with refused(f"rpc error: code = InvalidArgument desc = illegal arguments: max key length can not be changed after "
                 f"database creation ('{name}')"):
        client.updateDatabaseV2(name, datatypesv2.DatabaseSettingsV2(maxKeyLen=31))
    same(name in [database.name for database in client.databaseListV2().databases], True, "databaseListV2")
    client.useDatabase(name.encode())
    same(client.getDatabaseSettingsV2().settings.maxKeyLen, 32, "getDatabaseSettingsV2")
    client.set(b"k" * 31, b"v")
    with refused("max key length exceeded"):
        client.set(b"k" * 32, b"v")
    same(client.flushIndex(10.0, True).database, name, "flushIndex")
    for percentage in [101.0, -1.0]:
        with refused("tbtree: illegal arguments: invalid cleanupPercentage"):
            client.flushIndex(percentage, True)


@flow
def signatures(client, space, asked):
    if not asked["key"]:
        return
    same(client.verifiedSet(space + b"key", b"value").verified, True, "verifiedSet with the key")
    same(client.verifiedGet(space + b"key").value, b"value", "verifiedGet with the key")
    other = ImmudbClient(asked["endpoint"], publicKeyFile=asked["other_key"], timeout=CALL_TIMEOUT_S)
    other.login(asked["username"], asked["password"], asked["database"].encode())
    for what, call in (("verifiedSet", lambda: other.verifiedSet(space + b"other", b"value")),
                       ("verifiedGet", lambda: other.verifiedGet(space + b"key"))):
        try:
            call()
        except ecdsa.BadSignatureError:
            continue
        raise Wrong(f"{what} with another key was believed")
    other.shutdown()


@flow
def a_session(client, space, asked):
    username, password, database = asked["username"], asked["password"], asked["database"]
    inside = ImmudbClient(asked["endpoint"], timeout=CALL_TIMEOUT_S)
    with inside.openManagedSession(username, password, database.encode()):
        inside.set(space + b"key", b"value")
        same(inside.get(space + b"key").value, b"value", "get in a session")
        same(inside.currentState().db, database, "currentState")
    same(client.get(space + b"key").value, b"value", "get beside the session")
    # The SDK forgets the session that it has closed.
    with refused("not logged in"):
        inside.get(space + b"key")
    inside.channel.close()


def run(state, asked):
    client = ImmudbClient(asked["endpoint"], rs=state, publicKeyFile=asked["key"] or None, timeout=CALL_TIMEOUT_S)
    try:
        client.login(asked["username"], asked["password"], asked["database"].encode())
        FLOWS[asked["flow"]](client, asked["space"].encode(), asked)
    except Wrong as error:
        return {"result": "wrong", "text": str(error)}
    except grpc.RpcError as error:
        found = {"result": "error", "code": error.code().name, "text": error.details() or ""}
        return {**found, "expected": error.expected} if hasattr(error, "expected") else found
    finally:
        client.shutdown()
    return {"result": "ok"}


def main():
    print(json.dumps({"flows": list(FLOWS), "sdk": f"immudb-py {importlib.metadata.version('immudb-py')}"}), flush=True)
    # One trusted state, carried over all nodes and both runs: a node with another history would be found out.
    state = CarriedState()
    for line in sys.stdin:
        print(json.dumps(run(state, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
