//! REST: what a browser or a script without an SDK sees.

use alhambra_node::NodeHandle;
use alhambra_node::rest::binding::{self, Binding, Verb};
use alhambra_node::rest::openapi;
use alhambra_proto::schema;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, PASSWORD, config, single, single_with};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status, code and text of an error.
    pub fn error(&self) -> (u16, i64, String) {
        let json = self.json();
        assert_eq!(json["error"], json["message"], "{self:?}");
        (self.status, json["code"].as_i64().unwrap(), json["error"].as_str().unwrap().to_owned())
    }
}

pub async fn send(node: &NodeHandle, verb: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(node.web_addr().expect("REST is on")).await.unwrap();
    let mut head =
        format!("{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // A body that is refused may not be read to its end.
    let _ = stream.write_all(body).await;
    let mut raw = Vec::new();
    let _ = stream.read_to_end(&mut raw).await;
    let text = String::from_utf8(raw).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {verb} {path}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// A caller with a session on a database.
struct Rest<'a> {
    node: &'a NodeHandle,
    session: String,
}

impl<'a> Rest<'a> {
    async fn on(node: &'a NodeHandle, database: &str) -> Self {
        let login = json!({ "username": "immudb", "password": PASSWORD, "database": database });
        let opened = send(node, "POST", "/api/v2/authorization/session/open", &[], login.to_string().as_bytes()).await;
        assert_eq!(opened.status, 200, "{opened:?}");
        Self { node, session: opened.json()["sessionID"].as_str().unwrap().to_owned() }
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.node, "POST", path, &[("SessionID", &self.session)], body.to_string().as_bytes()).await
    }

    async fn get(&self, path: &str) -> Answer {
        send(self.node, "GET", path, &[("sessionid", &self.session)], b"").await
    }
}

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rest_writes_grpc_reads_and_the_other_way_round() {
    let node = single().await;
    let rest = Rest::on(&node, "defaultdb").await;
    let grpc = Client::on(&node, "defaultdb").await;

    let written = rest.post("/api/db/set", &json!({ "KVs": [{ "key": b64("k?>"), "value": b64("v") }] })).await;
    assert_eq!((written.status, &written.json()["id"]), (200, &json!("1")), "{written:?}");
    assert!(written.head.contains("grpc-metadata-immudb-uuid: "), "{written:?}");
    assert_eq!(&*grpc.get("k?>").await.unwrap().value, b"v");

    grpc.set("k?>", "w").await.unwrap();
    for key in [URL_SAFE.encode("k?>"), b64("k?>").replace('/', "%2F")] {
        let read = rest.get(&format!("/api/db/get/{key}")).await;
        assert_eq!(read.json(), json!({ "tx": "2", "key": b64("k?>"), "value": b64("w"), "revision": "2" }));
    }
    let old = rest.get(&format!("/api/v2/db/get/{}?atRevision=-1&unknown=1", URL_SAFE.encode("k?>"))).await;
    assert_eq!(old.json()["value"], b64("v"));
    let tx = rest.get("/api/db/tx/1?entriesSpec.kvEntriesSpec.action=RESOLVE").await.json();
    assert_eq!((&tx["header"]["id"], &tx["kvEntries"][0]["value"]), (&json!("1"), &json!(b64("v"))), "{tx}");
    let verified = rest.post("/api/db/verifiable/get", &json!({ "keyRequest": { "key": b64("k?>") } })).await.json();
    assert_eq!(verified["verifiableTx"]["dualProof"]["targetTxHeader"]["id"], "2", "{verified}");
    let scanned = rest.post("/api/db/scan", &json!({ "prefix": b64("k"), "limit": 10 })).await.json();
    assert_eq!(scanned["entries"].as_array().unwrap().len(), 1);
    assert_eq!(rest.get("/api/db/countall").await.json(), json!({ "count": "1" }));
    assert_eq!(rest.get("/api/db/state").await.json()["txId"], "2");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_databases_and_users_over_rest() {
    let node = single().await;
    let login = json!({ "user": b64("immudb"), "password": b64(PASSWORD) });
    let token = send(&node, "POST", "/api/login", &[], login.to_string().as_bytes()).await.json();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let as_token = |verb, path, body: Value, bearer: String| {
        let node = &node;
        async move { send(node, verb, path, &[("Authorization", &bearer)], body.to_string().as_bytes()).await }
    };
    let created = as_token("POST", "/api/db/create/v2", json!({ "name": "Orders" }), bearer.clone()).await;
    assert_eq!((created.status, &created.json()["name"]), (200, &json!("orders")), "{created:?}");
    let used = as_token("GET", "/api/db/use/orders", json!(null), bearer.clone()).await.json();
    let there = format!("Bearer {}", used["token"].as_str().unwrap());
    assert_eq!(as_token("GET", "/api/db/state", json!(null), there.clone()).await.json()["db"], "orders");
    let user = json!({ "user": b64("eve"), "password": b64("Pass-1234"), "permission": 1, "database": "orders" });
    assert_eq!(as_token("POST", "/api/user", user, bearer.clone()).await.json(), json!({}));
    let users = as_token("GET", "/api/user/list", json!(null), bearer.clone()).await.json();
    assert!(users["users"].as_array().unwrap().iter().any(|user| user["user"] == b64("eve")), "{users}");
    assert_eq!(as_token("POST", "/api/logout", json!({}), bearer.clone()).await.json(), json!({}));
    assert_eq!(as_token("POST", "/api/db/list", json!({}), bearer).await.error(), (500, 2, "please login".into()));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_codes_of_http_and_the_words_of_grpc() {
    let node = single().await;
    let rest = Rest::on(&node, "defaultdb").await;
    let absent = rest.get(&format!("/api/db/get/{}", URL_SAFE.encode("absent"))).await;
    assert_eq!(absent.error(), (500, 2, "tbtree: key not found".into()));
    assert!(
        absent.head.contains("content-type: application/json") && absent.head.contains("grpc-metadata-immudb-uuid")
    );

    let nobody = send(&node, "GET", "/api/db/state", &[], b"").await;
    assert_eq!(nobody.error(), (500, 2, "not logged in".into()));
    let detail = &nobody.json()["details"][0];
    assert_eq!(
        (&detail["@type"], &detail["code"]),
        (&json!("type.googleapis.com/immudb.schema.ErrorInfo"), &json!("28000"))
    );

    let unknown = send(&node, "GET", "/api/health", &[("sessionid", "nonsense")], b"").await;
    assert_eq!(unknown.error(), (403, 7, "session not found".into()));
    let precondition = json!({
        "KVs": [{ "key": b64("a"), "value": b64("1") }],
        "preconditions": [{ "keyMustExist": { "key": b64("a") } }],
    });
    let failed = rest.post("/api/db/set", &precondition).await;
    assert_eq!(failed.error(), (400, 9, "precondition failed: KeyMustExist".into()));

    for (path, body) in [("/api/db/set", "{"), ("/api/db/set", "7"), ("/api/db/set", r#"{"KVs":[{"key":"?"}]}"#)] {
        let answer = send(&node, "POST", path, &[("sessionid", &rest.session)], body.as_bytes()).await;
        let (status, code, text) = answer.error();
        assert_eq!((status, code), (400, 3), "{text}");
    }
    let (status, code, text) = rest.get("/api/db/tx/first").await.error();
    assert!((status, code) == (400, 3) && text.starts_with("type mismatch, parameter: tx"), "{text}");
    let (status, code, text) = rest.get("/api/db/get/%ff%fe").await.error();
    assert!((status, code) == (400, 3), "{text}");

    for (verb, path, expected) in [
        ("GET", "/api/nothing", (404, "Not Found\n")),
        ("GET", "/db/state", (404, "Not Found\n")),
        ("GET", "/api/db/set", (405, "Method Not Allowed\n")),
        ("OPTIONS", "/api/db/set", (405, "Method Not Allowed\n")),
    ] {
        let answer = send(&node, verb, path, &[], b"").await;
        assert_eq!((answer.status, &*answer.body), expected, "{verb} {path}");
        assert!(answer.head.contains("content-type: text/plain"));
    }
    assert_eq!(rest.get("/api/db/state").await.json().get("txId"), None, "nothing was written");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_have_limits_and_say_so() {
    let mut small = config();
    small.max_recv_msg_size = 1 << 20;
    let node = single_with(small).await;
    let rest = Rest::on(&node, "defaultdb").await;
    let value = |len: usize| json!({ "KVs": [{ "key": b64("k"), "value": b64(vec![0; len]) }] });
    // The key and the framing of both are 11 bytes of protobuf.
    assert_eq!(rest.post("/api/db/set", &value((1 << 20) - 11)).await.status, 200);
    let over = rest.post("/api/db/set", &value((1 << 20) - 10)).await;
    assert_eq!(over.error(), (429, 8, "grpc: received message larger than max (1048577 vs. 1048576)".into()));
    let (status, code, text) = rest.post("/api/db/set", &value(2 << 20)).await.error();
    assert!((status, code) == (429, 8) && text.contains("the body is larger"), "{text}");

    // Five values of a MiB do not fit into an answer of four.
    let grpc = Client::on(&node, "defaultdb").await;
    for key in 0..5 {
        let big = "x".repeat((1 << 20) - 64);
        grpc.set(&format!("big{key}"), &big).await.unwrap();
    }
    let (status, code, text) = rest.post("/api/db/scan", &json!({ "prefix": b64("big") })).await.error();
    assert!((status, code) == (429, 8) && text.starts_with("grpc: received message larger than max ("), "{text}");
    assert_eq!(rest.post("/api/db/scan", &json!({ "prefix": b64("big"), "limit": "3" })).await.status, 200);
    node.shutdown().await;
}

/// What was written must not be answered as if it were not.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_answered_however_large_the_answer_is() {
    let node = single().await;
    let settings = schema::DatabaseNullableSettings {
        max_tx_entries: Some(schema::NullableUint32 { value: 8192 }),
        ..Default::default()
    };
    Client::on(&node, "defaultdb").await.create_with("wide", Some(settings)).await;
    let rest = Rest::on(&node, "wide").await;
    let entry = |n: usize| json!({ "key": b64(format!("{n:01000}")), "value": b64("v") });
    let request = json!({ "setRequest": { "KVs": (0..5000).map(entry).collect::<Vec<_>>() }, "proveSinceTx": "0" });
    let reply = rest.post("/api/db/verifiable/set", &request).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["tx"]["header"]["id"], "1");
    assert_eq!(reply.json()["tx"]["entries"].as_array().map(Vec::len), Some(5000));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_leads_to_its_call_and_what_is_not_served_says_so() {
    let node = single().await;
    let fill = |binding: &Binding| {
        let parts = binding.path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
        parts.collect::<Vec<_>>().join("/")
    };
    let mut closed = Vec::new();
    for binding in binding::all() {
        // Once more below the other prefix, as anybody: a refusal for who one is, or what one sent, is an answer of the call.
        for prefix in ["/api", "/api/v2"] {
            let verb = binding.verb.name().to_uppercase();
            let answer = send(&node, &verb, &format!("{prefix}{}", fill(&binding)), &[], b"").await;
            let served = openapi::is_served(&binding.method);
            assert_eq!(answer.status == 501, !served, "{verb} {}: {answer:?}", binding.path);
            if !served {
                let (_, code, text) = answer.error();
                assert_eq!((code, text), (12, format!("{} is not implemented", binding.method.name())));
                closed.push(binding.path.clone());
            }
            assert!(answer.json().is_object());
        }
        assert!(binding.verb != Verb::Get || !binding.has_body);
    }
    assert!(closed.contains(&"/db/sqlexec".to_owned()) && !closed.contains(&"/db/set".to_owned()));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_served_and_rest_can_be_turned_off() {
    let node = single().await;
    let root = send(&node, "GET", "/", &[], b"").await;
    assert!(root.status == 307 && root.head.contains("location: /api/docs/"), "{root:?}");
    let page = send(&node, "GET", "/api/docs/", &[], b"").await;
    assert!(page.status == 200 && page.head.contains("content-type: text/html"), "{page:?}");
    assert!(page.body.contains("swagger-initializer.js"));
    let script = send(&node, "GET", "/api/docs/swagger-initializer.js", &[], b"").await;
    assert!(script.body.contains("/api/docs/openapi.json"), "{script:?}");
    let document = send(&node, "GET", "/api/docs/openapi.json", &[], b"").await.json();
    assert!(document["paths"]["/db/get/{key}"]["get"].is_object());
    assert_eq!(send(&node, "GET", "/api/docs/nothing", &[], b"").await.status, 404);
    node.shutdown().await;

    let mut without = config();
    without.web_server = false;
    let node = single_with(without).await;
    assert_eq!(node.web_addr(), None);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let mut quick = config();
    quick.request_timeout = std::time::Duration::from_millis(300);
    let node = single_with(quick).await;
    let mut stream = TcpStream::connect(node.web_addr().unwrap()).await.unwrap();
    let head = "POST /api/db/set HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(crate::support::PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 504") && text.contains("did not arrive in time"), "{text}");
    node.shutdown().await;
}
