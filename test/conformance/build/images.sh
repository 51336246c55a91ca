#!/bin/bash
# images.sh DIR: makes the image archives that the cluster and the e2e suite ask
# for out of DIR/bin and of programs that Debian packages installed: no registry,
# no container engine. Output: DIR/images/*.tar
set -euo pipefail
cd "$(dirname "$0")"
BIN=$1/bin OUT=$1/images
E2E=registry.k8s.io/e2e-test-images
WORK=$(mktemp -d -p "$1")
trap 'rm -rf "$WORK"' EXIT

# add ROOT PROGRAM...: copies programs and the libraries they load
add() {
	local root=$1 f l
	shift
	for f; do
		f=$(readlink -f "$(command -v "$f")")
		install -D "$f" "$root$f"
		for l in $(ldd "$f" 2>/dev/null | grep -o '/[^ ]*'); do
			[ -e "$root$l" ] || install -D "$(readlink -f "$l")" "$root$l"
		done
	done
}

# base ROOT: busybox's programs, passwd, group and the usual folders
base() {
	local root=$1 a
	mkdir -p "$root"/{bin,usr/{bin,sbin,local/bin},sbin,etc,tmp,root,proc,sys,dev,var/run}
	chmod 1777 "$root/tmp"
	install "$(command -v busybox)" "$root/bin/busybox"
	for a in $(busybox --list); do
		[ -e "$root/bin/$a" ] || ln -s busybox "$root/bin/$a"
	done
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >"$root/etc/group"
	printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
}

# archive NAME ROOT [ENTRYPOINT CMD TAG,TAG...]...: one layer, one or more images
archive() {
	local out=$OUT/$1.tar root=$2 d sum i=0
	shift 2
	d=$(mktemp -d -p "$WORK")
	tar -C "$root" --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -cf "$d/layer.tar" .
	sum=$(sha256sum "$d/layer.tar" | cut -d' ' -f1)
	while [ $# -gt 0 ]; do
		i=$((i + 1))
		jq -nc --arg sum "sha256:$sum" --argjson entrypoint "$1" --argjson cmd "$2" '{architecture: "amd64", os: "linux",
			config: {Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], Entrypoint: $entrypoint, Cmd: $cmd, WorkingDir: "/"},
			rootfs: {type: "layers", diff_ids: [$sum]}}' >"$d/config$i.json"
		jq -nc --arg config "config$i.json" --arg tags "$3" '{Config: $config, RepoTags: ($tags | split(",")), Layers: ["layer.tar"]}' >>"$d/images"
		shift 3
	done
	jq -sc . "$d/images" >"$d/manifest.json"
	tar -C "$d" -cf "$out" manifest.json $(cd "$d" && echo config*.json) layer.tar
	rm -rf "$d"
}

root=$WORK/pause
install -D "$BIN/pause" "$root/pause"
archive pause "$root" '["/pause"]' null registry.k8s.io/pause:3.10.1,registry.k8s.io/pause:3.10

root=$WORK/coredns
install -D "$BIN/coredns" "$root/coredns"
archive coredns "$root" '["/coredns"]' null registry.k8s.io/coredns/coredns:v1.12.4

root=$WORK/busybox
base "$root"
archive busybox "$root" null '["sh"]' $E2E/busybox:1.37.0-1

# agnhost with the tools that its own image has. Its sh and wget must not be
# Debian's busybox: that shell runs its own applets (an nc without -u, -v and -t)
# whatever PATH says, and its wget has no -T.
root=$WORK/agnhost
mkdir -p "$root"/{uploads,bin}
add "$root" dig getent curl wget ss ip bash conntrack nc.openbsd
base "$root"
ln -sf /usr/bin/nc.openbsd "$root/usr/bin/nc"
rm -f "$root"/bin/{nc,ip,bash,sh,wget}
ln -s /usr/bin/bash "$root/bin/bash"
ln -s /usr/bin/bash "$root/bin/sh"
install "$BIN/agnhost" "$BIN/coredns" "$root/"
ln -s agnhost "$root/agnhost-2"
kubernetes=$(go list -C kubernetes -m -f '{{.Dir}}' k8s.io/kubernetes)
install -m 644 "$kubernetes"/test/images/agnhost/porter/localhost.{crt,key} "$root/"
# nginx and httpd: the specs only want something that listens on port 80
archive agnhost "$root" '["/agnhost"]' '["pause"]' $E2E/agnhost:2.56,$E2E/jessie-dnsutils:1.7 \
	'["/agnhost","test-webserver"]' null $E2E/nginx:1.14-4,$E2E/nginx:1.15-4,$E2E/httpd:2.4.38-4,$E2E/httpd:2.4.39-4 \
	null '["sleep","600"]' registry.k8s.io/build-image/distroless-iptables:v0.7.14

root=$WORK/regression
install -D "$BIN/regression-issue-74839" "$root/regression-issue-74839"
archive regression "$root" '["/regression-issue-74839"]' null $E2E/regression-issue-74839:1.2
