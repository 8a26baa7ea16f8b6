# shellcheck shell=bash
#
# What all scripts share: paths, messages, a lock. To be sourced, with bash.
#
# SPDX-License-Identifier: GPL-2.0-or-later

shopt -s inherit_errexit

# Without a trap, bash goes on after SIGINT if the program that it waits for
# ends by itself instead of by the signal.
trap 'exit 130' INT

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Everything that is downloaded or built goes here, and nowhere else.
build=${BUILD:-build}
case $build in /*) ;; *) build=$top/$build ;; esac

# The QEMU source tree that the user chose, and the folder it is built in.
suite=${QEMU_SUITE:-trixie}
work=$build/qemu-$suite
pristine=$work/pristine
# shellcheck disable=SC2034 # for the scripts that source this
if [ -n "${QEMU_SRC:-}" ]; then
    work=$build/qemu-own
    pristine=$(realpath -e "$QEMU_SRC")
fi

say()
{
    echo "==> $*" >&2
}

die()
{
    echo "${0##*/}: $*" >&2
    exit 1
}

# lock DIR: one script at a time works in this folder. Waits for the others,
# and says so; the lock is released when the (sub)shell ends.
lock()
{
    exec 9>> "$1/lock"
    if ! flock --nonblock 9; then
        say "waiting for $(cat "$1/lock"), which works in $1"
        flock 9
    fi
    echo "${0##*/} (process $$)" > "$1/lock"
}
