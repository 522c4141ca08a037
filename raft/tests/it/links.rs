//! Links over pipes in memory, in virtual time: deadlines, reconnects, order, bounds, and nodes that do not belong.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_proto::peer as wire;
use alhambra_raft::env::{BoxIo, Listener, Net};
use alhambra_raft::link::{Handler, Hello, Incoming, Lane, Limits, LinkError, Links, Refusal, Request, Serving, serve};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use crate::cluster::{after, run, until};

/// A network of pipes. Reading from it can be held up without any end of a pipe noticing, as when packets are lost.
#[derive(Clone, Debug, Default)]
struct PipeNet(Arc<Pipes>);

#[derive(Debug, Default)]
struct Pipes {
    listeners: Mutex<BTreeMap<String, mpsc::UnboundedSender<DuplexStream>>>,
    silent: Arc<AtomicBool>,
    connects: AtomicU64,
    alive: Mutex<Vec<Arc<AtomicBool>>>,
}

/// One end of a pipe that can be cut.
struct End {
    pipe: DuplexStream,
    silent: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.silent.load(Ordering::Relaxed) {
            // Never woken: what is lost stays lost.
            return Poll::Pending;
        }
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.silent.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

struct PipeListener {
    addr: String,
    incoming: tokio::sync::Mutex<mpsc::UnboundedReceiver<DuplexStream>>,
}

impl Listener for PipeListener {
    fn local_addr(&self) -> io::Result<String> {
        Ok(self.addr.clone())
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            match self.incoming.lock().await.recv().await {
                Some(pipe) => Ok((Box::pin(pipe) as BoxIo, "pipe".into())),
                None => std::future::pending().await,
            }
        })
    }
}

impl Net for PipeNet {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.0.listeners.lock().insert(addr.into(), tx);
        let listener = PipeListener { addr: addr.into(), incoming: tokio::sync::Mutex::new(rx) };
        Box::pin(async move { Ok(Box::new(listener) as Box<dyn Listener>) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            self.0.connects.fetch_add(1, Ordering::Relaxed);
            let (mine, theirs) = duplex(1 << 20);
            let sent = self.0.listeners.lock().get(addr).is_some_and(|listener| listener.send(theirs).is_ok());
            if !sent {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let cut = Arc::new(AtomicBool::new(false));
            self.0.alive.lock().push(cut.clone());
            Ok(Box::pin(End { pipe: mine, silent: self.0.silent.clone(), cut }) as BoxIo)
        })
    }
}

impl PipeNet {
    /// Breaks every connection that was made so far.
    fn cut(&self) {
        for cut in self.0.alive.lock().drain(..) {
            cut.store(true, Ordering::Relaxed);
        }
    }
}

const ECHO: u32 = 1;
const NEVER: u32 = 2;
const WHEN_TOLD: u32 = 3;
const REFUSE: u32 = 4;

/// What the answering node does and sees.
struct Responder {
    me: Option<Hello>,
    calls: AtomicU64,
    release: Notify,
    appends: Mutex<Vec<(u64, Bytes)>>,
}

impl Responder {
    fn new(cluster: &str, node: u64) -> Arc<Self> {
        Arc::new(Self {
            me: Some(Hello { cluster: cluster.into(), node }),
            calls: AtomicU64::new(0),
            release: Notify::new(),
            appends: Mutex::default(),
        })
    }
}

struct Answering(Arc<Responder>);

impl Handler for Answering {
    fn welcome(&self, theirs: &wire::Hello) -> Result<Hello, wire::Refused> {
        use wire::refused::Reason;
        let refused = |reason: Reason, cluster: &str| wire::Refused {
            reason: reason.into(),
            cluster: cluster.into(),
            ..wire::Refused::default()
        };
        let me = self.0.me.clone().ok_or_else(|| refused(Reason::NotFormed, ""))?;
        if theirs.cluster != me.cluster {
            return Err(refused(Reason::OtherCluster, &me.cluster));
        }
        Ok(me)
    }

    fn call(&self, from: u64, call: Incoming) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        assert_eq!(from, 1);
        let responder = self.0.clone();
        responder.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match call.kind {
                ECHO => Ok(call.body),
                NEVER => std::future::pending().await,
                WHEN_TOLD => {
                    responder.release.notified().await;
                    Ok(call.body)
                }
                _ => Err(Refusal::Gone),
            }
        })
    }

    /// Answers each append with its own body; "bad" ends the stream.
    fn appends(
        &self,
        _from: u64,
        group: GroupId,
        bodies: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, Refusal>> {
        let responder = self.0.clone();
        bodies
            .map(move |body| {
                responder.appends.lock().push((group.get(), body.clone()));
                if body == "bad" { Err(Refusal::Failed) } else { Ok(body) }
            })
            .boxed()
    }

    fn probe(&self, view: wire::View) -> BoxFuture<'static, Result<wire::View, Refusal>> {
        Box::pin(async move { Ok(view) })
    }

    fn promise(&self, _: wire::PromiseRequest) -> BoxFuture<'static, Result<wire::PromiseReply, Refusal>> {
        Box::pin(async { Err(Refusal::Stopped) })
    }
}

async fn answering(net: &PipeNet, addr: &str, responder: &Arc<Responder>, limits: Limits) -> Serving {
    let listener = net.listen(addr).await.unwrap();
    serve(listener, Arc::new(Answering(responder.clone())), limits)
}

fn asking(net: &PipeNet, limits: Limits) -> Arc<Links> {
    Links::new(Arc::new(net.clone()), Hello { cluster: "c".into(), node: 1 }, limits)
}

fn request(lane: Lane, kind: u32, body: impl Into<Bytes>) -> Request {
    Request { lane, group: GroupId(5), kind, session: 0, body: body.into() }
}

fn append(session: u64, body: impl Into<Bytes>) -> Request {
    Request { session, ..request(Lane::Append, 9, body) }
}

#[test]
fn calls_are_answered_on_every_lane_over_one_connection() {
    run(async {
        let net = PipeNet::default();
        let responder = Responder::new("c", 2);
        let _serving = answering(&net, "b:1", &responder, Limits::default()).await;
        let links = asking(&net, Limits::default());
        links.set_addr(2, "b:1");
        let unknown = links.call(3, request(Lane::Small, ECHO, "x"), after(100)).await;
        assert_eq!(unknown, Err(LinkError::UnknownNode { node: 3 }));
        for lane in Lane::ALL {
            let big = vec![7; 3 << 20];
            assert_eq!(links.call(2, request(lane, ECHO, big.clone()), after(1000)).await.unwrap(), big);
        }
        let gone = links.call(2, request(Lane::Small, REFUSE, ""), after(1000)).await;
        assert_eq!(gone, Err(LinkError::Refused { node: 2, refusal: Refusal::Gone }));
        assert_eq!(net.0.connects.load(Ordering::Relaxed), 1);
        links.close();
        let closed = links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await;
        assert_eq!(closed, Err(LinkError::Closed { node: 2 }));
    });
}

#[test]
fn a_lost_answer_ends_at_the_deadline_and_only_that_call() {
    run(async {
        let net = PipeNet::default();
        let responder = Responder::new("c", 2);
        let _serving = answering(&net, "b:1", &responder, Limits::default()).await;
        let links = asking(&net, Limits::default());
        links.set_addr(2, "b:1");
        let began = Instant::now();
        let lost = links.call(2, request(Lane::Small, NEVER, ""), after(300)).await;
        assert_eq!(lost, Err(LinkError::AnswerLost { node: 2 }));
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        assert!(links.call(2, request(Lane::Small, ECHO, "x"), after(300)).await.is_ok());
        assert_eq!(net.0.connects.load(Ordering::Relaxed), 1, "one late answer says nothing about the connection");
    });
}

#[test]
fn a_silent_connection_is_given_up_and_made_anew() {
    run(async {
        let net = PipeNet::default();
        let responder = Responder::new("c", 2);
        let _serving = answering(&net, "b:1", &responder, Limits::default()).await;
        let links = asking(&net, Limits::default());
        links.set_addr(2, "b:1");
        links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await.unwrap();
        net.0.silent.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let lost = links.call(2, request(Lane::Small, ECHO, ""), after(60_000)).await;
        assert_eq!(lost, Err(LinkError::AnswerLost { node: 2 }), "long before its deadline");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        net.0.silent.store(false, Ordering::Relaxed);
        until("a connection", || links.state(2).is_ok()).await;
        assert!(links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await.is_ok());
        assert!(net.0.connects.load(Ordering::Relaxed) >= 2);
    });
}

#[test]
fn calls_to_a_node_that_is_away_fail_at_once_and_succeed_when_it_is_back() {
    run(async {
        let net = PipeNet::default();
        let links = asking(&net, Limits::default());
        links.set_addr(2, "b:1");
        let away = Err(LinkError::Unreachable { node: 2, addr: "b:1".into() });
        // The first call waits for the attempt to connect, the next does not even that.
        assert_eq!(links.call(2, request(Lane::Small, ECHO, ""), after(60_000)).await, away);
        let began = Instant::now();
        assert_eq!(links.call(2, request(Lane::Small, ECHO, ""), after(60_000)).await, away);
        assert_eq!(began.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(20)).await;
        let attempts = net.0.connects.load(Ordering::Relaxed);
        assert!((30..=60).contains(&attempts), "{attempts} attempts in 20 s: the wait between them is bounded");
        let responder = Responder::new("c", 2);
        let serving = answering(&net, "b:1", &responder, Limits::default()).await;
        until("a connection", || links.state(2).is_ok()).await;
        assert!(links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await.is_ok());

        // A call under way when the connection breaks has lost its answer; the connection comes back by itself.
        let under_way = links.send(2, request(Lane::Small, NEVER, ""), after(60_000)).await;
        let mut under_way = under_way.unwrap();
        until("the call to arrive", || responder.calls.load(Ordering::Relaxed) == 2).await;
        let began = Instant::now();
        serving.stop().await;
        assert_eq!(under_way.wait().await, Err(LinkError::AnswerLost { node: 2 }));
        assert!(began.elapsed() < Duration::from_secs(2));
        let _serving = answering(&net, "b:1", &responder, Limits::default()).await;
        until("a connection", || links.state(2).is_ok()).await;
        assert!(links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await.is_ok());
    });
}

#[test]
fn appends_of_a_stream_are_answered_in_order_and_a_failure_ends_the_stream() {
    run(async {
        let net = PipeNet::default();
        let responder = Responder::new("c", 2);
        let _serving = answering(&net, "b:1", &responder, Limits::default()).await;
        let links = asking(&net, Limits::default());
        links.set_addr(2, "b:1");
        let mut replies = Vec::new();
        for n in 0..50 {
            replies.push(links.send(2, append(1, n.to_string()), after(1000)).await.unwrap());
        }
        for (n, reply) in replies.iter_mut().enumerate() {
            assert_eq!(reply.wait().await.unwrap(), n.to_string());
        }
        let seen: Vec<Bytes> = responder.appends.lock().drain(..).map(|(_, body)| body).collect();
        assert_eq!(seen, (0..50).map(|n: i32| Bytes::from(n.to_string())).collect::<Vec<_>>());

        let mut bad = links.send(2, append(1, "bad"), after(1000)).await.unwrap();
        let mut late = links.send(2, append(1, "late"), after(1000)).await.unwrap();
        assert_eq!(bad.wait().await, Err(LinkError::Refused { node: 2, refusal: Refusal::Failed }));
        assert_eq!(late.wait().await, Err(LinkError::Refused { node: 2, refusal: Refusal::SessionEnded }));
        let mut fresh = links.send(2, append(2, "fresh"), after(1000)).await.unwrap();
        assert_eq!(fresh.wait().await.unwrap(), "fresh");
        let mut old = links.send(2, append(1, "old"), after(1000)).await.unwrap();
        assert_eq!(old.wait().await, Err(LinkError::Refused { node: 2, refusal: Refusal::SessionEnded }));
        assert!(!responder.appends.lock().iter().any(|(_, body)| body == "late" || body == "old"));
    });
}

#[test]
fn what_waits_is_bounded_in_bytes_and_a_call_that_finds_no_room_is_not_sent() {
    run(async {
        let net = PipeNet::default();
        let limits = Limits { queue_bytes_max: 64 << 10, ..Limits::default() };
        let links = asking(&net, limits);
        // Somebody accepts the connection and says nothing, so the requests wait for it.
        let _listener = net.listen("b:1").await.unwrap();
        links.set_addr(2, "b:1");
        let body = vec![0; 20 << 10];
        let mut waiting = Vec::new();
        for _ in 0..3 {
            waiting.push(links.send(2, request(Lane::Bulk, ECHO, body.clone()), after(500)).await.unwrap());
        }
        let began = Instant::now();
        let fourth = links.send(2, request(Lane::Bulk, ECHO, body.clone()), after(500)).await;
        assert_eq!(fourth.err(), Some(LinkError::NotSent { node: 2 }));
        assert_eq!(began.elapsed(), Duration::from_millis(500));
        // Another lane has room of its own.
        assert!(links.send(2, request(Lane::Small, ECHO, body), after(500)).await.is_ok());
        for mut reply in waiting {
            assert_eq!(reply.wait().await, Err(LinkError::NotSent { node: 2 }), "surely not carried out");
        }
    });
}

#[test]
fn the_answering_side_bounds_its_calls_and_recovers() {
    run(async {
        let net = PipeNet::default();
        let responder = Responder::new("c", 2);
        let limits = Limits { calls_max: 3, ..Limits::default() };
        let _serving = answering(&net, "b:1", &responder, limits).await;
        let links = asking(&net, limits);
        links.set_addr(2, "b:1");
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(links.send(2, request(Lane::Small, WHEN_TOLD, "x"), after(60_000)).await.unwrap());
        }
        let refused = links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await;
        assert_eq!(refused, Err(LinkError::Refused { node: 2, refusal: Refusal::Overloaded }));
        responder.release.notify_waiters();
        for reply in &mut held {
            assert_eq!(reply.wait().await.unwrap(), "x");
        }
        assert!(links.call(2, request(Lane::Small, ECHO, ""), after(1000)).await.is_ok());
    });
}

#[test]
fn nodes_that_do_not_belong_are_refused_with_the_reason() {
    run(async {
        let net = PipeNet::default();
        let _other = answering(&net, "other:1", &Responder::new("d", 2), Limits::default()).await;
        let _moved = answering(&net, "moved:1", &Responder::new("c", 4), Limits::default()).await;
        let unformed = Arc::new(Responder {
            me: None,
            calls: AtomicU64::new(0),
            release: Notify::new(),
            appends: Mutex::default(),
        });
        let _unformed = answering(&net, "unformed:1", &unformed, Limits::default()).await;
        let links = asking(&net, Limits::default());
        let mut expected = BTreeMap::new();
        let other = LinkError::OtherCluster { addr: "other:1".into(), ours: "c".into(), theirs: "d".into() };
        expected.insert(2, ("other:1", other));
        let moved = LinkError::OtherNode { node: 3, addr: "moved:1".into(), found: 4 };
        expected.insert(3, ("moved:1", moved));
        expected.insert(5, ("unformed:1", LinkError::NotFormed { addr: "unformed:1".into() }));
        for (node, (addr, error)) in expected {
            links.set_addr(node, addr);
            assert_eq!(links.call(node, request(Lane::Small, ECHO, ""), after(5000)).await, Err(error));
        }
        // The node has moved; told so, the link finds it.
        let _right = answering(&net, "right:1", &Responder::new("c", 3), Limits::default()).await;
        links.set_addr(3, "right:1");
        until("a connection", || links.state(3).is_ok()).await;
        assert!(links.call(3, request(Lane::Small, ECHO, ""), after(1000)).await.is_ok());
    });
}

#[test]
fn many_connections_that_break_lose_no_call_without_an_error() {
    run(async {
        let net = PipeNet::default();
        let responder = Responder::new("c", 2);
        let _serving = answering(&net, "b:1", &responder, Limits::default()).await;
        let links = asking(&net, Limits::default());
        links.set_addr(2, "b:1");
        let (mut answered, mut lost) = (0, 0);
        for round in 0..200 {
            if round % 7 == 3 {
                net.cut();
            }
            match links.call(2, request(Lane::Small, ECHO, round.to_string()), after(10_000)).await {
                Ok(body) => {
                    assert_eq!(body, round.to_string());
                    answered += 1;
                }
                Err(LinkError::AnswerLost { .. } | LinkError::Unreachable { .. }) => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(answered > 140 && lost > 0, "{answered} answered, {lost} lost");
    });
}
