package netlab

import (
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// Endpoint is the pod as the probe takes it.
func (p Pod) Endpoint() probe.Endpoint {
	return probe.Endpoint{Namespace: p.Namespace, Name: p.Name, Node: p.Node, IP: p.IP, Sandbox: p.Sandbox()}
}

// Endpoints of pods, for the probe.
func Endpoints(pods []Pod) []probe.Endpoint {
	var e []probe.Endpoint
	for _, p := range pods {
		e = append(e, p.Endpoint())
	}
	return e
}

// Endpoints of all pods of the lab, for the probe, in the order of their names.
func (l *Lab) Endpoints() ([]probe.Endpoint, error) {
	pods, err := l.Pods()
	slices.SortFunc(pods, func(a, b Pod) int { return strings.Compare(a.String(), b.String()) })
	return Endpoints(pods), err
}
