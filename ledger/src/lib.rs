//! alhambra-ledger.
