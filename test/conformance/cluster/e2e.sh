#!/bin/bash
# e2e.sh OUT FOCUS [SKIP]: runs the upstream specs whose full name matches FOCUS, and not
# SKIP, on the cluster in $RUN, four at a time. Output: OUT/junit_01.xml and e2e.log
set -euo pipefail
. "$(dirname "$0")/lib.sh"
OUT=$1
mkdir -p "$OUT"
cd "$OUT"
# SC2086: the nodes are words
# shellcheck disable=SC2086
in_node fabric ginkgo --procs=4 --no-color --timeout=60m --focus="$2" ${3:+--skip="$3"} "$TOOLS/bin/e2e.test" -- \
	--provider=skeleton --kubeconfig="$RUN/pki/admin.kubeconfig" --kubectl-path="$TOOLS/bin/kubectl" --report-dir="$OUT" \
	--num-nodes="$(set -- $NODES; echo $#)" --dump-logs-on-failure=false --disable-log-dump >e2e.log 2>&1
