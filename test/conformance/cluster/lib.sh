# Shared by the scripts of a cluster. RUN is the folder of everything that
# belongs to one running cluster, TOOLS where build.sh put its programs and images.
CLUSTER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${RUN:?the folder of the running cluster}" "${TOOLS:?the folder that build.sh filled}"
NODES="node1 node2"
UNDERLAY=192.168.60       # a /24; .1 is the fabric, .11 node1, .12 node2
POD_CIDR=10.128.0.0/14    # as manifests/ has it
SVC_CIDR=10.96.0.0/16     # inside the service network that manifests/ has
API=$UNDERLAY.11          # the control plane is on node1: the API server must reach pods

ip_of() { case $1 in fabric) echo "$UNDERLAY.1" ;; *) echo "$UNDERLAY.$((10 + ${1#node}))" ;; esac; }

# --- processes

started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# note_pid PID FILE: what pid_of reads
note_pid() { echo "$1 $(started "$1")" >"$2"; }

# pid_of NODE [pid1|unshare]: that process, if that very process still runs
pid_of() {
	local pid start
	read -r pid start 2>/dev/null <"$RUN/$1/${2:-pid1}" || return 1
	[ -n "$start" ] && [ "$(started "$pid")" = "$start" ] && echo "$pid"
}

# --- cgroups (v1): one per node in each hierarchy, below the caller's own

# cg_own: "controller folder" of our own cgroup in each hierarchy
cg_own() {
	local id name path
	while IFS=: read -r id name path; do
		name=${name#name=}
		[ "$id" = 0 ] || [ ! -d "/sys/fs/cgroup/$name" ] || echo "$name /sys/fs/cgroup/$name${path%/}"
	done </proc/self/cgroup
}

cg_make() {
	local controller base dir file
	while read -r controller base; do
		for dir in "$base/$CGROUP" "$base/$CGROUP/$1"; do
			mkdir -p "$dir"
			[ "$controller" = cpuset ] || continue
			# no process may enter one without processors and memory
			for file in cpuset.cpus cpuset.mems; do cat "$dir/../$file" >"$dir/$file"; done
		done
		echo "$controller $base/$CGROUP/$1"
	done < <(cg_own) >"$RUN/$1/cgroups"
}
CGROUP=k8s-ovs-conformance-${RUN##*/}

cg_enter() {
	local dir
	while read -r _ dir; do echo "$BASHPID" >"$dir/cgroup.procs"; done <"$RUN/$1/cgroups"
}

# cg_remove NODE: fails while one is in use
cg_remove() {
	local dir left=0
	while read -r _ dir; do
		find "$dir" -depth -type d -exec rmdir {} \; 2>/dev/null
		rmdir "${dir%/*}" 2>/dev/null
		[ ! -d "$dir" ] || left=1
	done <"$RUN/$1/cgroups"
	return $left
}

# --- nodes

# in_node NODE CMD...: runs CMD in the node's namespaces and cgroup. What it leaves in
# its temporary directory goes with the node.
in_node() {
	local node=$1 pid
	shift
	pid=$(pid_of "$node") || { echo "$node is not up" >&2; return 1; }
	(cg_enter "$node" && exec nsenter -t "$pid" -m -u -i -n -p -C -r -w -- \
		env TMPDIR=/run/tmp PATH="$TOOLS/bin:$PATH" KUBECONFIG="$RUN/pki/admin.kubeconfig" "$@")
}

# spawn NODE NAME CMD...: a daemon in the node; its pid is in the node's
# /run/NAME.pid, its output in RUN/NODE/log/NAME.log
spawn() {
	local node=$1 name=$2
	shift 2
	in_node "$node" setsid bash -c 'echo $$ >"/run/$0.pid"; exec "$@"' "$name" "$@" \
		>>"$RUN/$node/log/$name.log" 2>&1 </dev/null 9>&- &
}

kc() { in_node fabric kubectl "$@"; }

# --- waiting and telling

# wait_for SECONDS WHAT CMD...
wait_for() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || { echo "gave up waiting for $what" >&2; return 1; }
		sleep 0.2
	done
}

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
