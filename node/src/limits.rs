//! Bounds of sessions, tokens and logins that are no choices of an operator.

use std::time::Duration;

/// A change that takes rights away is answered when every live node has applied it, or after this long.
pub const LEASE: Duration = Duration::from_secs(5);
/// Looks at the newest records for keys that are not known are at least so far apart.
pub const KEY_LOOKS_APART: Duration = Duration::from_millis(200);
/// A call that has done what it was asked waits no longer for other nodes than until this long before its deadline.
pub const ANSWER_TAKES: Duration = Duration::from_millis(20);
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

/// Longest user name, bytes.
pub const USER_NAME_LEN_MAX: usize = 63;
/// Wrong passwords of one user from one address before a wait.
pub const FAILURES_FREE: u32 = 5;
/// Wrong passwords from one address, of whatever users, before a wait.
pub const FAILURES_FREE_OF_ADDRESS: u32 = 20;
/// Wrong passwords of one user from all addresses before those addresses have to wait.
pub const FAILURES_FREE_OF_USER: u32 = 100;
/// The first wait; each further failure doubles it.
pub const LOGIN_DELAY: Duration = Duration::from_secs(1);
/// The longest wait.
pub const LOGIN_DELAY_MAX: Duration = Duration::from_secs(60);
/// Failures are forgotten this long after the wait for the latest.
pub const FAILURES_FORGOTTEN: Duration = Duration::from_mins(10);
/// A user who was right is not held up by what others fail from the same address, for so long.
pub const PROVEN_FOR: Duration = Duration::from_hours(1);
/// Users, addresses, and pairs of them whose failures are counted, at most.
pub const FAILURES_KEPT_MAX: usize = 4096;
/// Passwords that wait to be hashed; one is hashed at a time, in memory of `--password-hash-memory`.
/// As many as there may be sessions by default, so that nobody is refused for being one of many who begin at the same time.
pub const HASHES_WAIT_MAX: usize = 1000;
