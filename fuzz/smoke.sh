#!/bin/sh
# Runs every fuzz target for a while (default 20 s each) and wants it to find nothing, then the canary, and wants it to fail.
#
#     fuzz/smoke.sh [seconds] [target …]
#
# Needs cargo-fuzz 0.13.2 (cargo install cargo-fuzz --version 0.13.2 --locked) and a C++ compiler. Stable Rust will do: the sanitizer flags are
# opened with RUSTC_BOOTSTRAP, for this build only.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-20}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- v80_handshake v80_frames v80_session v81_login v81_records v81_frames v81_streams socks5
export RUSTC_BOOTSTRAP=1

run() {
    cargo fuzz run "$1" --fuzz-dir fuzz -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

for target in "$@"; do
    if ! run "$target" >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "fuzz: $target found a fault (above); replay with: RUSTC_BOOTSTRAP=1 cargo fuzz run $target fuzz/artifacts/$target/…"
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "fuzz: $target found nothing in $seconds s, ${runs:-?} runs"
done

# An old find of the canary would be replayed without any search.
rm -rf fuzz/corpus/canary fuzz/artifacts/canary
if run canary >"$log" 2>&1; then
    echo "fuzz: the canary's planted fault was not found: a real one would not be either"
    exit 1
fi
if ! grep -q "the planted fault was found" "$log"; then
    tail -n 60 "$log"
    echo "fuzz: the canary failed for another reason (above)"
    exit 1
fi
echo "fuzz: the canary's planted fault was found, as it must be"
