//! alhambra-storage.
