#!/usr/bin/env bash
# Makes .venv with the official Python SDK, for the examples and the process tests.
# usage: scripts/python-env.sh [VENV]    (default: .venv at the top of the repository)
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$top/.venv}
wanted=$top/examples/requirements.txt
if [ -f "$venv/installed.txt" ] && cmp -s "$venv/installed.txt" "$wanted"; then
    exit 0
fi
python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$wanted"
"$venv/bin/python" -c 'import immudb' || { echo "error: the SDK cannot be imported from $venv" >&2; exit 1; }
cp "$wanted" "$venv/installed.txt"
