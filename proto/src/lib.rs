//! alhambra-proto.
