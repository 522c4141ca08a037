//! alhambra-chaos-tests.
