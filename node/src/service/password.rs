//! Hashing and comparing passwords: slow by intent, so one at a time, and only so many wait for their turn.

use std::sync::Arc;

use alhambra_raft::meta::{ADMIN_USER, User};
use alhambra_raft::strand::of_node;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::App;
use crate::auth;
use crate::error::{Error, Result};
use crate::limits::HASHES_WAIT_MAX;
use crate::throttle::Source;

/// Whose turn it is. The executor never has more than one of these jobs: whatever shares its thread comes in between.
#[derive(Debug)]
pub(super) struct Turns {
    /// Places of those that wait.
    places: Semaphore,
    turn: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { places: Semaphore::new(HASHES_WAIT_MAX), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Turns {
    /// Waits for a turn, which lasts until the answer is dropped; fails at once when too many wait.
    async fn take(&self) -> Result<OwnedSemaphorePermit> {
        let _place = self.places.try_acquire().map_err(|_| Error::TooManyLogins)?;
        self.turn.clone().acquire_owned().await.map_err(|_| Error::Stopping)
    }
}

/// What the first administrator's password is beside the one that a node was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminPassword {
    /// The same.
    Same,
    /// Another one, and it stays.
    Other,
    /// It was another one.
    Forced,
}

impl App {
    /// Compares `given` with the first administrator's password; with `force` that is given in its place, by nobody's right but that of
    /// whoever starts a node.
    pub async fn compare_admin_password(&self, given: &[u8], force: bool, deadline: Instant) -> Result<AdminPassword> {
        let meta = self.groups.meta();
        meta.barrier(deadline).await?;
        let user = meta.user(ADMIN_USER).ok_or(Error::Starting { what: "systemdb" })?;
        if self.matches(ADMIN_USER, Source::of(""), given, &user.password).await? {
            return Ok(AdminPassword::Same);
        }
        if !force {
            return Ok(AdminPassword::Other);
        }
        let expected = user.clone();
        let (password, created_at_ms) = (self.hash(given).await?, self.env.clock.now_unix_ms());
        let user = User { password, created_at_ms, created_by: ADMIN_USER.to_owned(), ..user };
        let tx = meta.put_user(user, Some(&expected), None, deadline).await?;
        self.settle(tx, None, deadline).await;
        Ok(AdminPassword::Forced)
    }

    /// Refuses a try that comes too soon after too many wrong passwords.
    pub(super) fn may_try(&self, name: &str, source: Source) -> Result<()> {
        self.throttle.check(name, source).map_err(|wait| {
            self.metrics.login_refused();
            Error::TooManyFailures { wait }
        })
    }

    /// Whether this is the user's password, in a call that tries it. Failures are counted, and slow the next ones down.
    pub(super) async fn has_password(&self, user: &User, password: &[u8], source: Source) -> Result<bool> {
        self.may_try(&user.name, source)?;
        let matches = self.matches(&user.name, source, password, &user.password).await?;
        if matches {
            self.throttle.succeeded(&user.name, source);
        } else {
            self.throttle.failed(&user.name, source);
        }
        Ok(matches)
    }

    /// Whether the password has this hash.
    pub(super) async fn matches(&self, name: &str, source: Source, password: &[u8], hash: &str) -> Result<bool> {
        if self.proven.knows(password, hash) {
            return Ok(true);
        }
        let turn = self.hashing.take().await?;
        // Others of the same may have failed while this one waited, or shown that the password is right.
        self.may_try(name, source)?;
        if self.proven.knows(password, hash) {
            return Ok(true);
        }
        self.metrics.password_hashed();
        let (password, hash, proven) = (password.to_vec(), hash.to_owned(), self.proven.clone());
        let verify = move || {
            let _turn = turn;
            proven.verify(&password, &hash)
        };
        self.env.blocking(of_node::HASHING, verify).await.ok_or(Error::Stopping)
    }

    /// The hash of a new password.
    pub(super) async fn hash(&self, password: &[u8]) -> Result<String> {
        let turn = self.hashing.take().await?;
        self.metrics.password_hashed();
        let (password, cost, salt) = (password.to_vec(), self.choices.hash_cost, auth::random(&self.env));
        let hash = move || {
            let _turn = turn;
            auth::hash_password(&password, cost, salt)
        };
        self.env.blocking(of_node::HASHING, hash).await.ok_or(Error::Stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_turn_at_a_time_and_a_bounded_number_waits() {
        let turns = Arc::new(Turns::default());
        let first = turns.take().await.unwrap();
        let waiting: Vec<_> = (0..HASHES_WAIT_MAX)
            .map(|_| {
                let turns = turns.clone();
                tokio::spawn(async move { turns.take().await.map(drop) })
            })
            .collect();
        while turns.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(turns.take().await, Err(Error::TooManyLogins)));
        assert_eq!(turns.turn.available_permits(), 0);
        drop(first);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        drop(turns.take().await.unwrap());
    }
}
