//! The gRPC face: handlers decode with `proto::convert`, call one function of [`crate::service`], and encode. What is common to
//! all calls is in [`gate`].

mod authorization;
mod cluster;
pub mod counted;
mod database;
mod exec;
pub mod gate;
mod immu;
mod kv;
mod session;
mod stream;
mod user;
mod verified;

use std::sync::Arc;
use std::time::Duration;

use alhambra_proto::cluster::cluster_service_server::ClusterServiceServer;
use alhambra_proto::header;
use alhambra_proto::model::authorization_service_server::AuthorizationServiceServer;
use alhambra_proto::model::document_service_server::DocumentServiceServer;
use alhambra_proto::schema::immu_service_server::ImmuServiceServer;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};
use tower::Layer;
use tower::layer::util::{Identity, Stack};

use crate::context::{Call, ReadLevel};
use crate::error::Error;
use crate::grpc::authorization::Authorization;
use crate::grpc::cluster::Cluster;
use crate::grpc::gate::{Gate, GateLayer};
use crate::grpc::immu::{Documents, Immu};
use crate::service::App;
use crate::uploads::Due;

/// Calls that one connection may have open; far above what a client library opens.
const STREAMS_PER_CONNECTION_MAX: u32 = 10_000;
/// Bytes that a client may send before it waits for us: per call, and per connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A connection that is silent for this long is asked whether it lives, and given as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

type Reply<T> = std::result::Result<Response<T>, Status>;

/// All services behind the gate, to be called inside the process.
pub type InProcess = Gate<Routes>;

/// All services behind the gate, to be called inside the process.
pub fn in_process(app: Arc<App>) -> InProcess {
    GateLayer { app: app.clone() }.layer(services(&app))
}

/// The services of the SDKs, and our own.
fn services(app: &Arc<App>) -> Routes {
    let limit = app.message_bytes_max();
    let immu = ImmuServiceServer::new(Immu { app: app.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(usize::MAX);
    let authorization = AuthorizationServiceServer::new(Authorization { app: app.clone() });
    let cluster = ClusterServiceServer::new(Cluster { app: app.clone() });
    Routes::new(immu)
        .add_service(cluster.max_decoding_message_size(limit))
        .add_service(DocumentServiceServer::new(Documents).max_decoding_message_size(limit))
        .add_service(authorization.max_decoding_message_size(limit))
}

/// All services behind the gate, for connections.
pub fn server(app: Arc<App>, reflection: bool) -> Router<Stack<GateLayer, Identity>> {
    let mut routes = services(&app);
    if reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(alhambra_proto::CLIENT_DESCRIPTOR_SET)
                .include_reflection_service(false)
        };
        // Older tools only know the first version of the protocol.
        routes = routes
            .add_service(builder().build_v1().expect("the descriptors are ours"))
            .add_service(builder().build_v1alpha().expect("the descriptors are ours"));
    }
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .layer(GateLayer { app })
        .add_routes(routes)
}

/// Headers as the gate has read them, and the message.
fn open<T>(request: Request<T>) -> std::result::Result<(Call, T), Error> {
    let (mut call, due, message) = open_upload(request)?;
    due.restart();
    call.deadline = due.instant();
    Ok((call, message))
}

/// The same of messages that are still to come, and when the call is due as they do.
fn open_upload<T>(request: Request<T>) -> std::result::Result<(Call, Due, T), Error> {
    let (_, mut extensions, message) = request.into_parts();
    let (Some(call), Some(due)) = (extensions.remove::<Call>(), extensions.remove::<Due>()) else {
        return Err(Error::Internal("a call came past the gate"));
    };
    Ok((call, due, message))
}

/// The reply of a read, which says how new its data is.
fn read_reply<T>(level: ReadLevel, message: T) -> Response<T> {
    let mut response = Response::new(message);
    let value = tonic::metadata::MetadataValue::from_static(level.name());
    response.metadata_mut().insert(header::LEVEL, value);
    response
}
