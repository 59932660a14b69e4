#!/usr/bin/env bash
# The main job, on this machine, with a real training script on real data: sweep, harvest, report.
set -euo pipefail
EMS=${EMS:-ems}
PATH="$(dirname "$EMS"):$PATH"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(mktemp -d)
trap 'rm -rf "$project"' EXIT
cp -r "$here/digits" "$project/digits"
cd "$project"
say() { printf '\n$ %s\n' "$*"; "$@"; }
say ems parrun digits/train.py --wait
say ems harvest
say ems report --by lr --metric acc,loss
