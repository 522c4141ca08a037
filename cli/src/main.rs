//! The `alhambra` command.

fn main() {}
