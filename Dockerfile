# The images of k8s-ovs:
#   docker build --target node -t k8s-ovs/node:dev .
#   docker build --target controller -t k8s-ovs/controller:dev .
# `make image` makes the same without a container engine.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN make build plugins VERSION=$VERSION

FROM debian:bookworm-slim AS node
# nft looks protocols up by name: netbase. modprobe: kmod.
RUN apt-get update \
 && apt-get install -y --no-install-recommends kmod netbase nftables openvswitch-switch \
 && rm -rf /var/lib/apt/lists/* /etc/openvswitch/* \
 && mkdir -p /run/openvswitch
COPY --from=build /src/bin/k8s-ovs-agent /usr/bin/
COPY --from=build /src/bin/k8s-ovs /src/bin/loopback /src/bin/portmap /usr/libexec/cni/
COPY --from=build /src/manifests/image/await-release /src/manifests/image/start-ovsdb-server /src/manifests/image/start-ovs-vswitchd /usr/libexec/k8s-ovs/

FROM scratch AS controller
COPY --from=build /src/bin/k8s-ovs-controller /src/bin/netns /usr/bin/
ENV PATH=/usr/bin
WORKDIR /
