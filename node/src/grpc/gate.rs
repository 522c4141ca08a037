//! What happens to every call before its handler and after it: headers are read, the session is refreshed, the deadline is
//! set, what comes in is counted against the memory of the node, the cluster's UUID goes into the reply, and the call is counted.
//!
//! Order of the checks, as SDKs know it: the session header is not empty and refreshes its session; from here on the UUID
//! is in every reply; the caller is served at all ([`crate::access`]); the session exists (calls that are no streams); the call is made
//! in this mode. Only OpenSession skips the session checks.
//!
//! A reply that is only an error is sent as headers and trailers in two frames, because some clients look for the UUID in
//! the headers and for the error in the trailers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use alhambra_proto::code::{Code as OwnCode, text};
use alhambra_proto::header;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::claim::Kind as Claims;
use crate::context::{Call, ReadLevel, SessionHeader, TokenHeader};
use crate::error::{Error, Result};
use crate::grpc::counted::Counted;
use crate::method::{self, Kind, Method, Need};
use crate::service::App;
use crate::throttle::Source;
use crate::uploads::{Due, Share};

const TIMEOUT_HEADER: &str = "grpc-timeout";
const STATUS_HEADER: &str = "grpc-status";
const MESSAGE_HEADER: &str = "grpc-message";

/// Longest deadline that a client may set; what is longer is cut to it.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How much earlier than the client's deadline a call ends here, at most, so that its answer arrives in time.
const ANSWER_TRAVELS: Duration = Duration::from_millis(50);
/// Calls end by their deadline themselves, with an error that says more; one that is still busy then is cut off.
const LAST_RESORT: Duration = Duration::from_millis(25);

/// Puts the gate before the services.
#[derive(Clone, Debug)]
pub struct GateLayer {
    /// The node.
    pub app: Arc<App>,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { app: self.app.clone(), inner }
    }
}

/// The gate.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    app: Arc<App>,
    inner: S,
}

impl<S> Gate<S> {
    fn uuid(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.app.uuid()?).ok()
    }
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<std::result::Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // In reflection and unknown paths only the caller is ours to judge.
        let Some(method) = Method::of_path(request.uri().path()) else {
            return match self.app.access().serves(source_of(&request)) {
                Ok(()) => Box::pin(self.inner.call(request)),
                Err(error) => Box::pin(async { Ok(Status::from(error).into_http()) }),
            };
        };
        let began = Instant::now();
        let metrics = self.app.metrics().clone();
        metrics.started(method);
        let uuid = self.uuid();
        let size_max = self.app.message_bytes_max();
        let next = match admit(&self.app, method, request.headers(), source_of(&request), began) {
            Admission::Told(call) => Ok(self.enter(method, request, call, began)),
            Admission::Refused(refusal) => Err(refusal),
            // The node knows at once who almost every caller is. For the others it has to ask.
            Admission::Asks(credential, call) => {
                let ready = self.inner.clone();
                let mut gate = Self { app: self.app.clone(), inner: ready };
                // The one that was asked whether it is ready is the one to be called.
                std::mem::swap(&mut self.inner, &mut gate.inner);
                return Box::pin(async move {
                    let response = match ask(&gate.app, method, credential, call).await {
                        Ok(call) => {
                            let running = gate.enter(method, request, call, began);
                            run(method, running).await?
                        }
                        Err(error) => Status::from(error).into_http(),
                    };
                    let (response, code) = finish(response, uuid, size_max);
                    metrics.handled(method, code, began.elapsed());
                    Ok(response)
                });
            }
        };
        Box::pin(async move {
            let (response, uuid) = match next {
                Ok(running) => (run(method, running).await?, uuid),
                Err(Refusal::BeforeUuid(error)) => (Status::from(error).into_http(), None),
                Err(Refusal::AfterUuid(error)) => (Status::from(error).into_http(), uuid),
            };
            let (response, code) = finish(response, uuid, size_max);
            metrics.handled(method, code, began.elapsed());
            Ok(response)
        })
    }
}

impl<S> Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    /// Calls the service.
    fn enter(&mut self, method: &Method, mut request: Request<Body>, call: Call, began: Instant) -> Running<S::Future> {
        let is_answered = *method == method::STREAM_EXPORT_TX;
        let share = self.app.uploads().begin(is_answered, began, self.app.request_timeout());
        let due = if call.chosen { Due::At(call.deadline) } else { Due::Behind(share.clone()) };
        request.extensions_mut().insert(call);
        request.extensions_mut().insert(due.clone());
        let request = request.map(|body| {
            let counted = Counted::new(body, share.clone());
            // Calls in streams come over connections only.
            Body::new(if method.kind == Kind::Stream { counted.to_its_end() } else { counted })
        });
        Running { inner: self.inner.call(request), due, _share: share }
    }
}

/// A call that the service carries out.
struct Running<F> {
    inner: F,
    due: Due,
    /// What came in is held until there is an answer.
    _share: Arc<Share>,
}

async fn run<F>(method: &Method, running: Running<F>) -> std::result::Result<Response<Body>, Infallible>
where
    F: Future<Output = std::result::Result<Response<Body>, Infallible>>,
{
    let Running { inner, due, _share } = running;
    due.outlast(LAST_RESORT, inner).await.unwrap_or_else(|| Ok(is_overdue(method).into_http()))
}

/// The answer to a call that did not end by itself.
fn is_overdue(method: &Method) -> Status {
    if method.writes() {
        OwnCode::OutcomeUnknown.status("the call did not end by its deadline; it may have been applied")
    } else {
        OwnCode::Overloaded.status("the node is too busy to answer by the deadline; nothing was applied")
    }
}

enum Refusal {
    /// The reply has no UUID.
    BeforeUuid(Error),
    /// It has one.
    AfterUuid(Error),
}

/// What a caller shows.
enum Credential {
    Session(Box<str>),
    Token(Box<str>),
}

enum Admission {
    /// Known, as far as it matters.
    Told(Call),
    Refused(Refusal),
    /// Others have to be asked about the caller; the call lacks what they say.
    Asks(Credential, Call),
}

/// Where a call comes from, as its connection tells.
fn source_of(request: &Request<Body>) -> Source {
    request.extensions().get().copied().unwrap_or_default()
}

fn admit(app: &App, method: &Method, headers: &HeaderMap, source: Source, now: Instant) -> Admission {
    let shown = if *method == method::OPEN_SESSION { None } else { headers.get(header::SESSION) };
    let session = match shown.map(HeaderValue::as_bytes) {
        None => Some(SessionHeader::Absent),
        Some([]) => return Admission::Refused(Refusal::BeforeUuid(text::NO_SESSION_ID.into())),
        Some(id) => match std::str::from_utf8(id) {
            Ok(id) if !may_be_session(id) || !app.access().takes(Claims::Session) => Some(SessionHeader::Unknown),
            Ok(id) => app.own_session(id),
            Err(_) => Some(SessionHeader::Unknown),
        },
    };
    if let Err(error) = app.access().serves(source) {
        return Admission::Refused(Refusal::AfterUuid(error));
    }
    if matches!(session, Some(SessionHeader::Unknown)) && method.kind == Kind::Unary {
        return Admission::Refused(Refusal::AfterUuid(text::SESSION_NOT_FOUND.into()));
    }
    if let Err(error) = app.allows(method) {
        return Admission::Refused(Refusal::AfterUuid(error));
    }
    let level = match read_level(headers) {
        Ok(level) => level,
        Err(error) => return Admission::Refused(Refusal::AfterUuid(error)),
    };
    let timeout = timeout(headers);
    let deadline = deadline(timeout, now, app.request_timeout());
    let asked = session.is_none();
    let session = session.unwrap_or(SessionHeader::Absent);
    let mut call = Call { session, token: TokenHeader::Absent, source, deadline, chosen: timeout.is_some(), level };
    if asked {
        let id = shown.and_then(|id| id.to_str().ok()).unwrap_or_default();
        return Admission::Asks(Credential::Session(id.into()), call);
    }
    // A session beats a token, and who may be anybody need not tell.
    if matches!(call.session, SessionHeader::Absent)
        && method.need != Need::Anonymous
        && let Some(token) = token(headers)
    {
        match app.own_token(token) {
            Some(known) => call.token = known,
            None => return Admission::Asks(Credential::Token(token.into()), call),
        }
    }
    Admission::Told(call)
}

/// Whether the text has the length of a session id at least.
fn may_be_session(id: &str) -> bool {
    crate::claim::slot(id).is_some()
}

/// Finds out who calls.
async fn ask(app: &App, method: &Method, credential: Credential, mut call: Call) -> Result<Call> {
    match credential {
        Credential::Token(token) => call.token = app.token(&token, call.deadline).await,
        Credential::Session(id) => {
            call.session = app.session(&id, call.deadline).await?;
            if matches!(call.session, SessionHeader::Unknown) && method.kind == Kind::Unary {
                return Err(text::SESSION_NOT_FOUND.into());
            }
        }
    }
    Ok(call)
}

fn read_level(headers: &HeaderMap) -> Result<ReadLevel> {
    let Some(value) = headers.get(header::LEVEL) else { return Ok(ReadLevel::default()) };
    let unknown = Error::Header { header: header::LEVEL, expects: "linearizable or local" };
    value.to_str().ok().and_then(ReadLevel::from_name).ok_or(unknown)
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::TOKEN)?.to_str().unwrap_or_default();
    // A client that trims its headers sends an empty token as "Bearer".
    Some(value.strip_prefix("Bearer ").unwrap_or(if value == "Bearer" { "" } else { value }))
}

/// The time that a client gives a call.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(TIMEOUT_HEADER).and_then(|value| parse_timeout(value.as_bytes()))
}

/// When the call has to have an answer. A client's own deadline is met a little early.
fn deadline(client: Option<Duration>, now: Instant, default: Duration) -> Instant {
    match client {
        Some(timeout) => {
            let timeout = timeout.min(TIMEOUT_MAX);
            now + (timeout - (timeout / 10).min(ANSWER_TRAVELS))
        }
        None => now + default,
    }
}

/// At most eight digits and a unit, as the gRPC protocol has it.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Adds the UUID, and splits a reply that is only an error into headers and trailers. Also tells the code.
fn finish(response: Response<Body>, uuid: Option<HeaderValue>, size_max: usize) -> (Response<Body>, Code) {
    let (mut parts, body) = response.into_parts();
    let Some(status) = parts.headers.get(STATUS_HEADER) else {
        if let Some(uuid) = uuid {
            parts.headers.insert(HeaderName::from_static(header::UUID), uuid);
        }
        return (Response::from_parts(parts, body), Code::Ok);
    };
    let mut code = Code::from_bytes(status.as_bytes());
    if code == Code::OutOfRange
        && let Some(size) = parts.headers.get(MESSAGE_HEADER).and_then(|text| too_large(text.to_str().ok()?))
    {
        code = Code::ResourceExhausted;
        parts.headers = text::message_too_large(size, size_max).into_http::<Body>().into_parts().0.headers;
    }
    let mut trailers = std::mem::take(&mut parts.headers);
    if let Some(content_type) = trailers.remove(CONTENT_TYPE) {
        parts.headers.insert(CONTENT_TYPE, content_type);
    }
    if let Some(uuid) = uuid {
        parts.headers.insert(HeaderName::from_static(header::UUID), uuid);
    }
    (Response::from_parts(parts, Body::new(OnlyTrailers(Some(trailers)))), code)
}

/// The size in the words with which the gRPC library refuses a message that is too large. A test holds them.
pub(crate) fn too_large(message: &str) -> Option<usize> {
    // As a header the message is percent-encoded: spaces are "%20" or stay.
    let message = message.replace("%20", " ");
    let rest = message.strip_prefix("Error, decoded message length too large: found ")?;
    rest.split_once(' ')?.0.parse().ok()
}

/// A body that is nothing but trailers.
struct OnlyTrailers(Option<HeaderMap>);

impl HttpBody for OnlyTrailers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn timeouts_of_the_protocol_and_nothing_else() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("1s", None),
            ("-1S", None),
        ] {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_of_the_client_is_met_early_and_its_absence_filled() {
        let now = Instant::now();
        let default = Duration::from_secs(10);
        let of = |text: &str| deadline(timeout(&headers(TIMEOUT_HEADER, text)), now, default) - now;
        assert_eq!(of("1S"), Duration::from_millis(950));
        assert_eq!(of("100m"), Duration::from_millis(90));
        assert_eq!(of("99999999H"), TIMEOUT_MAX - ANSWER_TRAVELS);
        assert_eq!(of("nonsense"), default);
        assert_eq!(deadline(timeout(&HeaderMap::new()), now, default) - now, default);
    }

    #[test]
    fn tokens_with_and_without_prefix() {
        for (value, expected) in [
            ("Bearer abc", "abc"),
            ("abc", "abc"),
            ("Bearer ", ""),
            ("Bearer", ""),
            ("", ""),
            ("bearer abc", "bearer abc"),
        ] {
            assert_eq!(token(&headers(header::TOKEN, value)), Some(expected), "{value:?}");
        }
        assert!(token(&HeaderMap::new()).is_none());
    }

    #[test]
    fn levels() {
        assert_eq!(read_level(&HeaderMap::new()).unwrap(), ReadLevel::Linearizable);
        assert_eq!(read_level(&headers(header::LEVEL, "local")).unwrap(), ReadLevel::Local);
        assert!(read_level(&headers(header::LEVEL, "Local")).is_err());
    }
}
