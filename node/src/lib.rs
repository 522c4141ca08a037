//! alhambra-node.
