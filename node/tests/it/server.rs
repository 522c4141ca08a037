//! What a node says about itself and its databases; calls that are not built; pages for operators; starts that must fail.

use alhambra_node::method::{self, Method};
use alhambra_node::node::NodeHandle;
use alhambra_node::{Node, NodeError};
use alhambra_proto::schema;
use alhambra_storage::vfs::mem::MemVfs;
use bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Response, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::own_address::own_address;
use crate::support::*;

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

const BUILT: &[&Method] = &[
    &method::OPEN_SESSION,
    &method::CLOSE_SESSION,
    &method::KEEP_ALIVE,
    &method::LOGIN,
    &method::LOGOUT,
    &method::UPDATE_AUTH_CONFIG,
    &method::UPDATE_MTLS_CONFIG,
    &method::SERVER_INFO,
    &method::HEALTH,
    &method::LIST_USERS,
    &method::CREATE_USER,
    &method::CHANGE_PASSWORD,
    &method::CHANGE_PERMISSION,
    &method::CHANGE_SQL_PRIVILEGES,
    &method::SET_ACTIVE_USER,
    &method::DATABASE_HEALTH,
    &method::CURRENT_STATE,
    &method::SET,
    &method::GET,
    &method::GET_ALL,
    &method::DELETE,
    &method::SCAN,
    &method::HISTORY,
    &method::COUNT,
    &method::COUNT_ALL,
    &method::TX_BY_ID,
    &method::TX_SCAN,
    &method::VERIFIABLE_SET,
    &method::VERIFIABLE_GET,
    &method::VERIFIABLE_TX_BY_ID,
    &method::EXEC_ALL,
    &method::SET_REFERENCE,
    &method::ZADD,
    &method::ZSCAN,
    &method::VERIFIABLE_SET_REFERENCE,
    &method::VERIFIABLE_ZADD,
    &method::UPDATE_DATABASE,
    &method::UPDATE_DATABASE_V2,
    &method::GET_DATABASE_SETTINGS,
    &method::GET_DATABASE_SETTINGS_V2,
    &method::FLUSH_INDEX,
    &method::COMPACT_INDEX,
    &method::AUTHORIZATION_OPEN_SESSION,
    &method::AUTHORIZATION_KEEP_ALIVE,
    &method::AUTHORIZATION_CLOSE_SESSION,
    &method::TAKE_SERVER_UUID,
    &method::STREAM_GET,
    &method::STREAM_SET,
    &method::STREAM_VERIFIABLE_GET,
    &method::STREAM_VERIFIABLE_SET,
    &method::STREAM_SCAN,
    &method::STREAM_HISTORY,
    &method::STREAM_ZSCAN,
    &method::STREAM_EXEC_ALL,
    &method::EXPORT_TX,
    &method::STREAM_EXPORT_TX,
    &method::REPLICATE_TX,
    &method::CREATE_DATABASE,
    &method::CREATE_DATABASE_WITH,
    &method::CREATE_DATABASE_V2,
    &method::LOAD_DATABASE,
    &method::UNLOAD_DATABASE,
    &method::DELETE_DATABASE,
    &method::TRUNCATE_DATABASE,
    &method::DATABASE_LIST,
    &method::DATABASE_LIST_V2,
    &method::USE_DATABASE,
];

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_not_built_name_themselves_and_the_others_exist() {
    let node = single().await;
    let mut grpc = Grpc::new(channel(&node).await);
    for method in method::ALL {
        // A session of its own for each, because one of the calls ends it.
        let client = Client::on(&node, "defaultdb").await;
        grpc.ready().await.unwrap();
        let path = method.path.parse().unwrap();
        // An error may come at once or instead of the first message.
        let status = match grpc.server_streaming(client.request(Bytes::new()), path, Raw).await {
            Ok(mut stream) => stream.get_mut().message().await.err(),
            Err(status) => Some(status),
        };
        let unimplemented = status.as_ref().is_some_and(|status| status.code() == Code::Unimplemented);
        assert_eq!(unimplemented, !BUILT.contains(&method), "{}: {status:?}", method.path);
        if let Some(status) = status.filter(|_| unimplemented) {
            assert!(status.message().contains(method.name), "{}: {status:?}", method.path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_comes_with_headers_and_in_trailers() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut grpc = Grpc::new(channel(&node).await);
    grpc.ready().await.unwrap();
    let path = method::GET.path.parse().unwrap();
    let mut stream = grpc.server_streaming(client.request(Bytes::new()), path, Raw).await.expect("headers come first");
    assert_eq!(stream.metadata().get("immudb-uuid").unwrap().len(), 20);
    let status = stream.get_mut().message().await.unwrap_err();
    assert_eq!(status.message(), "illegal arguments: empty key");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_created_and_listed() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    let create = |name: &str, if_not_exists| {
        let request = schema::CreateDatabaseRequest { name: name.into(), settings: None, if_not_exists };
        let (mut inner, request) = (client.inner.clone(), client.request(request));
        async move { inner.create_database_v2(request).await.map(Response::into_inner) }
    };
    let created = create("Books", false).await.unwrap();
    assert_eq!((created.name.as_str(), created.already_existed), ("books", false));
    let settings = created.settings.clone().unwrap();
    assert_eq!(settings.max_tx_entries.unwrap().value, 1024);
    assert_eq!(settings.index_settings.unwrap().max_node_size.unwrap().value, 4096);
    assert!(!settings.replication_settings.unwrap().replica.unwrap().value);
    let again = create("books", true).await.unwrap();
    assert_eq!((again.already_existed, again.settings), (true, created.settings));
    for (name, code, text, details) in [
        ("books", Code::Unknown, "database already exists", ""),
        ("DefaultDB", Code::Unknown, "database already exists", ""),
        ("defaultdb", Code::Internal, "database is reserved", "XX000"),
        ("systemdb", Code::Internal, "database is reserved", "XX000"),
        ("SystemDB", Code::Internal, "database is reserved", "XX000"),
        ("", Code::Unknown, "database name length outside of limits", ""),
        ("a b", Code::Unknown, "unrecognized character in database name", ""),
        ("a-b", Code::Unknown, "punctuation marks and symbols are not allowed in database name", ""),
    ] {
        refused(create(name, false).await, code, text, details);
    }
    let request = schema::DatabaseSettings { database_name: "with".into(), max_key_len: 32, ..Default::default() };
    inner.create_database_with(client.request(request)).await.unwrap();
    let impossible = schema::DatabaseSettings { database_name: "no".into(), max_key_len: 2000, ..Default::default() };
    let text = "rpc error: code = InvalidArgument desc = illegal arguments: illegal arguments: invalid options: invalid MaxKeyLen";
    refused(inner.create_database_with(client.request(impossible)).await, Code::InvalidArgument, text, "");

    Client::on(&node, "books").await.set("k", "v").await.unwrap();
    let list = inner.database_list_v2(client.request(schema::DatabaseListRequestV2 {})).await.unwrap().into_inner();
    let names: Vec<&str> = list.databases.iter().map(|database| database.name.as_str()).collect();
    assert_eq!(names, ["defaultdb", "books", "with"]);
    let books = &list.databases[1];
    assert!(books.loaded && books.num_transactions == 1 && books.created_by == "immudb" && books.disk_size > 0);
    assert_eq!(list.databases[0].created_by, "systemdb");
    assert_eq!(list.databases[2].settings.as_ref().unwrap().max_key_len.unwrap().value, 32);
    let old = inner.database_list(client.request(())).await.unwrap().into_inner();
    assert_eq!(old.databases.len(), 3);
    let info = inner.server_info(client.request(schema::ServerInfoRequest {})).await.unwrap();
    assert_eq!(info.metadata().get("alhambra-version").unwrap(), env!("CARGO_PKG_VERSION"));
    let info = info.into_inner();
    assert_eq!((info.version.as_str(), info.num_databases, info.num_transactions), ("1.11.1", 3, 1));
    assert!(info.started_at > 1_700_000_000 && info.databases_disk_size > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_of_a_database_is_its_load() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let health = |client: &Client| {
        let (mut inner, request) = (client.inner.clone(), client.request(()));
        async move { inner.database_health(request).await.unwrap().into_inner() }
    };
    assert_eq!(health(&client).await.last_request_completed_at, -62_135_596_800_000);
    client.set("k", "v").await.unwrap();
    let after = health(&client).await;
    assert!(after.last_request_completed_at > 1_700_000_000_000, "milliseconds");
    assert_eq!(after.pending_requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_metrics_and_honest_health() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("k", "v").await.unwrap();
    let _ = client.get("nothing").await.unwrap_err();
    assert_eq!(page(&node, "/livez").await, ("HTTP/1.1 200 OK".into(), "alive\n".into()));
    let (status, body) = page(&node, "/readyz").await;
    assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
    assert!(body.starts_with("ready: serving\n") && body.contains("defaultdb: ready, leader node 1"), "{body}");
    assert_eq!(page(&node, "/initz").await.0, "HTTP/1.1 200 OK");
    let version: serde_json::Value = serde_json::from_str(&page(&node, "/version").await.1).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(page(&node, "/nothing").await.0, "HTTP/1.1 404 Not Found");
    let metrics = page(&node, "/metrics").await.1;
    for line in [
        "alhambra_ready 1",
        "immudb_active_sessions 1",
        "immudb_number_of_stored_entries{db=\"defaultdb\"} 1",
        "alhambra_raft_is_leader{db=\"defaultdb\"} 1",
        "grpc_server_started_total{grpc_type=\"unary\",grpc_service=\"immudb.schema.ImmuService\",grpc_method=\"Set\"} 1",
        "grpc_server_handled_total{grpc_type=\"unary\",grpc_service=\"immudb.schema.ImmuService\",grpc_method=\"Get\",grpc_code=\"Unknown\"} 1",
        "grpc_server_handling_seconds_count{grpc_type=\"unary\",grpc_service=\"immudb.schema.ImmuService\",grpc_method=\"Set\"} 1",
        "immudb_query_latency_seconds_bucket{op=\"/immudb.schema.ImmuService/Set\",le=\"10\"} 1",
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line} is missing in\n{metrics}");
    }
    for name in [
        "immudb_uptime_hours ",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "immudb_db_size_bytes{",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_others_is_alive_and_not_ready_and_says_why() {
    let mut config = config();
    let own = own_address();
    config.address = own.ip().to_string();
    config.peer_port = own.port();
    config.peers = vec![own.to_string(), own_address().to_string()];
    config.bootstrap_expect = 2;
    config.insecure_peers = true;
    let node = Node::start(config, env(&MemVfs::new())).await.unwrap();
    assert_eq!(page(&node, "/livez").await.0, "HTTP/1.1 200 OK");
    let (status, body) = page(&node, "/readyz").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.starts_with("not ready: forming: "), "{body}");
    assert_eq!(page(&node, "/initz").await.0, "HTTP/1.1 503 Service Unavailable");
    let mut client = Client::anonymous(&node).await;
    let status = client.open("immudb", PASSWORD, "defaultdb").await.unwrap_err();
    assert_eq!(
        (status.code(), alhambra_proto::code::Code::of(&status)),
        (Code::Unavailable, Some(alhambra_proto::code::Code::Starting))
    );
    client.inner.health(client.request(())).await.unwrap();
    node.shutdown().await;
    node.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_that_cannot_work_say_what_to_do_and_change_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let disk = MemVfs::new();
    for change in [
        |config: &mut alhambra_node::Config, port| config.port = port,
        |config: &mut alhambra_node::Config, port| config.metrics_server_port = port,
    ] {
        let mut config = config();
        change(&mut config, port);
        let error = Node::start(config, env(&disk)).await.unwrap_err();
        assert!(matches!(&error, NodeError::Listen { .. }), "{error}");
        assert!(
            error.to_string().contains(&port.to_string()) && error.to_string().contains("choose another port"),
            "{error}"
        );
    }
    let mut config = config();
    config.signing_key = Some("/nonexistent/key.pem".into());
    let error = Node::start(config, env(&disk)).await.unwrap_err();
    assert!(matches!(error, NodeError::SigningKey(_)), "{error}");
    assert!(!alhambra_storage::vfs::Vfs::exists(&disk, std::path::Path::new("/data")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_resumes_on_the_same_disk() {
    let disk = MemVfs::new();
    let mut uuid = None;
    for round in 1..=3 {
        let node = Node::start(config(), env(&disk)).await.unwrap();
        assert!(node.wait_ready(tokio::time::Instant::now() + PATIENCE).await);
        let mut anonymous = Client::anonymous(&node).await;
        let opened = anonymous.open("immudb", PASSWORD, "defaultdb").await.unwrap();
        assert_eq!(*uuid.get_or_insert(opened.server_uuid.clone()), opened.server_uuid);
        let client = anonymous.with("sessionid", opened.session_id);
        client.set("round", &round.to_string()).await.unwrap();
        let history = schema::HistoryRequest { key: bytes("round"), ..Default::default() };
        assert_eq!(client.history(history).await.unwrap().len(), round);
        node.shutdown().await;
        node.shutdown().await;
        node.wait().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_describes_what_clients_may_call_and_nothing_else() {
    let node = single().await;
    let list = MessageRequest::ListServices(String::new());
    let MessageResponse::ListServicesResponse(list) = reflected(&node, list).await else { panic!("a list") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "alhambra.cluster.ClusterService",
            "immudb.model.AuthorizationService",
            "immudb.model.DocumentService",
            "immudb.schema.ImmuService"
        ]
    );
    for name in names {
        let symbol = MessageRequest::FileContainingSymbol(name.clone());
        let MessageResponse::FileDescriptorResponse(found) = reflected(&node, symbol).await else {
            panic!("{name} has no description")
        };
        assert!(!found.file_descriptor_proto.is_empty(), "{name}");
    }
    for hidden in [
        MessageRequest::FileContainingSymbol("alhambra.peer.Peer".into()),
        MessageRequest::FileByFilename("peer.proto".into()),
    ] {
        let mut client = ServerReflectionClient::new(channel(&node).await);
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(hidden.clone()) };
        let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
        let status = answers.message().await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{hidden:?}");
    }
    node.shutdown().await;
    let mut config = config();
    config.grpc_reflection = false;
    let node = single_with(config).await;
    let mut client = ServerReflectionClient::new(channel(&node).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let status = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    node.shutdown().await;
}

async fn reflected(node: &NodeHandle, request: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(channel(node).await);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().message_response.unwrap()
}
