//! alhambra-raft.
