#!/bin/bash
# down.sh: ends the cluster in $RUN: the first process of each of its pid namespaces,
# with which the kernel ends the rest, then its cgroups and files.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
[ -d "$RUN" ] || exit 0

gone() { ! pid_of "$1" pid1 && ! pid_of "$1" unshare; }
for node in fabric $NODES; do
	for what in pid1 unshare; do # unshare: of a node that was still starting
		pid=$(pid_of "$node" $what) && kill -9 "$pid"
	done
done
failed=0
for node in fabric $NODES; do
	[ -d "$RUN/$node" ] || continue
	wait_for 10 "$node to end" gone "$node" || failed=1
	[ ! -e "$RUN/$node/cgroups" ] || wait_for 10 "the cgroups of $node to empty" cg_remove "$node" || failed=1
done
rm -rf --one-file-system "$RUN" || failed=1
exit $failed
