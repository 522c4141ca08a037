//! The asking side of a link: one peer, its queues, its connection, and the calls that wait for answers.
//!
//! One task per peer owns the connection: it connects, opens the lanes, hands answers to the calls, notices when the peer
//! has gone silent, and begins again. Everything else touches only the queues and the table of waiting calls.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use alhambra_proto::peer as wire;
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tonic::Streaming;
use tonic::metadata::MetadataValue;

use super::io::dial;
use super::{FORMAT, Hello, Lane, Limits, LinkError, Outgoing, Refusal, Request};
use crate::env::Net;

/// Metadata key under which both sides name themselves.
pub(super) const HELLO_KEY: &str = "alhambra-hello-bin";
/// Frames of this kind ask for a sign of life.
pub(super) const KIND_PING: u32 = 0;
/// What a frame takes besides its body, about; so that many empty frames are bounded too.
pub(super) const FRAME_OVERHEAD_BYTES: usize = 64;
/// Queue space is counted in units of this many bytes.
const SPACE_UNIT_BYTES: usize = 1 << 10;

pub(super) struct Peer {
    node: u64,
    me: Hello,
    net: Arc<dyn Net>,
    limits: Limits,
    outgoing: Arc<Outgoing>,
    shared: Mutex<Shared>,
    /// Room in the queue of each lane, in units.
    space: [Arc<Semaphore>; 3],
    /// Wakes the task: the address has changed, or the link is closed.
    wake: Notify,
}

struct Shared {
    addr: String,
    state: State,
    /// Counts attempts to connect; what belongs to an older one is dead.
    generation: u64,
    next_seq: u64,
    queues: [VecDeque<Queued>; 3],
    signals: Arc<[Notify; 3]>,
    waiting: BTreeMap<u64, Waiting>,
    last_heard: Instant,
    closed: bool,
}

#[derive(Clone)]
enum State {
    /// The first attempt after a start or after a working connection: requests wait for it.
    Connecting,
    Up,
    /// The last attempt failed: requests fail at once.
    Down(LinkError),
}

struct Queued {
    frame: wire::Frame,
    deadline: Option<Instant>,
    _space: Option<OwnedSemaphorePermit>,
}

struct Waiting {
    sent: bool,
    answer: oneshot::Sender<Result<Bytes, LinkError>>,
}

enum Take {
    Packet(wire::Packet),
    Nothing,
    Ended,
}

/// The answer to come of one request. Dropping it forgets the call.
pub struct Reply {
    peer: Arc<Peer>,
    seq: u64,
    deadline: Instant,
    answer: oneshot::Receiver<Result<Bytes, LinkError>>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("node", &self.peer.node).field("seq", &self.seq).finish_non_exhaustive()
    }
}

impl Reply {
    /// Waits for the answer until the deadline of the request. Cancelling the wait does not lose the answer.
    pub async fn wait(&mut self) -> Result<Bytes, LinkError> {
        match timeout_at(self.deadline, &mut self.answer).await {
            Ok(Ok(answer)) => answer,
            // The table of waiting calls went away with the link.
            Ok(Err(_)) => Err(LinkError::AnswerLost { node: self.peer.node }),
            Err(_) => Err(match self.peer.forget(self.seq) {
                Some(false) => LinkError::NotSent { node: self.peer.node },
                Some(true) | None => LinkError::AnswerLost { node: self.peer.node },
            }),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.peer.forget(self.seq);
    }
}

impl Peer {
    /// Begins to connect.
    pub(super) fn start(
        node: u64,
        addr: &str,
        me: Hello,
        (net, limits): (Arc<dyn Net>, Limits),
        outgoing: Arc<Outgoing>,
    ) -> Arc<Self> {
        let units = (limits.queue_bytes_max / SPACE_UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let peer = Arc::new(Self {
            node,
            me,
            net,
            limits,
            outgoing,
            shared: Mutex::new(Shared {
                addr: addr.to_owned(),
                state: State::Connecting,
                generation: 0,
                next_seq: 1,
                queues: Default::default(),
                signals: Arc::default(),
                waiting: BTreeMap::new(),
                last_heard: Instant::now(),
                closed: false,
            }),
            space: std::array::from_fn(|_| Arc::new(Semaphore::new(units))),
            wake: Notify::new(),
        });
        tokio::spawn(peer.clone().run());
        peer
    }

    pub(super) fn set_addr(&self, addr: &str) {
        let mut shared = self.shared.lock();
        if shared.addr != addr {
            shared.addr = addr.to_owned();
            drop(shared);
            self.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.shared.lock().closed = true;
        self.end_connection(LinkError::Closed { node: self.node });
        self.wake.notify_one();
    }

    pub(super) fn state(&self) -> Result<(), LinkError> {
        match &self.shared.lock().state {
            State::Up => Ok(()),
            State::Connecting => Err(LinkError::NotSent { node: self.node }),
            State::Down(error) => Err(error.clone()),
        }
    }

    pub(super) async fn send(self: Arc<Self>, request: Request, deadline: Instant) -> Result<Reply, LinkError> {
        let lane = request.lane.index();
        let bytes = request.body.len() + FRAME_OVERHEAD_BYTES;
        let most = (self.limits.queue_bytes_max / SPACE_UNIT_BYTES).max(1);
        // A request larger than the queue waits until the queue is empty.
        let units = u32::try_from(bytes.div_ceil(SPACE_UNIT_BYTES).min(most)).unwrap_or(u32::MAX);
        self.usable()?;
        let space = match self.space[lane].clone().try_acquire_many_owned(units) {
            Ok(space) => space,
            Err(_) => timeout_at(deadline, self.space[lane].clone().acquire_many_owned(units))
                .await
                .map_err(|_| LinkError::NotSent { node: self.node })?
                .map_err(|_| LinkError::Closed { node: self.node })?,
        };
        let (tx, rx) = oneshot::channel();
        let mut shared = self.shared.lock();
        if shared.closed {
            return Err(LinkError::Closed { node: self.node });
        }
        if let State::Down(error) = &shared.state {
            return Err(error.clone());
        }
        let seq = shared.next_seq;
        shared.next_seq += 1;
        let frame = wire::Frame {
            group: request.group.get(),
            kind: request.kind,
            seq,
            session: request.session,
            remaining_ms: 0,
            status: 0,
            body: request.body,
        };
        shared.queues[lane].push_back(Queued { frame, deadline: Some(deadline), _space: Some(space) });
        shared.waiting.insert(seq, Waiting { sent: false, answer: tx });
        shared.signals[lane].notify_one();
        drop(shared);
        Ok(Reply { peer: self, seq, deadline, answer: rx })
    }

    fn usable(&self) -> Result<(), LinkError> {
        let shared = self.shared.lock();
        match &shared.state {
            _ if shared.closed => Err(LinkError::Closed { node: self.node }),
            State::Down(error) => Err(error.clone()),
            State::Connecting | State::Up => Ok(()),
        }
    }

    /// Nobody waits for this answer any more. Whether the request had been sent; `None` when it is not waiting.
    fn forget(&self, seq: u64) -> Option<bool> {
        self.shared.lock().waiting.remove(&seq).map(|waiting| waiting.sent)
    }

    /// Packs what waits on a lane.
    fn take(&self, lane: Lane, generation: u64) -> Take {
        let mut guard = self.shared.lock();
        let shared = &mut *guard;
        if shared.closed || shared.generation != generation {
            return Take::Ended;
        }
        // Until the other side has said who it is on every lane, nothing is sent to it.
        if !matches!(shared.state, State::Up) {
            return Take::Nothing;
        }
        let now = Instant::now();
        let mut frames = Vec::new();
        let mut bytes = 0;
        while let Some(next) = shared.queues[lane.index()].front() {
            let len = next.frame.body.len() + FRAME_OVERHEAD_BYTES;
            if !frames.is_empty() && bytes + len > self.limits.packet_bytes {
                break;
            }
            let Some(mut next) = shared.queues[lane.index()].pop_front() else { break };
            if let Some(deadline) = next.deadline {
                // Whoever asked may have gone away or be late: then nothing is sent.
                let Some(waiting) = shared.waiting.get_mut(&next.frame.seq) else { continue };
                if deadline <= now {
                    continue;
                }
                waiting.sent = true;
                next.frame.remaining_ms = u64::try_from((deadline - now).as_millis()).unwrap_or(u64::MAX).max(1);
            }
            bytes += len;
            frames.push(next.frame);
        }
        if frames.is_empty() {
            return Take::Nothing;
        }
        drop(guard);
        self.outgoing.packet(lane, frames.len());
        Take::Packet(wire::Packet { frames })
    }

    /// What goes out on one lane of one connection.
    fn outgoing(
        self: &Arc<Self>,
        lane: Lane,
        generation: u64,
        signals: Arc<[Notify; 3]>,
    ) -> impl Stream<Item = wire::Packet> + Send + 'static {
        futures::stream::unfold(self.clone(), move |peer| {
            let signals = signals.clone();
            async move {
                loop {
                    match peer.take(lane, generation) {
                        Take::Packet(packet) => return Some((packet, peer)),
                        Take::Ended => return None,
                        Take::Nothing => signals[lane.index()].notified().await,
                    }
                }
            }
        })
    }

    async fn run(self: Arc<Self>) {
        let mut backoff = self.limits.backoff_min;
        let mut reported: Option<LinkError> = None;
        loop {
            let (addr, generation, signals) = {
                let mut shared = self.shared.lock();
                if shared.closed {
                    return;
                }
                shared.generation += 1;
                shared.signals = Arc::default();
                (shared.addr.clone(), shared.generation, shared.signals.clone())
            };
            match self.connect(&addr, generation, &signals).await {
                Ok(lanes) => {
                    tracing::info!(node = self.node, addr, "connected to peer");
                    let began = Instant::now();
                    reported = None;
                    {
                        let mut shared = self.shared.lock();
                        shared.state = State::Up;
                        shared.last_heard = Instant::now();
                        for signal in signals.iter() {
                            signal.notify_one();
                        }
                    }
                    let reason = self.serve(lanes, &addr).await;
                    tracing::info!(node = self.node, addr, reason, "connection to peer ended");
                    self.shared.lock().state = State::Connecting;
                    self.end_connection(LinkError::Unreachable { node: self.node, addr });
                    // A peer that accepts and hangs up at once is not asked in a tight loop.
                    if began.elapsed() >= self.limits.stall_after {
                        backoff = self.limits.backoff_min;
                    } else {
                        tokio::time::sleep(backoff).await;
                        backoff = (backoff * 2).min(self.limits.backoff_max);
                    }
                }
                Err(error) => {
                    // One line per kind of trouble, not one per attempt.
                    if reported.as_ref() != Some(&error) {
                        tracing::warn!(node = self.node, %error, "no connection to peer");
                        reported = Some(error.clone());
                    }
                    self.shared.lock().state = State::Down(error.clone());
                    self.end_connection(error);
                    tokio::select! {
                        biased;
                        () = self.wake.notified() => backoff = self.limits.backoff_min,
                        () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(self.limits.backoff_max),
                    }
                }
            }
        }
    }

    /// Connects and opens the lanes.
    async fn connect(
        self: &Arc<Self>,
        addr: &str,
        generation: u64,
        signals: &Arc<[Notify; 3]>,
    ) -> Result<[Streaming<wire::Packet>; 3], LinkError> {
        let unreachable = || LinkError::Unreachable { node: self.node, addr: addr.to_owned() };
        let attempt = async {
            let mut client = dial(self.net.clone(), addr.to_owned(), &self.limits).await.map_err(|_| unreachable())?;
            let hello = MetadataValue::from_bytes(&wire::Hello::from(self.me.clone()).encode_to_vec());
            let mut lanes = Vec::with_capacity(3);
            for lane in Lane::ALL {
                let mut request = tonic::Request::new(self.outgoing(lane, generation, signals.clone()));
                request.metadata_mut().insert_bin(HELLO_KEY, hello.clone());
                request.metadata_mut().insert("alhambra-lane", MetadataValue::from_static(lane.name()));
                let response = client.lane(request).await.map_err(|status| self.refused(addr, &status))?;
                self.check_hello(addr, response.metadata())?;
                lanes.push(response.into_inner());
            }
            <[_; 3]>::try_from(lanes).map_err(|_| unreachable())
        };
        timeout(self.limits.connect_timeout, attempt).await.unwrap_or_else(|_| Err(unreachable()))
    }

    fn refused(&self, addr: &str, status: &tonic::Status) -> LinkError {
        use wire::refused::Reason;
        let addr = addr.to_owned();
        match wire::Refused::decode(status.details()) {
            Ok(refused) => match refused.reason() {
                Reason::NotFormed => LinkError::NotFormed { addr },
                Reason::OtherCluster => {
                    LinkError::OtherCluster { addr, ours: self.me.cluster.clone(), theirs: refused.cluster }
                }
                Reason::OtherFormat => LinkError::OtherFormat { addr, theirs: refused.format },
                Reason::Stopping | Reason::BadHello | Reason::Unknown => {
                    LinkError::Unreachable { node: self.node, addr }
                }
            },
            Err(_) => LinkError::Unreachable { node: self.node, addr },
        }
    }

    /// The other side names itself too: an address may have passed to another node.
    fn check_hello(&self, addr: &str, metadata: &tonic::metadata::MetadataMap) -> Result<(), LinkError> {
        let unreachable = || LinkError::Unreachable { node: self.node, addr: addr.to_owned() };
        let bytes = metadata.get_bin(HELLO_KEY).and_then(|value| value.to_bytes().ok()).ok_or_else(unreachable)?;
        let theirs = wire::Hello::decode(bytes).map_err(|_| unreachable())?;
        if theirs.cluster != self.me.cluster {
            let (ours, theirs) = (self.me.cluster.clone(), theirs.cluster);
            return Err(LinkError::OtherCluster { addr: addr.to_owned(), ours, theirs });
        }
        if theirs.format != FORMAT {
            return Err(LinkError::OtherFormat { addr: addr.to_owned(), theirs: theirs.format });
        }
        if theirs.node != self.node {
            return Err(LinkError::OtherNode { node: self.node, addr: addr.to_owned(), found: theirs.node });
        }
        Ok(())
    }

    /// Hands answers to the calls until the connection ends; answers why it did.
    async fn serve(&self, lanes: [Streaming<wire::Packet>; 3], addr: &str) -> &'static str {
        let [mut small, mut append, mut bulk] = lanes;
        let mut tick = tokio::time::interval(self.limits.ping_after / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                biased;
                () = self.wake.notified() => {
                    let shared = self.shared.lock();
                    if shared.closed {
                        return "closed";
                    }
                    if shared.addr != addr {
                        return "the peer has another address";
                    }
                    continue;
                }
                message = small.message() => message,
                message = append.message() => message,
                message = bulk.message() => message,
                _ = tick.tick() => {
                    // Whatever has arrived in the meantime was read above, so a process that was paused does not blame the
                    // peer for it.
                    let silent = self.shared.lock().last_heard.elapsed();
                    if silent >= self.limits.stall_after {
                        return "the peer has gone silent";
                    }
                    if silent >= self.limits.ping_after {
                        self.ping();
                    }
                    continue;
                }
            };
            match message {
                Ok(Some(packet)) => self.answers(packet),
                Ok(None) => return "the peer closed it",
                Err(_) => return "the connection broke",
            }
        }
    }

    fn ping(&self) {
        let mut shared = self.shared.lock();
        let lane = Lane::Small.index();
        // One that still waits to be sent is enough.
        if shared.queues[lane].iter().any(|queued| queued.frame.kind == KIND_PING) {
            return;
        }
        let seq = shared.next_seq;
        shared.next_seq += 1;
        let frame = wire::Frame { kind: KIND_PING, seq, ..wire::Frame::default() };
        shared.queues[lane].push_back(Queued { frame, deadline: None, _space: None });
        shared.signals[lane].notify_one();
    }

    fn answers(&self, packet: wire::Packet) {
        let mut shared = self.shared.lock();
        shared.last_heard = Instant::now();
        for frame in packet.frames {
            // No entry: the caller has gone, or this answers a ping.
            let Some(waiting) = shared.waiting.remove(&frame.seq) else { continue };
            let answer = match Refusal::from_status(frame.status) {
                None => Ok(frame.body),
                Some(refusal) => Err(LinkError::Refused { node: self.node, refusal }),
            };
            // The caller may have gone in this very moment.
            let _ = waiting.answer.send(answer);
        }
    }

    /// Ends everything that belongs to the connection: what was sent has lost its answer, what was not sent never is.
    fn end_connection(&self, not_sent: LinkError) {
        let mut shared = self.shared.lock();
        shared.generation += 1;
        for queue in &mut shared.queues {
            queue.clear();
        }
        for signal in shared.signals.iter() {
            signal.notify_one();
        }
        for (_, waiting) in std::mem::take(&mut shared.waiting) {
            let error = if waiting.sent { LinkError::AnswerLost { node: self.node } } else { not_sent.clone() };
            let _ = waiting.answer.send(Err(error));
        }
    }
}
