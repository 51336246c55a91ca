# The images of k8s-ovs:
#   docker build --target node -t k8s-ovs/node:dev .
#   docker build --target controller -t k8s-ovs/controller:dev .
# `make image` makes the same without a container engine.
#
# A release says which bases it is made of, by digest, since what a tag names changes:
#   docker build --target node -t k8s-ovs/node:v1.2.3 --build-arg VERSION=v1.2.3 \
#     --build-arg GOLANG=golang:1.26-bookworm@sha256:... --build-arg DEBIAN=debian:bookworm-slim@sha256:... .
ARG GOLANG=golang:1.26-bookworm
ARG DEBIAN=debian:bookworm-slim

FROM $GOLANG AS build
ARG GOLANG
ARG DEBIAN
ARG VERSION=dev
RUN for base in "$GOLANG" "$DEBIAN"; do case "$VERSION $base" in "dev "*|*@sha256:*) ;; \
    *) echo "version $VERSION of base $base, which may change under its name: give --build-arg GOLANG=...@sha256:... and DEBIAN=...@sha256:..." >&2; exit 1 ;; esac; done
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build plugins VERSION=$VERSION

FROM $DEBIAN AS node
# nft looks protocols up by name: netbase. modprobe: kmod.
RUN apt-get update \
 && apt-get install -y --no-install-recommends kmod netbase nftables openvswitch-switch \
 && rm -rf /var/lib/apt/lists/* /etc/openvswitch/* \
 && mkdir -p /run/openvswitch
COPY --from=build /src/bin/k8s-ovs-agent /src/bin/k8s-ovs-supervise /usr/bin/
COPY --from=build /src/bin/k8s-ovs /src/bin/loopback /src/bin/portmap /usr/libexec/cni/
COPY --from=build /src/manifests/image/await-release /src/manifests/image/start-ovsdb-server /src/manifests/image/start-ovs-vswitchd /usr/libexec/k8s-ovs/

FROM scratch AS controller
COPY --from=build /src/bin/k8s-ovs-controller /src/bin/netns /usr/bin/
ENV PATH=/usr/bin
WORKDIR /
USER 65532:65532
