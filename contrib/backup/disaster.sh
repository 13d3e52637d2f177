#!/bin/sh
# Everything is lost: bring up a cluster from a backup repository on this machine. It takes
# commits at once, and copies what is in the repository in the background.
#
#   disaster.sh -r URL -k VERIFY_KEY -i IDENTITY -c NAME -d DIRECTORY
#               [-m HOST:PORT] [-a HOST:PORT] [-z HOST:PORT] [-p PARTITIONS] [-t T] [-y] [-- OPTIONS]
#
#   -r URL         of the repository; credentials of S3 are in NEOBACKUP_S3_ACCESS_KEY and
#                  NEOBACKUP_S3_SECRET_KEY
#   -k KEY         that verifies, as neobackup init has printed it; several are separated by spaces
#   -i FILE        the identity of an operator, chmod 600; - if the repository is not encrypted
#   -c NAME        of the cluster, as clients know it
#   -d DIRECTORY   new: the database, configuration, logs and pids of the nodes come to be there
#   -m, -a, -z     addresses of master, admin and ZEO server (default: 127.0.0.1 with the ports
#                  10000, 9999 and 8100; -z none: no ZEO server). Those of the lost cluster let
#                  clients find the new one.
#   -p N           partitions of the new cluster (default: 12); they can never be changed
#   -t T           the state after this transaction, 16 hexadecimal digits, or at this time, such as
#                  2026-11-20T10:00:00Z (default: the newest)
#   -y             do not ask
#   OPTIONS        for all nodes and neoctl, such as --ca, --cert and --key
#
# Before that, make sure that no node of the lost cluster can come back under the same name.
#
# Exit status: 0 clients may work; 1 not, with the reason; that of neobackup if the
# repository cannot be used.
set -eu

fail() { echo "error: $*" >&2; exit 1; }
usage() { fail "usage: disaster.sh -r URL -k VERIFY_KEY -i IDENTITY -c NAME -d DIRECTORY [-m HOST:PORT] [-a HOST:PORT] [-z HOST:PORT] [-p PARTITIONS] [-t T] [-y] [-- OPTIONS OF NODES]"; }
url= keys= identity= name= dir= at= ask=yes partitions=12
master=127.0.0.1:10000 admin=127.0.0.1:9999 zeo=127.0.0.1:8100
while getopts r:k:i:c:d:m:a:z:p:t:y option; do
	case $option in
	r) url=$OPTARG ;;
	k) keys=$OPTARG ;;
	i) identity=$OPTARG ;;
	c) name=$OPTARG ;;
	d) dir=$OPTARG ;;
	m) master=$OPTARG ;;
	a) admin=$OPTARG ;;
	z) zeo=$OPTARG ;;
	p) partitions=$OPTARG ;;
	t) at=$OPTARG ;;
	y) ask= ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ -n "$url" ] && [ -n "$keys" ] && [ -n "$identity" ] && [ -n "$name" ] && [ -n "$dir" ] || usage
for program in neobackup neomaster neoadmin neostorage neozeo neoctl; do
	command -v $program >/dev/null || fail "$program is not in the PATH"
done
[ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || fail "$dir is not empty: give another directory"

# What is there, and can it be opened?
mkdir -p "$dir"
chmod 700 "$dir"
dir=$(cd "$dir" && pwd)
check() {
	set -- "$@" -r "$url" --set "state_dir=$dir/state"
	for k in $keys; do set -- "$@" --verify-key "$k"; done
	neobackup "$@"
}
mkdir "$dir/state"
check info
if [ "$identity" = - ]; then
	check restore --plan --at "${at:-latest}" "$dir/lost.fs"
else
	identity=$(cd "$(dirname "$identity")" && pwd)/$(basename "$identity")
	check restore --plan --at "${at:-latest}" --identity "$identity" "$dir/lost.fs"
fi
if [ -n "$ask" ]; then
	printf 'Start cluster %s from it, in %s? What is not in it is lost. [yes/no] ' "$name" "$dir"
	read -r answer
	[ "$answer" = yes ] || fail "nothing was started"
fi

{
	cat <<END
[neo]
adapter: SQLite
database: $dir/storage1.sqlite

[root]
storage:
  <neobackup>
    url $url
    verify-keys $keys
    state-dir $dir/state
END
	[ "$identity" = - ] || echo "    identity-file $identity"
	[ -z "$at" ] || echo "    at $at"
	echo "  </neobackup>"
} >"$dir/importer.conf"

# run NAME PROGRAM ARGUMENTS... starts a node that outlives the script.
run() {
	node=$1
	shift
	nohup "$@" >"$dir/$node.out" 2>&1 </dev/null &
	echo "$!" >"$dir/$node.pid"
}
alive() {
	for node in master admin storage1; do
		kill -0 "$(cat "$dir/$node.pid")" 2>/dev/null || fail "$node has ended: $(tail -n 3 "$dir/$node.out")"
	done
}
run master neomaster -c "$name" -m "$master" -b "$master" -p "$partitions" -A 1 "$@"
run admin neoadmin -c "$name" -m "$master" -b "$admin" "$@"
run storage1 neostorage -c "$name" -m "$master" -b "${master%:*}" -a Importer -d "$dir/importer.conf" "$@"
[ "$zeo" = none ] || run zeo neozeo -c "$name" -m "$master" -b "$zeo" "$@"
n=0
until state=$(neoctl -a "$admin" "$@" print cluster 2>/dev/null) && [ "$state" = RUNNING ]; do
	alive
	n=$((n + 1))
	[ $n -lt 1200 ] || fail "the cluster is ${state:-silent} after two minutes: look at $dir/*.out"
	sleep 0.1
done
neoctl -a "$admin" "$@" print ids
cat <<END
Clients may work: cluster $name, master $master$([ "$zeo" = none ] || echo ", ZEO $zeo").

It has one storage, which copies what is in the repository:
  neoctl -a $admin print import --follow
Once that is complete, add storages and replicas, and give storage1 the adapter SQLite and the
database $dir/storage1.sqlite: docs/import.md, step 6. Then back it up again: neobackup rebase or
snapshot, with the new cluster as the source.
END
