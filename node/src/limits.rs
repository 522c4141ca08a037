//! Bounds of sessions, tokens and logins that are no choices of an operator.

use std::time::Duration;

/// A change that takes rights away is answered when every live node has applied it, or after this long.
pub const LEASE: Duration = Duration::from_secs(5);
/// The owner of a session that has not answered after this long counts as down for the call.
pub const OWNER_ANSWERS: Duration = Duration::from_secs(1);
/// How often nodes ask each other which sessions have ended; each end is also told at once.
pub const ENDS_ASKED: Duration = Duration::from_secs(5);
/// Ends of sessions in one message between nodes.
pub const ENDS_PER_MESSAGE: usize = 2048;
/// Tokens whose signatures need not be verified again; then all are forgotten.
pub const TOKENS_VERIFIED_MAX: usize = 8192;
/// How often a node tries to record its public key until it has.
pub const KEY_LOOK: Duration = Duration::from_millis(200);
