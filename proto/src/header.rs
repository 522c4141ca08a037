//! Names of the headers (gRPC metadata) that calls and answers carry: those of the original, and ours.

/// Of a call: the id of a session.
pub const SESSION: &str = "sessionid";
/// Of a call: a token.
pub const TOKEN: &str = "authorization";
/// Of an answer: the UUID of the cluster.
pub const UUID: &str = "immudb-uuid";
/// Of a call: how new the data of reads has to be. Of an answer: how new it was.
pub const LEVEL: &str = "alhambra-read-level";
/// Of the answers of Health and ServerInfo: our own version.
pub const VERSION: &str = "alhambra-version";
