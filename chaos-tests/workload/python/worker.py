#!/usr/bin/env python3
"""One client of the official Python SDK (package immudb-py, nothing of it is changed), told line by line what to do.

The chaos program writes a line of JSON per call and judges; this program only makes the call and says what came of it:
{"result": "ok", "tx"}, {"result": "found", "value"}, {"result": "refused" | "unknown" | "wrong", "text"}; after a verified call
also what the SDK trusts from then on: {"trusted": {"tx", "alh"}}.
"""

import json
import sys

import grpc
from google.protobuf.empty_pb2 import Empty
from immudb import ImmudbClient
from immudb.rootService import RootService

# Longer than the server's own limit for a call, so that the server's answer is heard.
CALL_TIMEOUT_S = 6
# What promises that nothing was applied, whoever says it. UNAVAILABLE does not: connections say it as well.
SURELY_NOT = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
}


class Backward(Exception):
    """The SDK was about to trust an older state than it had."""


class ForwardState(RootService):
    """The trusted state, kept whichever node is asked."""

    def __init__(self):
        self._state = None

    def init(self, dbname, service):
        if self._state is None:
            self._state = service.CurrentState(Empty())

    def get(self):
        return self._state

    def set(self, root):
        if root.txId < self._state.txId:
            raise Backward(f"V2: the trusted state moved from {self._state.txId} back to {root.txId}")
        self._state = root


class Worker:
    def __init__(self):
        self.state = ForwardState()
        self.client = None

    def open(self, asked):
        self.close()
        client = ImmudbClient(f"{asked['host']}:{asked['port']}", rs=self.state, timeout=CALL_TIMEOUT_S)
        try:
            client.login(asked["user"], asked["password"], asked["database"].encode())
        except BaseException:
            client.shutdown()
            raise
        self.client = client
        return {"result": "ok"}

    def close(self):
        if self.client is not None:
            self.client.shutdown()
            self.client = None

    def set(self, asked):
        key, value = asked["key"].encode(), asked["value"].encode()
        if not asked["verified"]:
            return {"result": "ok", "tx": self.client.set(key, value).id}
        written = self.client.verifiedSet(key, value)
        if not written.verified:
            return {"result": "wrong", "text": "verifiedSet that is not verified"}
        return {"result": "ok", "tx": written.id}

    def get(self, asked):
        key = asked["key"].encode()
        if not asked["verified"]:
            found = self.client.get(key)
        else:
            found = self.client.verifiedGet(key)
            if not found.verified:
                return {"result": "wrong", "text": "verifiedGet that is not verified"}
        return {"result": "found", "value": None if found is None else found.value.decode()}

    def answer(self, asked):
        try:
            answer = {"open": self.open, "set": self.set, "get": self.get}[asked["op"]](asked)
            if asked.get("verified"):
                state = self.state.get()
                answer["trusted"] = {"tx": state.txId, "alh": bytes(state.txHash).hex()}
            return answer
        except grpc.RpcError as error:
            text = f"{error.code().name}: {error.details()}"
            if asked["op"] == "get" and (error.details() or "").endswith("key not found"):
                return {"result": "found", "value": None}
            return {"result": "refused" if error.code() in SURELY_NOT else "unknown", "text": text}
        except Exception as error:  # pylint: disable=broad-except
            return {"result": "wrong", "text": f"{asked['op']} {asked.get('key')}: {error!r}"}


def main():
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), flush=True)
    worker.close()


if __name__ == "__main__":
    main()
