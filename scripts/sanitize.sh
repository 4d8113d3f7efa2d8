#!/usr/bin/env bash
# Runs the C kernels under the sanitizers of addresses, of undefined behaviour and of threads.
# The last line is the verdict; any report, and a sanitizer that does not work, is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ASAN_OPTIONS=detect_leaks=1:exitcode=66 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:exitcode=66

fail() {
    echo "sanitize: FAILED: $1"
    exit 1
}

# DLP_PLAIN: the resolvers of target clones run before a sanitizer has started. The driver
# includes stream.c.
build() {
    local sources=()
    for source in kernels/native/*.c kernels/native/*/*.c; do
        [ "$source" = kernels/native/stream.c ] || sources+=("$source")
    done
    "${CC:-gcc}" -std=gnu11 -g -O1 -fno-omit-frame-pointer -ffp-contract=off -fno-math-errno \
        -pthread -Wall -Wextra -Werror -DDLP_PLAIN -Ikernels/native "-fsanitize=$1" \
        -fno-sanitize-recover=all -flto -Wlto-type-mismatch -Wl,--wrap=pthread_mutex_clocklock -o "$work/$2" tests/kernels/native_check.c "${sources[@]}" -lm
}

check() { # sanitizers, name, mistake they must catch
    build "$1" "$2" || fail "$1: does not build"
    if "$work/$2" "$3" >"$work/planted" 2>&1; then fail "$1: missed the $3 planted for it"; fi
    grep -q Sanitizer "$work/planted" || { cat "$work/planted"; fail "$1: did not start"; }
    timeout 120 "$work/$2" || fail "$1: see the report above"
    echo "sanitize: $1: nothing to report"
}

check address,undefined memory overflow
check thread threads race
echo "sanitize: PASSED"
