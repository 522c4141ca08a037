//! One call: HTTP request to gRPC request, through the gate and the service, and back.

use std::sync::Arc;
use std::time::Duration;

use alhambra_proto::header;
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, FromRequestParts, Query, RawPathParams, Request as HttpRequest};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost_reflect::DynamicMessage;
use tokio::time::Instant;
use tonic::body::Body as GrpcBody;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Code, Status};

use crate::grpc::counted::Counted;
use crate::grpc::gate::{TIMEOUT_MAX, timeout, too_large};
use crate::grpc::{self, InProcess};
use crate::method::Method;
use crate::rest::binding::{Binding, POOL};
use crate::rest::json;
use crate::service::App;
use crate::throttle::Source;
use crate::uploads::{Due, Uploads};

/// Largest answer of a call that only reads, bytes of the message: what clients of the original get over REST. One that writes has
/// been done when its answer is there, so its answer is as large as it is.
const REPLY_BYTES_MAX: usize = 4 << 20;
/// Headers with this prefix become metadata, and metadata of the answer get it.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// Turns HTTP requests into calls.
#[derive(Debug)]
pub struct Gateway {
    services: InProcess,
    message_bytes_max: usize,
    request_timeout: Duration,
    uploads: Arc<Uploads>,
    local_only: bool,
}

impl Gateway {
    /// To the services of a node.
    pub fn new(app: &Arc<App>) -> Self {
        Self {
            services: grpc::in_process(app.clone()),
            message_bytes_max: app.message_bytes_max(),
            request_timeout: app.request_timeout(),
            uploads: app.uploads().clone(),
            local_only: app.access().is_local_only(),
        }
    }

    /// Largest body: bytes are four characters for three in JSON.
    fn body_bytes_max(&self) -> usize {
        self.message_bytes_max / 3 * 4 + (64 << 10)
    }

    /// Answers a request.
    pub async fn call(&self, binding: &Binding, request: HttpRequest) -> Response {
        let (mut parts, body) = request.into_parts();
        let began = Instant::now();
        let share = self.uploads.begin(false, began, self.request_timeout);
        let chosen = timeout(&parts.headers).map(|timeout| began + timeout.min(TIMEOUT_MAX));
        let body = HttpBody::new(Counted::new(GrpcBody::new(body), share.clone()));
        let due = chosen.map_or_else(|| Due::Behind(share.clone()), Due::At);
        let read = due.outlast(Duration::ZERO, self.read(binding, &mut parts, body)).await;
        let late = || Status::deadline_exceeded("the body of the request did not arrive in time");
        let message = match read.unwrap_or_else(|| Err(late())) {
            Ok(message) => message,
            Err(status) => return failure(&status),
        };
        let source = parts.extensions.get::<ConnectInfo<Source>>().map(|ConnectInfo(source)| *source);
        // A browser on this machine calls for whoever wrote the page that it shows.
        let source = source.filter(|_| !self.local_only || is_of_this_machine(&parts.headers));
        match self.forward(binding, (&parts.headers, chosen), source.unwrap_or_default(), message).await {
            Ok(reply) => {
                let (metadata, bytes, _) = reply.into_parts();
                let decoded = DynamicMessage::decode(binding.method.output(), bytes).map_err(|error| error.to_string());
                match decoded.and_then(|message| json::response(&message).map_err(|error| error.to_string())) {
                    Ok(json) => answer(StatusCode::OK, &metadata, json),
                    Err(error) => failure(&Status::internal(format!("the answer is no JSON: {error}"))),
                }
            }
            Err(status) => failure(&status),
        }
    }

    /// The message that the request stands for, encoded.
    async fn read(&self, binding: &Binding, parts: &mut Parts, body: HttpBody) -> Result<Bytes, Status> {
        let unreadable = |error: String| Status::invalid_argument(error);
        let mut parameters = Vec::new();
        let body = if binding.has_body {
            let limit = self.body_bytes_max();
            axum::body::to_bytes(body, limit).await.map_err(|error| {
                // The library has no other way to tell a limit from a connection that broke.
                if let Some(status) = refusal(&error) {
                    status
                } else if std::error::Error::source(&error)
                    .is_some_and(|source| source.to_string().contains("length limit"))
                {
                    Status::resource_exhausted(format!("the body is larger than the largest one, {limit} bytes"))
                } else {
                    Status::cancelled("the body did not arrive")
                }
            })?
        } else {
            let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
            parameters.extend(query.map_err(|error| unreadable(error.body_text()))?.0);
            Bytes::new()
        };
        let in_path = RawPathParams::from_request_parts(parts, &()).await;
        let in_path = in_path.map_err(|error| unreadable(error.body_text()))?;
        let in_path = binding.parameters().zip(&in_path).map(|(name, (_, text))| (name.to_owned(), text.to_owned()));
        parameters.extend(in_path);
        let message = json::request(&binding.method.input(), &body, &parameters);
        Ok(message.map_err(|error| unreadable(error.to_string()))?.encode_to_vec().into())
    }

    async fn forward(
        &self,
        binding: &Binding,
        (headers, deadline): (&HeaderMap, Option<Instant>),
        source: Source,
        message: Bytes,
    ) -> Result<tonic::Response<Bytes>, Status> {
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(source);
        *request.metadata_mut() = MetadataMap::from_headers(metadata_of(headers));
        if let Some(deadline) = deadline {
            // What is left of it.
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let path = PathAndQuery::try_from(binding.grpc_path()).map_err(|_| Status::internal("no path"))?;
        let reads_only = Method::of_path(path.as_str()).is_some_and(|method| !method.writes());
        let reply_bytes_max = if reads_only { REPLY_BYTES_MAX } else { usize::MAX };
        let mut client = Grpc::new(self.services.clone()).max_decoding_message_size(reply_bytes_max);
        let Ok(()) = client.ready().await;
        client.unary(request, path, AsItIs).await.map_err(|status| match reply_too_large(&status) {
            Some(size) => Status::resource_exhausted(format!(
                "grpc: received message larger than max ({size} vs. {reply_bytes_max})"
            )),
            None => status,
        })
    }
}

/// Whether a request was sent to this machine by its own name, and by no page of elsewhere: a page may send requests to any address
/// without being asked, and a name of its own may lead here.
fn is_of_this_machine(headers: &HeaderMap) -> bool {
    let is_local = |authority: &str| {
        let host = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let host = host.map_or(authority, |(host, _)| host);
        host.eq_ignore_ascii_case("localhost") || Source::of(&format!("{host}:0")).is_local()
    };
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let page = |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| is_local(authority));
    text(HOST).is_some_and(is_local)
        && text(ORIGIN).is_none_or(page)
        && text(HeaderName::from_static("sec-fetch-site")).is_none_or(|site| site != "cross-site")
}

/// The refusal of the node's own that ended a body.
fn refusal(error: &axum::Error) -> Option<Status> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(status) = error.downcast_ref::<Status>().filter(|status| status.code() == Code::ResourceExhausted) {
            return Some(status.clone());
        }
        source = error.source();
    }
    None
}

/// The size of an answer that is too large to be one, from the words with which the gRPC library refuses it.
fn reply_too_large(status: &Status) -> Option<usize> {
    (status.code() == Code::OutOfRange).then(|| too_large(status.message())).flatten()
}

/// What a request says to the gate: session, token and everything that is marked as metadata.
fn metadata_of(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        let marked = name.as_str().strip_prefix(METADATA_PREFIX);
        let kept = marked.or_else(|| [header::SESSION, header::TOKEN].into_iter().find(|kept| name.as_str() == *kept));
        // What gRPC itself needs is not for a client to set.
        let own = |name: &str| matches!(name, "content-type" | "te" | "host") || name.starts_with("grpc-");
        let Some(name) = kept.filter(|name| marked.is_none() || !own(name)) else { continue };
        if let Ok(name) = HeaderName::try_from(name) {
            out.insert(name, value.clone());
        }
    }
    out
}

fn answer(status: StatusCode, metadata: &MetadataMap, json: Vec<u8>) -> Response {
    let mut response = Response::new(HttpBody::from(json));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for entry in metadata.iter() {
        let (name, value) = match entry {
            KeyAndValueRef::Ascii(name, value) => (name.as_str(), value.as_encoded_bytes()),
            KeyAndValueRef::Binary(name, value) => (name.as_str(), value.as_encoded_bytes()),
        };
        let own = matches!(name, "content-type" | "date") || name.starts_with("grpc-");
        if !own
            && let Ok(name) = HeaderName::try_from(format!("{METADATA_PREFIX}{name}"))
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            headers.insert(name, value);
        }
    }
    response
}

/// An error as JSON. Its text stands there twice, as older and newer clients look for it.
fn failure(status: &Status) -> Response {
    let mut body = serde_json::Map::new();
    body.insert("error".into(), status.message().into());
    body.insert("code".into(), (status.code() as i32).into());
    body.insert("message".into(), status.message().into());
    let details = details(status.details());
    if !details.is_empty() {
        body.insert("details".into(), details.into());
    }
    let json = serde_json::Value::Object(body).to_string().into_bytes();
    answer(http_status(status.code()), status.metadata(), json)
}

/// The details of an error, each as JSON with its type.
fn details(encoded: &[u8]) -> Vec<serde_json::Value> {
    /// `google.rpc.Status`, of which only the details are of interest.
    #[derive(Clone, PartialEq, Message)]
    struct Details {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let decoded = Details::decode(encoded).unwrap_or_default();
    let one = |any: prost_types::Any| {
        let message = POOL.get_message_by_name(any.type_url.rsplit('/').next()?)?;
        let message = DynamicMessage::decode(message, any.value.as_slice()).ok()?;
        let mut json: serde_json::Value = serde_json::from_slice(&json::response(&message).ok()?).ok()?;
        json.as_object_mut()?.insert("@type".into(), any.type_url.into());
        Some(json)
    };
    decoded.details.into_iter().filter_map(one).collect()
}

const fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Messages that are encoded already.
#[derive(Clone, Copy, Debug)]
pub struct AsItIs;

impl Codec for AsItIs {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_elsewhere_are_not_of_this_machine() {
        let is_local = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            is_of_this_machine(&pairs.collect::<Vec<(HeaderName, HeaderValue)>>().into_iter().collect())
        };
        for host in ["localhost:8080", "LocalHost", "127.0.0.1:8080", "127.0.0.1", "[::1]:8080", "[::1]"] {
            assert!(is_local(&[("host", host)]), "{host}");
            assert!(is_local(&[("host", host), ("origin", "http://localhost:3000")]), "{host}");
            assert!(!is_local(&[("host", host), ("origin", "https://evil.example")]), "{host}");
            assert!(!is_local(&[("host", host), ("origin", "null")]), "{host}");
            assert!(!is_local(&[("host", host), ("sec-fetch-site", "cross-site")]), "{host}");
            assert!(is_local(&[("host", host), ("sec-fetch-site", "none")]), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", "10.0.0.1:8080", "", "127.0.0.1.evil.example"] {
            assert!(!is_local(&[("host", host)]), "{host}: a name that was made to lead here");
        }
        assert!(!is_local(&[]));
    }
}
