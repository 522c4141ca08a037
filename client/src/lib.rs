//! alhambra-client.
