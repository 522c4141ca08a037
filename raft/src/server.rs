//! What peers ask of this node: raft messages of all groups, forwarded calls, files of snapshots, probes and promises.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alhambra_ledger::ids::GroupId;
use alhambra_proto::peer as wire;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered};
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::env::Env;
use crate::envelope::{self, EnvelopeError, Fetch, Install, kind};
use crate::error::SnapshotError;
use crate::forming::driver::Former;
use crate::forward::NodeCalls;
use crate::group::Group;
use crate::hosting::Hosting;
use crate::link::{FORMAT, Handler, Hello, Incoming, Refusal};
use crate::network::Network;
use crate::snapshot::{SnapshotFile, SnapshotSink};
use crate::strand::of_node;

/// How much of a file is asked for at once.
const FETCH_BYTES: u64 = 1 << 20;
/// Parts of a file under way.
const FETCHES_IN_FLIGHT: usize = 4;
/// A part that has not come after this long is given up, and the snapshot with it.
const FETCH_WAIT: Duration = Duration::from_secs(15);

/// Answers peers. Lives as long as the listener; groups and network come when the cluster is formed.
pub(crate) struct Server {
    pub(crate) env: Env,
    pub(crate) former: Arc<Former>,
    pub(crate) groups: Arc<Hosting>,
    pub(crate) network: RwLock<Option<Arc<Network>>>,
    /// Answers what the programs above say to each other.
    pub(crate) node_calls: OnceLock<Arc<dyn NodeCalls>>,
    /// Node and cluster that were refused last: whoever tries again and again is told of once.
    pub(crate) stranger: Mutex<Option<(u64, String)>>,
}

fn bad(error: EnvelopeError) -> Refusal {
    tracing::warn!(%error, "a message of a peer was refused");
    Refusal::BadRequest
}

fn stopped<E: std::fmt::Display>(error: E) -> Refusal {
    tracing::debug!(%error, "a call of a peer met a group that stops");
    Refusal::Stopped
}

impl Server {
    fn group(&self, id: GroupId) -> Result<Arc<Group>, Refusal> {
        self.groups.get(id).ok_or(Refusal::UnknownGroup)
    }
}

impl Handler for Arc<Server> {
    fn welcome(&self, theirs: &wire::Hello) -> Result<Hello, wire::Refused> {
        use wire::refused::Reason;
        let refuse = |reason: Reason, cluster| wire::Refused { reason: reason.into(), cluster, format: FORMAT };
        let Some(identity) = self.former.identity() else { return Err(refuse(Reason::NotFormed, String::new())) };
        if theirs.format != FORMAT {
            return Err(refuse(Reason::OtherFormat, identity.cluster));
        }
        if theirs.cluster != identity.cluster {
            let stranger = Some((theirs.node, theirs.cluster.clone()));
            if std::mem::replace(&mut *self.stranger.lock(), stranger.clone()) != stranger {
                let (node, cluster, ours) = (theirs.node, &theirs.cluster, &identity.cluster);
                tracing::warn!(node, cluster, ours, "refused a connection of a node that belongs to another cluster");
            }
            return Err(refuse(Reason::OtherCluster, identity.cluster));
        }
        Ok(Hello { cluster: identity.cluster, node: identity.node_id })
    }

    fn call(&self, from: u64, call: Incoming) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let server = self.clone();
        Box::pin(async move {
            match call.kind {
                kind::VOTE => {
                    let request = envelope::decode_vote_request(&call.body).map_err(bad)?;
                    let group = server.group(call.group)?;
                    let reply = group.raft().vote(request).await.map_err(stopped)?;
                    Ok(envelope::encode_vote_reply(&reply))
                }
                kind::PRE_VOTE => {
                    let request = envelope::decode_vote_request(&call.body).map_err(bad)?;
                    let group = server.group(call.group)?;
                    let reply = group.raft().pre_vote(request).await.map_err(stopped)?;
                    Ok(envelope::encode_vote_reply(&reply))
                }
                kind::HEARTBEAT => {
                    let request = envelope::decode_append(&call.body).map_err(bad)?;
                    let prev = request.prev_log_id;
                    let last = request.entries.last().map(|entry| entry.log_id).or(prev);
                    let group = server.group(call.group)?;
                    let reply = group.raft().append_entries(request).await.map_err(stopped)?;
                    Ok(envelope::encode_append_reply(&reply.into_stream_result(prev, last)))
                }
                kind::TRANSFER => {
                    let request = envelope::decode_transfer(&call.body).map_err(bad)?;
                    let group = server.group(call.group)?;
                    let reply = group.raft().handle_transfer_leader(request).await.map_err(stopped)?;
                    Ok(envelope::encode_transfer_reply(&reply))
                }
                kind::INSTALL => {
                    let install = envelope::decode_install(&call.body).map_err(bad)?;
                    let group = server.group(call.group)?;
                    // In a task of its own, which goes on when the sender hangs up: the guard must outlive what is installed.
                    let done = tokio::spawn(async move {
                        let _one_at_a_time = group.one_install().ok_or(Refusal::Overloaded)?;
                        server.install(from, &group, install).await
                    });
                    let reply = done.await.map_err(|_| Refusal::Failed)??;
                    Ok(envelope::encode_install_reply(&reply))
                }
                kind::FETCH => server.fetch(envelope::decode_fetch(&call.body).map_err(bad)?).await,
                kind::PROPOSE => {
                    let proposal = envelope::decode_propose(&call.body).map_err(bad)?;
                    let reply = server.group(call.group)?.serve_propose(proposal, call.deadline).await;
                    Ok(envelope::encode_propose_reply(&reply))
                }
                kind::TRUNCATE => {
                    let prune = envelope::decode_truncation(&call.body).map_err(bad)?;
                    let reply = server.group(call.group)?.serve_truncation(prune, call.deadline).await;
                    Ok(envelope::encode_propose_reply(&reply))
                }
                kind::READ_INDEX => {
                    let reply = server.group(call.group)?.serve_read_index(call.deadline).await;
                    Ok(envelope::encode_read_index_reply(&reply))
                }
                kind::SEGMENT_VOTE => {
                    let segment = envelope::decode_segment_ask(&call.body).map_err(bad)?;
                    let vote = server.group(call.group)?.serve_segment_vote(segment).await;
                    Ok(envelope::encode_segment_vote(vote.as_ref()))
                }
                kind::SEGMENT_PART => {
                    let part = envelope::decode_segment_part(&call.body).map_err(bad)?;
                    server.group(call.group)?.serve_segment_part(part).await.ok_or(Refusal::Gone)
                }
                kind::HOSTS => server.group(call.group).map(|_| Bytes::new()),
                kind::DISK => {
                    let report = envelope::decode_disk(&call.body).map_err(bad)?;
                    let network = server.network.read().clone().ok_or(Refusal::Stopped)?;
                    network.disks().note(from, report);
                    let own = server.former.identity().and_then(|identity| network.disks().get(identity.node_id));
                    Ok(envelope::encode_disk_reply(own.as_ref()))
                }
                kind::NODE => {
                    let calls = server.node_calls.get().ok_or(Refusal::Stopped)?;
                    calls.call(from, call.body, call.deadline).await.ok_or(Refusal::BadRequest)
                }
                _ => Err(Refusal::BadRequest),
            }
        })
    }

    fn appends(
        &self,
        _from: u64,
        group: GroupId,
        bodies: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, Refusal>> {
        let group = match self.group(group) {
            Ok(group) => group,
            Err(refusal) => return refuse_all(bodies, refusal),
        };
        // A body that does not parse ends the stream; the asking side then begins a new one.
        let appends = bodies.map(|body| envelope::decode_append(&body).map_err(bad).ok());
        let appends =
            appends.take_while(|append| futures::future::ready(append.is_some())).filter_map(futures::future::ready);
        let answers = futures::stream::once(async move { group.stream_append(appends).await }).flatten();
        answers.map(|answer| answer.map(|answer| envelope::encode_append_reply(&answer)).map_err(stopped)).boxed()
    }

    fn probe(&self, view: wire::View) -> BoxFuture<'static, Result<wire::View, Refusal>> {
        let former = self.former.clone();
        Box::pin(async move { Ok(former.answer_probe(view).await) })
    }

    fn promise(&self, request: wire::PromiseRequest) -> BoxFuture<'static, Result<wire::PromiseReply, Refusal>> {
        let former = self.former.clone();
        Box::pin(async move { former.answer_promise(request).await.ok_or(Refusal::Failed) })
    }
}

/// The first append is refused, and with it the stream.
fn refuse_all(bodies: BoxStream<'static, Bytes>, refusal: Refusal) -> BoxStream<'static, Result<Bytes, Refusal>> {
    bodies.map(move |_| Err(refusal)).boxed()
}

impl Server {
    /// A part of a file that another node pulls.
    async fn fetch(&self, fetch: Fetch) -> Result<Bytes, Refusal> {
        let network = self.network.read().clone().ok_or(Refusal::Stopped)?;
        let source = network.transfer(fetch.transfer).ok_or(Refusal::Gone)?;
        let read = move || source.read(&fetch.name, fetch.offset, fetch.len as usize);
        self.env
            .blocking(of_node::SNAPSHOT, read)
            .await
            .ok_or(Refusal::Stopped)?
            .map_err(|error| refuse_snapshot(&error))
    }

    /// Pulls the files of a snapshot from its sender and installs it.
    async fn install(
        &self,
        from: u64,
        group: &Arc<Group>,
        install: Install,
    ) -> Result<SnapshotResponse<crate::types::TypeConfig>, Refusal> {
        let network = self.network.read().clone().ok_or(Refusal::Stopped)?;
        let id = group.id();
        let began = Instant::now();
        let owner = group.clone();
        let manifest = install.manifest.clone();
        let mut sink = self.on_strand(id, move || owner.snapshot_sink(manifest)).await?;
        let mut bytes = 0;
        for file in sink.files() {
            bytes += file.len;
            sink = self.pull(&network, from, group, install.transfer, file, sink).await?;
        }
        let snapshot = self.on_strand(id, move || sink.finish()).await?;
        tracing::info!(group = %id, node = from, bytes, seconds = began.elapsed().as_secs_f64(), "received a raft snapshot");
        network.snapshot_received(bytes);
        let snapshot = Snapshot { meta: install.meta, snapshot };
        group.raft().install_full_snapshot(install.vote, snapshot).await.map_err(stopped)
    }

    /// Pulls one file, a few parts ahead. Ends with the replica, which could not be opened again before.
    async fn pull(
        &self,
        network: &Arc<Network>,
        from: u64,
        group: &Group,
        transfer: u64,
        file: SnapshotFile,
        mut sink: Box<dyn SnapshotSink>,
    ) -> Result<Box<dyn SnapshotSink>, Refusal> {
        let id = group.id();
        let mut parts = FuturesOrdered::new();
        let mut asked = 0;
        let mut written = 0;
        while written < file.len {
            while asked < file.len && parts.len() < FETCHES_IN_FLIGHT {
                let len = FETCH_BYTES.min(file.len - asked);
                let fetch = Fetch {
                    transfer,
                    name: file.name.clone(),
                    offset: asked,
                    len: u32::try_from(len).expect("a part is at most FETCH_BYTES"),
                };
                let network = network.clone();
                parts.push_back(async move {
                    let part = network.fetch(from, id, &fetch, Instant::now() + FETCH_WAIT).await;
                    part.map(|part| (fetch, part))
                });
                asked += len;
            }
            let part = tokio::select! {
                biased;
                () = group.ended() => return Err(Refusal::Stopped),
                part = parts.next() => part,
            };
            let (fetch, part) = match part {
                Some(Ok(part)) => part,
                Some(Err(crate::link::LinkError::Refused { refusal: Refusal::Corrupted, .. })) => {
                    tracing::error!(group = %id, node = from, file = file.name, "the sender's file is corrupted");
                    return Err(Refusal::Corrupted);
                }
                Some(Err(error)) => {
                    tracing::warn!(group = %id, node = from, file = file.name, %error, "a raft snapshot was not received");
                    return Err(Refusal::Failed);
                }
                None => return Err(Refusal::Failed),
            };
            if part.len() != fetch.len as usize {
                return Err(Refusal::Failed);
            }
            written += u64::from(fetch.len);
            sink = self
                .on_strand(id, move || {
                    sink.write(&fetch.name, fetch.offset, &part)?;
                    Ok(sink)
                })
                .await?;
        }
        Ok(sink)
    }

    async fn on_strand<T: Send + 'static>(
        &self,
        id: GroupId,
        work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let done = self.env.blocking(of_node::SNAPSHOT | id.get(), work).await.ok_or(Refusal::Stopped)?;
        done.map_err(|error| refuse_snapshot(&error))
    }
}

/// Said once, where it is handled: the other side only learns the kind.
fn refuse_snapshot(error: &SnapshotError) -> Refusal {
    tracing::error!(%error, source = ?std::error::Error::source(error), "a raft snapshot failed");
    match error {
        SnapshotError::Digest { .. } | SnapshotError::Storage(alhambra_storage::error::Error::Corrupted { .. }) => {
            Refusal::Corrupted
        }
        SnapshotError::NoSuchFile { .. }
        | SnapshotError::Range { .. }
        | SnapshotError::Order { .. }
        | SnapshotError::Incomplete { .. }
        | SnapshotError::Storage(_)
        | SnapshotError::Io(_) => Refusal::Failed,
    }
}
