# k8s-ovs. `make help` lists the targets.

BIN      := bin
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/k8s-ovs/k8s-ovs/pkg/version.Version=$(VERSION)
GOBUILD  := CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)"
# The lab and the benchmark find the programs here.
export NETLAB_BIN := $(abspath $(BIN))

PROGRAMS := $(BIN)/k8s-ovs $(BIN)/k8s-ovs-agent $(BIN)/k8s-ovs-supervise $(BIN)/k8s-ovs-controller $(BIN)/netns $(BIN)/netlab
# The reference plugins that the benchmark measures against, and those that the end-to-end tests chain behind ours; pinned in go.mod.
REFERENCE := main/bridge ipam/host-local meta/bandwidth meta/tuning meta/sbr meta/firewall meta/portmap

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what Debian has and this machine lacks (root)
	@./test/install-deps

.PHONY: build
build: ## build every program into bin/
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/k8s-ovs ./cni
	$(GOBUILD) -o $(BIN)/k8s-ovs-agent ./node-agent
	$(GOBUILD) -o $(BIN)/k8s-ovs-supervise ./node-agent/supervise
	$(GOBUILD) -o $(BIN)/k8s-ovs-controller ./controller
	$(GOBUILD) -o $(BIN)/netns ./netns
	$(GOBUILD) -o $(BIN)/netlab ./test/netlab/cmd/netlab

.PHONY: plugins
plugins: ## build the CNI plugins of others that the node image carries
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(BIN)/loopback github.com/containernetworking/plugins/plugins/main/loopback
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(BIN)/portmap github.com/containernetworking/plugins/plugins/meta/portmap

.PHONY: image
image: deps build plugins ## container images as archives in bin/images/, without a container engine; manifests that name them in bin/manifests/
	go run ./manifests/image -bin $(BIN) -out $(BIN)/images -version $(VERSION)
	go run ./manifests/render -out $(BIN)/manifests -version $(VERSION)

.PHONY: manifests
manifests: ## render manifests/*.yaml from the bases and components
	go run ./manifests/render

.PHONY: demo
demo: deps build ## two nodes, three tenants: join, isolate, global (KEEP=1 leaves it up)
	@$(BIN)/netlab demo $(if $(KEEP),--keep)

.PHONY: test
test: deps build ## everything that a change must pass: unit, contract, lab end-to-end (root; SHORT=1: without the long ones of the last)
	go test -race -timeout 20m $$(go list ./... | grep -v /test/e2e)
	go test -run '^TestStepsModel$$' ./controller/internal/tenant # all of it, which race checks make too slow
	cd test/policyoracle && go test ./... # a module of its own
	NETLAB_BIN= go test -race -count=1 -timeout 90m $(if $(SHORT),-short) ./test/e2e/... # builds race-checked programs of its own

.PHONY: test-kernel
test-kernel: deps build reference ## demo and end-to-end tests on the kernel datapath, in an emulated machine (ALL=1: all; RUN=regexp)
	@./test/kernel/run $(if $(RUN),--run '$(RUN)',$(if $(ALL),--all))

.PHONY: test-kernel-short
test-kernel-short: deps build ## the demo and a handful of tests on the kernel datapath
	@./test/kernel/run --set test/kernel/ci

.PHONY: attacks
attacks: deps build ## what hostile pods, tenants, nodes and hosts try: writes test/e2e/ATTACKS.md (root; KERNEL=1: on the kernel datapath too)
	@rm -f $(BIN)/attacks $(BIN)/attacks-kernel; touch $(BIN)/attacks-kernel
	ATTACKS=$(abspath $(BIN))/attacks go test -count=1 -timeout 40m -run '^Test(Attack|Fairness)' ./test/e2e ./node-agent/internal/services
	$(if $(KERNEL),ATTACKS=$(abspath $(BIN))/attacks-kernel ./test/kernel/run --run '^Test(Attack|Fairness)')
	go run ./test/attacks/report -version "$(VERSION)" $(BIN)/attacks $(BIN)/attacks-kernel > test/e2e/ATTACKS.md

# An apostrophe would end the shell's quotes; to the regular expression any character will do in its place.
MACHINE = -machine.all -machine.pairs $(or $(PAIRS),30) -machine.seed $(or $(SEED),0) $(if $(ONLY),-machine.only '$(subst ',.,$(ONLY))')
.PHONY: machine
machine: deps build ## the whole machine suite: each change of a node alone, and PAIRS (default 30) pairs of them (root; SEED=n: those of that run; ONLY=regexp: those with such names; KERNEL=1: on the kernel datapath, in an emulated machine)
	$(if $(KERNEL),./test/kernel/run --run '^TestMachine$$' --args "$(MACHINE) -machine.lab 16",go test -count=1 -timeout 90m -run '^TestMachine$$' ./test/e2e $(MACHINE) -v)

CHAOS := $(BIN)/chaos -version "$(VERSION)"
.PHONY: chaos
chaos: deps build ## pods, tenants, policies, services and faults at random on three nodes, held against a model; writes its part of test/chaos/RESULTS.md (root; SEED=n: those of that run; TIME=30m: how long, default 1m)
	CGO_ENABLED=0 go build -o $(BIN)/chaos ./test/chaos
	@$(CHAOS) -seed $(or $(SEED),0) -time $(or $(TIME),1m) -results test/chaos/RESULTS.md

.PHONY: chaos-short
chaos-short: deps build ## one minute of it, the same each time; writes no results
	CGO_ENABLED=0 go build -o $(BIN)/chaos ./test/chaos
	@$(CHAOS) -seed 75 -time 1m

.PHONY: faults
faults: export CHAOS_ETCD_AWAY := 5m
faults: deps build ## the tests that test/chaos/faults names: what each fault costs; writes its part of test/chaos/RESULTS.md (root; KERNEL=1: also those of test/chaos/kernel on the kernel datapath)
	CGO_ENABLED=0 go build -o $(BIN)/chaos ./test/chaos
	@rm -f $(BIN)/faults
	CHAOS_ROWS=$(abspath $(BIN))/faults go test -count=1 -timeout 90m -v -run "^($$(paste -sd'|' test/chaos/faults))$$" ./test/e2e
	$(if $(KERNEL),CHAOS_ROWS=$(abspath $(BIN))/faults ./test/kernel/run --set test/chaos/kernel)
	@$(CHAOS) -rows $(BIN)/faults -results test/chaos/RESULTS.md

# Modules of their own that have code.
MODULES := test/policyoracle test/conformance/clusternetworkpolicy test/conformance/cyclonus
.PHONY: verify
verify: ## gofmt, vet, staticcheck, import rules, manifests decode, go.mod tidy
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt'ed:"; echo "$$out"; exit 1; }
	go vet ./...
	for m in $(MODULES); do (cd $$m && go vet ./...) || exit 1; done
	go tool staticcheck ./...
	go test ./test/deps
	go test -run Manifest ./cni/... ./controller ./node-agent ./manifests/...
	go mod verify
	go mod tidy -diff
	for m in $(MODULES); do (cd $$m && go mod tidy -diff) || exit 1; done

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 20s)
	@./test/fuzz $(or $(FUZZTIME),20s)

.PHONY: bench
bench: deps build reference ## measure against the reference plugins; writes results.json, RESULTS.md and limits.svg into test/bench (root)
	go run ./test/bench

.PHONY: reference
reference:
	@mkdir -p $(BIN)
	@for p in $(REFERENCE); do \
		echo "go build -o $(BIN)/$${p#*/}"; \
		CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(BIN)/$${p#*/} github.com/containernetworking/plugins/plugins/$$p || exit 1; \
	done

.PHONY: conformance
conformance: image reference ## real Kubernetes: upstream and own specs, pod starts; writes test/conformance/RESULTS.md (root)
	@./test/conformance/run

.PHONY: conformance-overlays
conformance-overlays: image reference ## each of test/conformance/overlays on real Kubernetes; writes its RESULTS.md (root; OVERLAYS="a b": only these)
	@for o in $(or $(OVERLAYS),$(notdir $(wildcard test/conformance/overlays/*))); do echo "=== $$o"; ./test/conformance/run --overlay $$o || exit 1; done

.PHONY: conformance-short
conformance-short: image reference ## a dozen upstream specs and most of our own on real Kubernetes (root)
	@./test/conformance/run --short

.PHONY: critest
critest: image ## the container runtimes' own suite (CRI tools), as far as it is about networks and sandboxes, with containerd and k8s-ovs (root)
	@./test/conformance/run --critest

.PHONY: cyclonus
cyclonus: image ## cyclonus' cases of NetworkPolicy on real Kubernetes; writes test/conformance/CYCLONUS.md; INCLUDE="a,b": only those with such tags (root)
	@./test/conformance/run --cyclonus $(or $(INCLUDE),all)

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
