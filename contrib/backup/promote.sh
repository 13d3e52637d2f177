#!/bin/sh
# Promote a backup cluster whose upstream cluster is lost: it becomes an ordinary
# cluster, with all that it has.
#
#   promote.sh [OPTIONS OF neoctl]       such as -a 127.0.0.1:9998 --ca ca.pem …
#
# It prints up to which transaction the data are kept, and what is lost. Before that,
# make sure that nothing can write to the upstream cluster any more: stop its masters,
# or cut them off. The script waits while the backup still follows it.
#
# Exit status: 0 promoted, 1 not, with the reason.
set -eu

fail() { echo "error: $*" >&2; exit 1; }
command -v neoctl >/dev/null || fail "neoctl is not in the PATH"
id() { printf '%s\n' "$1" | sed -n "s/^$2 = //p"; }

n=0
while state=$(neoctl "$@" print cluster) && [ "$state" = BACKINGUP ]; do
	[ $n -ne 0 ] || echo "The backup still follows its upstream cluster. Waiting until it is lost."
	n=$((n + 1))
	[ $n -lt 300 ] || fail "the upstream cluster is still there: stop its masters, or move to the backup with switch.sh"
	sleep 0.1
done
[ "$state" = STARTING_BACKUP ] || fail "this is no backup that lost its upstream cluster: it is ${state:-silent}"

ids=$(neoctl "$@" print ids)
kept=$(id "$ids" backup_tid)
last=$(id "$ids" last_tid)
[ -n "$kept" ] || fail "the cluster does not tell how far it is: $ids"
echo "kept: everything up to $kept"
if [ "${kept%% *}" = "${last%% *}" ]; then
	echo "lost: nothing that the backup has heard of"
else
	echo "lost: what follows, up to $last"
fi

until answer=$(neoctl "$@" set cluster STOPPING_BACKUP 2>&1); do
	case $answer in
	*"try again"*) sleep 0.1 ;;
	*) fail "$answer" ;;
	esac
done
n=0
until state=$(neoctl "$@" print cluster) && [ "$state" = RUNNING ]; do
	n=$((n + 1))
	[ $n -lt 600 ] || fail "the cluster is ${state:-silent} after a minute: look at neoctl print node, and at the logs of its nodes"
	sleep 0.1
done
neoctl "$@" print ids
echo "The cluster is RUNNING."
