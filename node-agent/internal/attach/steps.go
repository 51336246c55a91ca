package attach

import (
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
)

// Step is a part of an ADD or a DEL, as it stands in the metrics.
type Step string

// The steps of an ADD, in their order. Those that run beside each other (the sandbox and
// the port's number) are both told.
const (
	// AddLease takes an address and writes that down.
	AddLease Step = "ADD: address"
	// AddArmed waits for the rules that must be in the switch before the pod's flows.
	AddArmed Step = "ADD: what policies deny"
	// AddFlows puts the pod's flows and meter into the switch.
	AddFlows Step = "ADD: flows"
	// AddRow puts the port into the database.
	AddRow Step = "ADD: port's row"
	// AddPair makes the devices.
	AddPair Step = "ADD: devices"
	// AddSandbox sets up the pod's end, and its limits.
	AddSandbox Step = "ADD: sandbox"
	// AddNumber waits until the switch has taken the port in.
	AddNumber Step = "ADD: port's number"
	// AddNews brings to the pod what changed meanwhile.
	AddNews Step = "ADD: what changed meanwhile"
	// AddRules waits for the rules of policies that select the pod.
	AddRules Step = "ADD: policies' rules"
)

// The steps of a DEL.
const (
	// DelFlows takes the pod's flows and meter out of the switch.
	DelFlows Step = "DEL: flows"
	// DelMark writes down that the rest is to be removed.
	DelMark Step = "DEL: written down"
	// DelRest removes the rest at once, where nothing can be written down.
	DelRest Step = "DEL: port and devices"
)

// The steps after a DEL, each for all pods that went at about the same time.
const (
	// LeftRows takes ports out of the database.
	LeftRows Step = "after DEL: ports' rows"
	// LeftConnections ends what the node's NAT remembers.
	LeftConnections Step = "after DEL: connections"
	// LeftDevices removes the devices.
	LeftDevices Step = "after DEL: devices"
	// LeftClosed waits until the switch has closed the ports.
	LeftClosed Step = "after DEL: ports closed"
	// LeftLeases gives the addresses back.
	LeftLeases Step = "after DEL: addresses"
)

// Observer is told how long each step took; for metrics.
type Observer interface {
	AttachStep(step Step, took time.Duration)
}

// observe calls f and tells how long it took.
func (a *Attacher) observe(step Step, f func() error) error {
	began := time.Now()
	err := f()
	if a.observer != nil {
		a.observer.AttachStep(step, time.Since(began))
	}
	faultpoint.Here("attach", string(step))
	return err
}
