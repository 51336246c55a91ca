package pipeline

import (
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// PodPolicy is what policies say of a pod. Of one with the zero value they say nothing:
// nothing of it is tracked or judged.
type PodPolicy struct {
	// Ingress and Egress say that what comes to it, and what it sends, needs a rule.
	Ingress, Egress bool
	// Midstream lets TCP segments pass unjudged that belong to no known connection and go
	// from a low port to a high one: for 120 s after the pod became selected, or the switch
	// lost its connections. It counts for a selected pod only.
	Midstream bool
}

// Selected reports whether the pod's packets are judged.
func (p PodPolicy) Selected() bool { return p.Ingress || p.Egress }

// RuleOwner is an owner in the area of [Policies], with its flow: a rule, or a clause that
// rules have in common.
type RuleOwner struct {
	Kind Kind
	// Name is its own among those of its kind.
	Name string
	// Flows is none where the owner is gone.
	Flows []of.Flow
}
