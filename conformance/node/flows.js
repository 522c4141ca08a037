// The flows of the official Node SDK (package immudb-node, nothing of it is changed). conformance/run.py says which one, and judges.
//
// Each flow is a few calls as a user would make them, in a key space of its own. This SDK speaks the schema of 2021: tokens only, no
// deletion, no streams, and hashes of header version 0, with which it can verify no server of today. What it answers then is a flow too.
"use strict";

// The SDK talks on what this program answers on.
for (const name of ["log", "info", "warn", "error"]) console[name] = () => {};

const path = require("path");
const readline = require("readline");
const grpc = require("@grpc/grpc-js");
const { default: ImmudbClient } = require("immudb-node");
const sdk = require("immudb-node/package.json");

// The SDK gives its calls no deadline; longer than what the server takes for the calls of a flow that cannot be done.
const FLOW_MS = 120_000;

/** An answer that no server should give. */
class Wrong extends Error {}

/** What the gRPC library of this SDK says when the connection of a call is reset, as if the server had ended it. */
const RESET = "Received RST_STREAM with code 2 (Internal server error)";

/** The status of a call that failed. Some calls of the SDK give the whole error, some its text, and a failed proof is nothing. */
function explained(error) {
  const whole = error instanceof Error && typeof error.code === "number";
  const parts = typeof error === "string" && /^\d+ ([A-Z_]+): ([^]*)$/.exec(error);
  if (!whole && !parts) return null;
  const [code, text] = whole ? [grpc.status[error.code], error.details] : parts.slice(1);
  return code === "INTERNAL" && text === RESET ? { code: "UNAVAILABLE", text } : { code, text };
}

function same(found, expected, what) {
  const [one, other] = [JSON.stringify(found), JSON.stringify(expected)];
  if (one !== other) throw new Wrong(`${what}: ${one} instead of ${other}`);
}

/** A refusal that should have had another text, unless there was no answer at all: run.py decides. */
class Otherwise {
  constructor(found, expected) {
    Object.assign(this, found, { expected });
  }
}

/** The call must be refused with exactly this text. */
async function refused(call, text) {
  try {
    await call;
  } catch (error) {
    const found = explained(error);
    if (found === null) throw error;
    if (found.text !== text) throw new Otherwise(found, text);
    return;
  }
  throw new Wrong(`not refused: ${text}`);
}

/** The SDK must find that it cannot verify the proof of a call that went through. */
async function unverified(call, what) {
  try {
    await call;
  } catch (error) {
    if (error === undefined || error === null) return;
    throw error;
  }
  throw new Wrong(`${what}: this SDK cannot verify header version 1, and yet it did`);
}

function values(list) {
  return list.entriesList.map((entry) => entry.value);
}

const flows = {
  async values_and_history({ db, space }) {
    const key = `${space}value`;
    const ids = [];
    for (const value of ["0", "1", "2"]) {
      const header = await db.set({ key, value });
      same(header.nentries, 1, "entries of set");
      ids.push(header.id);
    }
    same(ids[0] < ids[1] && ids[1] < ids[2], true, "ids grow");
    same(await db.get({ key }), { tx: ids[2], key, value: "2" }, "get");
    same(values(await db.history({ key })), ["0", "1", "2"], "history");
    same(values(await db.history({ key, offset: 1, limit: 1, desc: true })), ["1"], "history downward");
    same((await db.history({ key, sincetx: ids[2] })).entriesList.map((entry) => entry.tx), ids, "transactions of history");
    await db.set({ key, value: "" });
    same((await db.get({ key })).value, "", "an empty value");
    await refused(db.get({ key: `${space}absent` }), "tbtree: key not found");
    await refused(db.history({ key: `${space}absent` }), "tbtree: key not found");
    await refused(db.set({ key: "", value: "v" }), "illegal arguments");
    await refused(db.set({ key: "k".repeat(1024), value: "v" }), "max key length exceeded");
  },

  async many_at_once({ db, space }) {
    const kvsList = [...Array(100).keys()].map((n) => ({ key: `${space}${String(n).padStart(3, "0")}`, value: `v${n}` }));
    const keys = kvsList.map((pair) => pair.key);
    const header = await db.setAll({ kvsList });
    same(header.nentries, 100, "entries of setAll");
    const found = await db.getAll({ keysList: [`${space}absent`, ...keys] });
    same(values(found), kvsList.map((pair) => pair.value), "getAll leaves out what is absent");
    same(values(await db.scan({ prefix: space })), kvsList.map((pair) => pair.value), "scan");
    same(values(await db.scan({ prefix: space, desc: true, limit: 2, sincetx: header.id })), ["v99", "v98"], "scan downward");
    same(values(await db.scan({ prefix: space, seekkey: keys[97] })), ["v98", "v99"], "scan after a key");
    await refused(db.setAll({ kvsList: [kvsList[0], kvsList[0]] }),
      "duplicated keys are not supported in single batch transaction");
    await refused(db.setAll({ kvsList: [] }), "no entries provided");
    await refused(db.scan({ limit: 2501 }),
      "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)");
  },

  async references({ db, space }) {
    const [target, free, bound] = ["target", "free", "bound"].map((name) => space + name);
    const { id } = await db.set({ key: target, value: "old" });
    await db.setReference({ key: free, referencedKey: target });
    same((await db.setReferenceAt({ key: bound, referencedKey: target, attx: id })).nentries, 1, "entries of setReferenceAt");
    await db.set({ key: target, value: "new" });
    same((await db.get({ key: free })).value, "new", "a free reference");
    same(await db.get({ key: bound }), { tx: id, key: target, value: "old" }, "a bound reference");
    same(values(await db.scan({ prefix: space })), ["old", "new", "new"], "scan follows references");
    await refused(db.setReference({ key: `${space}x`, referencedKey: free }), "referenced key cannot be a reference");
    await refused(db.setReference({ key: target, referencedKey: target }), "final key cannot be converted into a reference");
    await refused(db.setReference({ key: `${space}x`, referencedKey: `${space}absent` }), "tbtree: key not found");
  },

  async sorted_sets({ db, space }) {
    const keys = [...Array(5).keys()].map((n) => `${space}${n}`);
    const { id } = await db.setAll({ kvsList: keys.map((key) => ({ key, value: "v" })) });
    for (const [n, score] of [3, 1, 2, -1].entries()) await db.zAdd({ set: space, score, key: keys[n] });
    await db.zAddAt({ set: space, score: 2.5, key: keys[4], attx: id });
    const scores = async (options) => (await db.zScan({ set: space, ...options })).entriesList.map((entry) => entry.score);
    same(await scores({}), [1, 2, 2.5, 3, -1], "zScan");
    same(await scores({ minscore: { score: 2 }, maxscore: { score: 2.5 } }), [2, 2.5], "zScan between");
    same(await scores({ desc: true, maxscore: { score: 3 }, limit: 2 }), [2.5, 2], "zScan downward");
    same(await scores({ seekkey: keys[1], seekscore: 1, inclusiveseek: true, limit: 1 }), [1], "zScan from a member");
    const bound = (await db.zScan({ set: space, minscore: { score: 2.5 } })).entriesList[0];
    same([bound.key, bound.attx], [keys[4], id], "a bound member");
    await refused(db.zAdd({ set: space, score: 1, key: `${space}absent` }), "tbtree: key not found");
  },

  async many_operations({ db, space }) {
    const bytes = (name) => Buffer.from(space + name);
    const { id } = await db.set({ key: `${space}target`, value: "v" });
    const ref = (name, attx) => ({
      ref: { key: bytes(name), referencedkey: bytes("target"), attx, boundref: attx > 0 },
    });
    same((await db.execAll({ operationsList: [ref("first", 0), ref("second", id)] })).nentries, 2, "entries of execAll");
    await db.set({ key: `${space}target`, value: "w" });
    same((await db.get({ key: `${space}first` })).value, "w", "a free reference");
    same((await db.get({ key: `${space}second` })).value, "v", "a bound reference");
    // The SDK makes a reference without a key of every operation.
    const kv = { key: bytes("key"), value: Buffer.from("v") };
    await refused(db.execAll({ operationsList: [{ kv }] }), "illegal arguments");
    await refused(db.execAll({ operationsList: [] }), "empty set");
  },

  async verified_calls({ db, space }) {
    const [key, reference] = [`${space}key`, `${space}reference`];
    // Against a database without transactions the SDK compares nothing but what it has computed itself.
    await db.set({ key: `${space}before`, value: "v" });
    // With a state of another database alone, its verified calls do nothing and say nothing.
    await db.currentState();
    await unverified(db.verifiedSet({ key, value: "v" }), "verifiedSet");
    same((await db.get({ key })).value, "v", "what verifiedSet wrote");
    await unverified(db.verifiedGet({ key }), "verifiedGet");
    await unverified(db.verifiedSetReference({ key: reference, referencedKey: key }), "verifiedSetReference");
    same((await db.get({ key: reference })).value, "v", "what verifiedSetReference wrote");
    await unverified(db.verifiedZAdd({ set: space, score: 1, key }), "verifiedZAdd");
    same((await db.zScan({ set: space })).entriesList.length, 1, "what verifiedZAdd wrote");
    await refused(db.verifiedGet({ key: `${space}absent` }), "tbtree: key not found");
  },

  async transactions({ db, asked }) {
    // In a database of its own, because the SDK cannot parse a transaction whose entries have metadata.
    const databasename = `t${asked.tag}`;
    await db.createDatabase({ databasename });
    await db.useDatabase({ databasename });
    for (const names of [["a"], ["b", "c"], ["d"]]) {
      await db.setAll({ kvsList: names.map((key) => ({ key, value: "v" })) });
    }
    const found = await db.txById({ tx: 2 });
    same(found.entriesList.map((entry) => Buffer.from(entry.key, "base64").toString()), ["\0b", "\0c"], "keys of txById");
    same([found.metadata.id, found.metadata.nentries], [2, 2], "header of txById");
    const ids = async (options) => (await db.txScan(options)).txsList.map((tx) => tx.metadata.id);
    same(await ids({ initialtx: 1, limit: 2500, desc: false }), [1, 2, 3], "txScan");
    same(await ids({ initialtx: 2, limit: 1, desc: false }), [2], "txScan of one");
    same(await ids({ initialtx: 3, limit: 2, desc: true }), [3, 2], "txScan downward");
    await refused(db.txById({ tx: 0 }), "illegal arguments");
    await refused(db.txById({ tx: 4 }), "tx not found");
  },

  async counts({ db, space }) {
    await db.setAll({ kvsList: ["a", "ab", "b"].map((name) => ({ key: space + name, value: "v" })) });
    await db.setReference({ key: `${space}c`, referencedKey: `${space}a` });
    same((await db.count({ prefix: space })).count, 4, "count");
    same((await db.count({ prefix: `${space}a` })).count, 2, "count of a longer prefix");
    same((await db.countAll()).count >= 4, true, "countAll");
  },

  async users({ db, space, asked }) {
    const [key, user, database] = [`${space}key`, `n${asked.tag}`, asked.database];
    await db.set({ key, value: "value" });
    await db.createUser({ user, password: "first", permission: 1, database });
    await refused(db.createUser({ user, password: "first", permission: 1, database }), "user already exists");
    const listed = (await db.listUsers()).usersList.find((one) => one.user === user);
    same([listed.permissionsList, listed.active, listed.createdby],
      [[{ database, permission: 1 }], true, asked.username], "listUsers");
    const reader = await enter(asked, user, "first");
    same((await reader.get({ key })).value, "value", "get of a reader");
    await refused(reader.set({ key, value: "not allowed" }), "permission denied");
    await refused(reader.getAll({ keysList: [key] }), "permission denied");
    await refused(reader.createDatabase({ databasename: user }), "loggedin user does not have permissions for this operation");
    // Whoever is changed has to log in again.
    await db.changePermission({ action: 0, username: user, database, permission: 2 });
    await refused(reader.get({ key }), "not logged in");
    await (await enter(asked, user, "first")).set({ key, value: "allowed" });
    await db.changePassword({ user, oldpassword: "", newpassword: "second" });
    await refused(enter(asked, user, "first"), "invalid user name or password");
    const left = await enter(asked, user, "second");
    await left.logout();
    await refused(left.get({ key }), "not logged in");
    await db.setActiveUser({ username: user, active: false });
    await refused(enter(asked, user, "second"), "user is not active");
  },

  async administration({ db, space, asked }) {
    const [databasename, key] = [`n${asked.tag}`, `${space}key`];
    await db.createDatabase({ databasename });
    await refused(db.createDatabase({ databasename }), "database already exists");
    await refused(db.createDatabase({ databasename: "a b" }), "unrecognized character in database name");
    const listed = (await db.listDatabases()).databasesList.map((one) => one.databasename);
    same(listed.includes(databasename) && listed.includes(asked.database), true, "listDatabases");
    await db.set({ key, value: "one" });
    await db.useDatabase({ databasename });
    same((await db.currentState()).txid, 0, "currentState of an empty database");
    same((await db.set({ key, value: "other" })).id, 1, "the first transaction");
    await db.compactIndex().catch((error) => refused(Promise.reject(error), "tbtree: compaction threshold not yet reached"));
    await db.useDatabase({ databasename: asked.database });
    same((await db.get({ key })).value, "one", "get after going back");
    await refused(db.useDatabase({ databasename: `absent${asked.tag}` }), `'absent${asked.tag}' does not exist`);
  },

  async server({ db, space }) {
    const health = await db.health();
    same([health.status, /^\d+\.\d+\.\d+/.test(health.version)], [true, true], `health of version ${health.version}`);
    const { id } = await db.set({ key: `${space}key`, value: "v" });
    same((await db.currentState()).txid >= id, true, "currentState");
    await refused(db.updateAuthConfig({ kind: 0 }), "operation not supported");
    await refused(db.updateMTLSConfig({ enabled: false }), "operation not supported");
  },
};

/** The connections of the flow that runs. */
let open = [];

/** A connection of its own with a login, as a program begins. */
async function enter({ endpoint, state, database: databasename }, user, password) {
  const [host, port] = endpoint.split(":");
  const db = new ImmudbClient({ host, port, rootPath: path.join(state, "root") });
  open.push(db);
  await db.login({ user, password });
  await db.useDatabase({ databasename });
  await db.health();
  return db;
}

async function run(asked) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject({ late: true }), FLOW_MS);
  });
  const whole = async () => {
    const db = await enter(asked, asked.username, asked.password);
    await flows[asked.flow]({ db, space: asked.space, asked });
  };
  try {
    await Promise.race([whole(), late]);
    return { result: "ok" };
  } catch (error) {
    if (error && error.late) return { result: "error", code: "DEADLINE_EXCEEDED", text: `not done within ${FLOW_MS} ms` };
    const found = error instanceof Otherwise ? error : explained(error);
    if (found !== null) return { result: "error", ...found };
    return { result: "wrong", text: error instanceof Error ? error.stack : `the SDK refused a proof or an answer: ${error}` };
  } finally {
    clearTimeout(timer);
    for (const db of open) db.client.close();
    open = [];
  }
}

async function main() {
  const answer = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
  // Each client listens for the end of the process to write its state.
  process.setMaxListeners(0);
  answer({ flows: Object.keys(flows), sdk: `${sdk.name} ${sdk.version}` });
  for await (const line of readline.createInterface({ input: process.stdin })) answer(await run(JSON.parse(line)));
}

main().then(() => process.exit(0), (error) => {
  process.stderr.write(`${error && error.stack}\n`);
  process.exit(1);
});
