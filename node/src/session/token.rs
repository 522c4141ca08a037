//! Tokens of Login and UseDatabase. Nobody holds them: they are claims, and what is here is forgotten with the process without
//! harm, but for the number of logins.

use std::collections::HashMap;
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_raft::meta::User;
use parking_lot::RwLock;

use crate::claim::{Claim, Slot, slot};
use crate::limits::TOKENS_VERIFIED_MAX;

/// A token whose signature is right and whose user has not changed since.
#[derive(Debug)]
pub struct Token {
    text: Box<str>,
    claim: Claim,
    user: Arc<User>,
}

impl Token {
    /// Of a verified claim and its user's record.
    pub fn new(text: &str, claim: Claim, user: Arc<User>) -> Self {
        Self { text: text.into(), claim, user }
    }

    /// Its user, as it was at login.
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// What it claims.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The selected database; none until UseDatabase.
    pub fn database(&self) -> Option<Arc<str>> {
        self.claim.database.clone()
    }
}

/// What a token of this user that is made now rests on.
pub fn epoch_of((user, logout): (TxId, Option<TxId>)) -> TxId {
    user.max(logout.unwrap_or(TxId(0)))
}

/// Tokens that were verified lately, and logins.
#[derive(Debug, Default)]
pub struct Tokens {
    verified: RwLock<HashMap<Slot, Arc<Token>>>,
    /// Logins of each user through this node that no Logout has taken back, and the epoch of their tokens.
    logins: RwLock<HashMap<String, (TxId, u64)>>,
}

impl Tokens {
    /// A token that was verified before and that nothing has ended since, except perhaps its time.
    pub fn verified(&self, text: &str) -> Option<Arc<Token>> {
        let found = self.verified.read().get(&slot(text)?).cloned()?;
        (*found.text == *text).then_some(found)
    }

    /// Spares it the next verification.
    pub fn remember(&self, token: Arc<Token>) {
        let Some(slot) = slot(&token.text) else { return };
        let mut verified = self.verified.write();
        if verified.len() >= TOKENS_VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(slot, token);
    }

    /// Counts a login.
    pub fn count_login(&self, name: &str, epoch: TxId) {
        let mut logins = self.logins.write();
        match logins.get_mut(name) {
            Some((at, count)) if *at == epoch => *count += 1,
            _ => _ = logins.insert(name.to_owned(), (epoch, 1)),
        }
    }

    /// Takes back a login if there is one; whether there was.
    pub fn take_login(&self, name: &str) -> bool {
        let mut logins = self.logins.write();
        let Some((_, count)) = logins.get_mut(name) else { return false };
        *count -= 1;
        if *count == 0 {
            logins.remove(name);
        }
        true
    }

    /// Logins through this node that no Logout has taken back.
    pub fn logins(&self, name: &str) -> u64 {
        self.logins.read().get(name).map_or(0, |(_, count)| *count)
    }

    /// Forgets what rests on records that are other ones now, and what has expired.
    pub fn keep_current(&self, current: &impl Fn(&str) -> Option<(TxId, Option<TxId>)>, now_ms: i64) {
        let epoch = |name: &str| current(name).map(epoch_of);
        self.verified
            .write()
            .retain(|_, token| epoch(&token.claim.user) == Some(token.claim.epoch) && !token.claim.is_over(now_ms));
        self.logins.write().retain(|name, (at, _)| epoch(name) == Some(*at));
    }
}
