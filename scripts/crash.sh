#!/usr/bin/env bash
# Kills one node, and all nodes at once, under load, ROUNDS times each, and compares what was acknowledged with what
# every node shows afterwards.
# usage: scripts/crash.sh [ROUNDS]    (default 20; `cargo test` alone does 2)
set -eu
cd "$(dirname "$0")/.."
export ALHAMBRA_CRASH_ROUNDS=${1:-20}
exec cargo test --release -p alhambra-cli --test it crash:: -- --nocapture --test-threads 1
