//! Nodes ask and tell each other about sessions and users ([`crate::peer`]).
//!
//! Whatever takes rights away, or moves a session, is told to all live nodes before it is answered, for [`LEASE`] at most: a node
//! that cannot be reached is not waited for, and one that does not answer is waited for no longer,
//! nor beyond the deadline of the call.

use std::sync::{Arc, Weak};

use alhambra_ledger::ids::TxId;
use alhambra_raft::forward::NodeCalls;
use alhambra_raft::meta::SessionId;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use tokio::time::Instant;

use super::App;
use crate::claim::Claim;
use crate::limits::{ANSWER_TAKES, ENDS_PER_MESSAGE, LEASE};
use crate::peer::{Answer, Ask};
use crate::session::ended::End;

/// Answers other nodes for as long as the node lives.
#[derive(Debug)]
pub struct Peers(pub Weak<App>);

impl NodeCalls for Peers {
    fn call(&self, _from: u64, body: Bytes, deadline: Instant) -> BoxFuture<'static, Option<Bytes>> {
        let app = self.0.clone();
        Box::pin(async move {
            let ask = Ask::decode(&body)?;
            app.upgrade()?.answer(ask, deadline).await.map(|answer| answer.encode())
        })
    }
}

/// How far this node has heard another one about sessions that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    process: u64,
    last: u64,
}

impl App {
    /// Asks a node; none when it has not answered in time, or cannot be reached.
    pub(super) async fn ask(&self, node: u64, ask: &Ask, deadline: Instant) -> Option<Answer> {
        let answer = self.groups.node_call(node, ask.encode(), deadline).await;
        match answer {
            Ok(answer) => Answer::decode(&answer),
            Err(error) => {
                tracing::debug!(node, %error, "a node was not asked about a session");
                None
            }
        }
    }

    /// Asks all other nodes at once.
    pub(super) async fn ask_all(&self, ask: &Ask, deadline: Instant) -> Vec<Option<Answer>> {
        let peers = self.groups.peers();
        join_all(peers.into_iter().map(|node| self.ask(node, ask, deadline))).await
    }

    /// Waits until every live node has applied a transaction of `systemdb` and ended what it ends. If it concerns a session,
    /// those that hold it look at its record.
    /// A call that has to answer by `deadline` does so when it is due: what it was asked to do is done.
    pub(super) async fn settle(&self, tx: TxId, session: Option<SessionId>, deadline: Instant) {
        self.settled(session);
        let asked = self.ask_all(&Ask::Settle { tx, session }, told_until(deadline)).await;
        let silent = asked.iter().filter(|answer| answer.is_none()).count();
        if silent > 0 {
            tracing::debug!(silent, "nodes that are down or cut off were not told of a change");
        }
    }

    /// What [`Ask::Settle`] asks for, once the records are here.
    fn settled(&self, session: Option<SessionId>) {
        self.end_changed_users();
        let Some(session) = session.and_then(|id| self.sessions.by_id(&id)) else { return };
        match self.groups.meta().session_database(&session.end().id) {
            Ok(Some((database, tx))) => session.select(tx, database.into()),
            Ok(None) => {}
            // Its database is not known any more, so it must not be used.
            Err(_) => self.sessions.end(session.end()),
        }
    }

    /// Takes over what `systemdb` says by now about users and about sessions that this node holds: what other nodes tell may
    /// have been lost. False when that could not be read; then it is to be tried again.
    pub(crate) fn follow(&self) -> bool {
        let meta = self.groups.meta();
        let mut followed = self.followed.lock();
        let since = *followed;
        // Records may be newer by the time they are looked at, but not older.
        let until = meta.tx();
        let changed = if since == TxId(0) {
            Ok(self.sessions.all().iter().map(|session| session.end().id).collect())
        } else {
            meta.sessions_since(since)
        };
        let Ok(changed) = changed else { return false };
        if meta.users_changed_since(since) {
            self.end_changed_users();
        }
        for id in changed {
            let Some(session) = self.sessions.by_id(&id) else { continue };
            match meta.session_database(&id) {
                Ok(Some((database, tx))) => session.select(tx, database.into()),
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        *followed = until;
        true
    }

    /// Ends a session here and on every live node, as [`Self::settle`] does what it does.
    pub(super) async fn end_everywhere(&self, end: End, deadline: Instant) {
        self.sessions.end(end);
        self.ask_all(&Ask::Ended(vec![end]), told_until(deadline)).await;
    }

    /// Asks all nodes which sessions have ended. Once a node has told everything, this one vouches as far back as that.
    pub(crate) async fn ask_for_ends(&self, deadline: Instant) {
        join_all(self.groups.peers().into_iter().map(|node| self.ask_node_for_ends(node, deadline))).await;
    }

    async fn ask_node_for_ends(&self, node: u64, deadline: Instant) {
        let mut heard = self.heard.lock().get(&node).copied().unwrap_or_default();
        loop {
            let asked = heard.last;
            let answer = self.ask(node, &Ask::Ends { after: asked }, deadline).await;
            let Some(Answer::Ends { process, floor_ms, last, ends }) = answer else { return };
            if process != heard.process && asked != 0 {
                // It was started again, and counts from the beginning.
                heard = Heard { process, last: 0 };
                continue;
            }
            heard = Heard { process, last };
            for end in &ends {
                self.sessions.end(*end);
            }
            self.heard.lock().insert(node, heard);
            if last == asked {
                self.sessions.ended().lock().knows_as_much_as(floor_ms);
                return;
            }
        }
    }

    pub(super) async fn answer(&self, ask: Ask, deadline: Instant) -> Option<Answer> {
        Some(match ask {
            Ask::Touch { text } => self.answer_touch(&text, deadline).await,
            Ask::Settle { tx, session } => {
                self.groups.meta().applied(tx, deadline).await.ok()?;
                self.settled(session);
                Answer::Done
            }
            Ask::Ended(ends) => {
                for end in ends {
                    self.sessions.end(end);
                }
                Answer::Done
            }
            Ask::Ends { after } => {
                let ended = self.sessions.ended().lock();
                let (ends, last) = ended.behind(after, ENDS_PER_MESSAGE);
                Answer::Ends { process: self.process, floor_ms: ended.floor_ms(), last, ends }
            }
            Ask::Clock => Answer::Clock { unix_ms: self.env.clock.now_unix_ms() },
            Ask::Logins { user, take } => {
                let tokens = self.sessions.tokens();
                Answer::Logins { taken: take && tokens.take_login(&user), left: tokens.logins(&user) }
            }
        })
    }

    /// What the owner of a session says about it.
    async fn answer_touch(&self, text: &str, deadline: Instant) -> Answer {
        let found = match self.sessions.refresh(text) {
            Some(session) => Ok(Some(session)),
            None => match Claim::read(text).filter(|read| Some(read.claim.owner) == self.me()) {
                Some(read) => self.returned(text, read, deadline).await,
                None => Ok(None),
            },
        };
        match found {
            Ok(Some(session)) => {
                let (tx, database) = session.selected();
                Answer::Lives { tx, database: database.to_string() }
            }
            Ok(None) => Answer::IsOver,
            Err(_) => Answer::Unsure,
        }
    }
}

/// How long a call waits for other nodes that has to answer by `deadline`.
fn told_until(deadline: Instant) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + left.saturating_sub(ANSWER_TAKES.min(left / 2)).min(LEASE)
}

/// Tells the other nodes now and then which sessions have ended, by asking.
pub(crate) async fn keep_ends(app: Arc<App>) {
    loop {
        app.ask_for_ends(Instant::now() + LEASE).await;
        tokio::time::sleep(crate::limits::ENDS_ASKED).await;
    }
}

/// Puts the public key of this node into its record.
pub(crate) async fn publish_key(app: Arc<App>) {
    let meta = app.groups.meta();
    let mut changes = meta.watch();
    loop {
        let key = app.sessions.key().public_key();
        if let Some((me, node)) = app.me().and_then(|me| Some((me, meta.node(me)?))) {
            if node.session_key == Some(key) {
                app.key_is_known.send_replace(true);
                return;
            }
            if let Err(error) = meta.put_session_key(me, key, Instant::now() + LEASE).await {
                tracing::debug!(%error, "the key of this node is not recorded yet");
            }
        }
        // Without a record, or after a failure, another look; a change wakes us before.
        let _ = tokio::time::timeout(crate::limits::KEY_LOOK, changes.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn other_nodes_are_waited_for_no_longer_than_the_caller_waits() {
        let waits = |left_ms: u64| told_until(Instant::now() + Duration::from_millis(left_ms)) - Instant::now();
        assert_eq!(waits(60_000), LEASE);
        assert_eq!(waits(1000), Duration::from_secs(1) - ANSWER_TAKES);
        assert_eq!(waits(10), Duration::from_millis(5));
        let past = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(told_until(past), Instant::now());
    }
}
