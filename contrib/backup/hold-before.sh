#!/bin/sh
# Keep a mistake that was made in the upstream cluster away from a delayed backup.
#
#   hold-before.sh TID|SECONDS [OPTIONS OF neoctl]       such as -a 127.0.0.1:9998
#
# TID is the transaction that made the mistake, 0x and hexadecimal digits. SECONDS since
# 1970 are a moment before it: date -d '2026-11-29 09:15 UTC' +%s. The backup then gets
# everything before that, once it is due, and nothing more until neoctl backup release.
# It can be read, exported, or promoted. With WAIT=yes the script waits until all is there.
#
# Exit status: 0 held, 1 not, with the reason: the backup may have the mistake already.
set -eu

fail() { echo "error: $*" >&2; exit 1; }
command -v neoctl >/dev/null || fail "neoctl is not in the PATH"
[ $# -ge 1 ] || fail "usage: hold-before.sh TID|SECONDS [OPTIONS OF neoctl]"
at=$1
shift
case $at in
0x) fail "$at is no transaction id" ;;
0x*[!0-9a-f]*) fail "$at is no transaction id" ;;
0x*) at=tid:$((at - 1)) ;;
'' | *[!0-9]*) fail "$at is neither a transaction id, which begins with 0x, nor a number of seconds" ;;
esac

neoctl "$@" backup hold "$at" >/dev/null
# The first line of print backup is for programs; "" is this cluster.
of() { neoctl "$@" print backup | sed -n '1s/.*"":{[^}]*"'"$key"'":"\([0-9a-f]*\)".*/\1/p'; }
key=hold_tid
hold=$(of "$@")
[ -n "$hold" ] || fail "the backup is not held: see neoctl print backup"
key=backup_tid
kept=$(of "$@")
[ $((0x${kept:-0})) -le $((0x$hold)) ] || fail "too late: the backup has everything up to 0x$kept already"
if [ "${WAIT:-}" = yes ]; then
	key=readable_tid
	until readable=$(of "$@") && [ "$readable" = "$hold" ]; do sleep 0.2; done
fi
neoctl "$@" print backup | sed 1d
