// Command bench measures k8s-ovs beside the reference plugins of
// containernetworking/plugins and beside two flows of the same ports in place of the pipeline, on a lab of
// real programs (package netlab), and writes test/bench/results.json,
// RESULTS.md and limits.svg. Nothing writes these files but this program. Where services are
// measured it is the API server that the agents watch (package kubetest).
//
// Whatever has a reference is measured in turn with it, first the one, then the
// other, in one run: what else the machine does hits both, and the ratio stays
// meaningful where the absolute numbers are not.
//
//	go run ./test/bench                 # everything; needs root and bin/ (make bench)
//	go run ./test/bench -only '^cni'    # some of it; writes no files
//	go run ./test/bench -short -out DIR # few repetitions, for CI
//	go run ./test/bench -compare BEFORE/results.json AFTER/results.json
//
// The last one measures nothing. It says of each row whether it is worse than before by more than 3 %
// beyond noise, and ends with 1 where one is. What noise is, each run says itself: results.json has with
// each row how far its number may be off, going by how its single measurements differ.
//
// It removes all it has made, also when it is interrupted. After a SIGKILL,
// `netlab down --name bench-PID` does, and the same with bench-PID-many and bench-PID-policies,
// the labs that many new namespaces and network policies have for themselves.
package main
