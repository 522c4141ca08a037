//! The answering side of a link: accepts connections, reads the lanes, and sends the answers back as they become ready.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_proto::peer as wire;
use alhambra_proto::peer::peer_server::{Peer as PeerRpc, PeerServer};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use super::io::{CONNECTION_WINDOW_BYTES, PeerIo, STREAM_WINDOW_BYTES};
use super::peer::{FRAME_OVERHEAD_BYTES, HELLO_KEY, KIND_PING};
use super::{Handler, Incoming, Limits, Refusal};
use crate::env::Listener;

/// Appends of one replication stream that may wait; the asking side never has more under way.
pub(crate) const SESSION_APPENDS_MAX: usize = 64;
/// Wait after an accept that failed, for example because no file descriptor is left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long open connections may take to end.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// A running server for peers.
#[derive(Debug)]
pub struct Serving {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Serving {
    /// Stops accepting and ends all lanes.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(STOP_WAIT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Serves peers until stopped.
pub fn serve(listener: Box<dyn Listener>, handler: Arc<dyn Handler>, limits: Limits) -> Serving {
    let (stop, stopped) = watch::channel(false);
    let service = PeerServer::new(Service { handler, limits, stopped: stopped.clone() })
        .max_decoding_message_size(limits.message_bytes_max)
        .max_encoding_message_size(limits.message_bytes_max);
    let incoming = futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok::<_, std::io::Error>(PeerIo(stream)), listener)),
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection was not accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    });
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(service);
    let mut signal = stopped;
    let task = tokio::spawn(async move {
        let until = async move {
            // An error means that the sender is gone, which means the same.
            let _ = signal.wait_for(|stop| *stop).await;
        };
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, until).await {
            tracing::error!(%error, "the server for peers ended");
        }
    });
    Serving { stop, task }
}

struct Service {
    handler: Arc<dyn Handler>,
    limits: Limits,
    stopped: watch::Receiver<bool>,
}

fn status_of(refused: &wire::Refused) -> Status {
    let text = format!("lane refused: {}", refused.reason().as_str_name().to_lowercase());
    Status::with_details(Code::FailedPrecondition, text, refused.encode_to_vec().into())
}

fn failed(refusal: Refusal) -> Status {
    Status::unavailable(refusal.to_string())
}

#[tonic::async_trait]
impl PeerRpc for Service {
    async fn probe(&self, request: Request<wire::View>) -> Result<Response<wire::View>, Status> {
        self.handler.probe(request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn promise(&self, request: Request<wire::PromiseRequest>) -> Result<Response<wire::PromiseReply>, Status> {
        self.handler.promise(request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn lane(
        &self,
        request: Request<Streaming<wire::Packet>>,
    ) -> Result<Response<BoxStream<wire::Packet>>, Status> {
        let theirs = request
            .metadata()
            .get_bin(HELLO_KEY)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| wire::Hello::decode(bytes).ok())
            .ok_or_else(|| {
                let reason = wire::refused::Reason::BadHello.into();
                status_of(&wire::Refused { reason, ..wire::Refused::default() })
            })?;
        let mine = self.handler.welcome(&theirs).map_err(|refused| status_of(&refused))?;
        let outbox = Arc::new(Outbox::default());
        let reader = Reader {
            from: theirs.node,
            handler: self.handler.clone(),
            outbox: outbox.clone(),
            sessions: BTreeMap::new(),
            calls: Arc::new(Semaphore::new(self.limits.calls_max)),
        };
        tokio::spawn(reader.run(request.into_inner(), self.stopped.clone()));
        let replies = outbox.replies(self.limits.packet_bytes);
        let mut response = Response::new(replies);
        let hello = MetadataValue::from_bytes(&wire::Hello::from(mine).encode_to_vec());
        response.metadata_mut().insert_bin(HELLO_KEY, hello);
        Ok(response)
    }
}

/// Answers that wait to be sent. Bounded by the requests that the asking side has under way.
#[derive(Default)]
struct Outbox {
    waiting: Mutex<Waiting>,
    signal: Notify,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<wire::Frame>,
    closed: bool,
}

impl Outbox {
    fn push(&self, seq: u64, answer: Result<Bytes, Refusal>) {
        let mut frame = wire::Frame { seq, ..wire::Frame::default() };
        match answer {
            Ok(body) => frame.body = body,
            Err(refusal) => frame.status = refusal.status(),
        }
        let mut waiting = self.waiting.lock();
        if !waiting.closed {
            waiting.frames.push_back(frame);
            self.signal.notify_one();
        }
    }

    fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.frames.clear();
        self.signal.notify_one();
    }

    /// What waits, up to `bytes_max` together, or one frame that is larger.
    fn take(&self, bytes_max: usize) -> Option<wire::Packet> {
        let mut waiting = self.waiting.lock();
        let mut frames = Vec::new();
        let mut bytes = 0;
        while let Some(next) = waiting.frames.front() {
            let len = next.body.len() + FRAME_OVERHEAD_BYTES;
            if !frames.is_empty() && bytes + len > bytes_max {
                break;
            }
            bytes += len;
            frames.extend(waiting.frames.pop_front());
        }
        (!frames.is_empty()).then_some(wire::Packet { frames })
    }

    fn replies(self: Arc<Self>, bytes_max: usize) -> BoxStream<wire::Packet> {
        let replies = futures::stream::unfold(self, move |outbox| async move {
            loop {
                if let Some(packet) = outbox.take(bytes_max) {
                    return Some((Ok(packet), outbox));
                }
                if outbox.waiting.lock().closed {
                    return None;
                }
                outbox.signal.notified().await;
            }
        });
        Box::pin(replies)
    }
}

/// Reads one lane.
struct Reader {
    from: u64,
    handler: Arc<dyn Handler>,
    outbox: Arc<Outbox>,
    /// The newest replication stream of each group.
    sessions: BTreeMap<GroupId, Session>,
    calls: Arc<Semaphore>,
}

struct Session {
    number: u64,
    appends: mpsc::Sender<(u64, Bytes)>,
}

impl Reader {
    async fn run(mut self, mut lane: Streaming<wire::Packet>, mut stopped: watch::Receiver<bool>) {
        loop {
            let packet = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                packet = lane.message() => packet,
            };
            let Ok(Some(packet)) = packet else { break };
            for frame in packet.frames {
                self.take(frame);
            }
        }
        self.outbox.close();
    }

    fn take(&mut self, frame: wire::Frame) {
        if frame.kind == KIND_PING {
            self.outbox.push(frame.seq, Ok(Bytes::new()));
        } else if frame.session != 0 {
            self.append(frame);
        } else {
            self.call(frame);
        }
    }

    fn call(&self, frame: wire::Frame) {
        let Ok(permit) = self.calls.clone().try_acquire_owned() else {
            self.outbox.push(frame.seq, Err(Refusal::Overloaded));
            return;
        };
        let deadline = Instant::now() + Duration::from_millis(frame.remaining_ms);
        let incoming = Incoming { group: GroupId(frame.group), kind: frame.kind, body: frame.body, deadline };
        let answer = self.handler.call(self.from, incoming);
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            // Past the deadline nobody waits for the answer.
            if let Ok(answer) = timeout_at(deadline, answer).await {
                outbox.push(frame.seq, answer);
            }
            drop(permit);
        });
    }

    /// Hands an append to its replication stream, beginning a new one when the number is new.
    fn append(&mut self, frame: wire::Frame) {
        let group = GroupId(frame.group);
        let (number, seq) = (frame.session, frame.seq);
        if self.sessions.get(&group).is_none_or(|session| session.number < number) {
            let (appends, queue) = mpsc::channel(SESSION_APPENDS_MAX);
            self.sessions.insert(group, Session { number, appends });
            let session = Replication { from: self.from, group, queue };
            tokio::spawn(session.run(self.handler.clone(), self.outbox.clone()));
        }
        let accepted = match self.sessions.get(&group) {
            Some(session) if session.number == number => session.appends.try_send((seq, frame.body)).is_ok(),
            // A leftover of a stream that has been replaced.
            Some(_) | None => false,
        };
        if !accepted {
            self.outbox.push(seq, Err(Refusal::SessionEnded));
        }
    }
}

/// One replication stream: appends in, answers out, in the same order.
struct Replication {
    from: u64,
    group: GroupId,
    queue: mpsc::Receiver<(u64, Bytes)>,
}

impl Replication {
    async fn run(mut self, handler: Arc<dyn Handler>, outbox: Arc<Outbox>) {
        let (bodies, input) = mpsc::channel(SESSION_APPENDS_MAX);
        let input = futures::stream::unfold(input, |mut input| async move { Some((input.recv().await?, input)) });
        let mut answers = handler.appends(self.from, self.group, input.boxed());
        let mut unanswered = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => {
                    let (Some(answer), Some(seq)) = (answer, unanswered.pop_front()) else { break };
                    let ended = answer.is_err();
                    outbox.push(seq, answer);
                    if ended {
                        break;
                    }
                }
                append = self.queue.recv() => {
                    let Some((seq, body)) = append else { return };
                    unanswered.push_back(seq);
                    if bodies.try_send(body).is_err() {
                        break;
                    }
                }
            }
        }
        drop((answers, bodies));
        for seq in unanswered {
            outbox.push(seq, Err(Refusal::SessionEnded));
        }
        // Until the asking side begins a new stream, or the lane ends.
        while let Some((seq, _)) = self.queue.recv().await {
            outbox.push(seq, Err(Refusal::SessionEnded));
        }
    }
}
