package pki

import "strings"

// The users of etcd. docs/identities.md says what each may do.
const (
	// ControllerUser is a controller that does not run etcd in its own process.
	ControllerUser = "k8s-ovs-controller"
	// RootUser may do everything; etcd asks for one of this name.
	RootUser = "root"
	// SharedUser is what all programs were before each had an identity of its own.
	SharedUser = "k8s-ovs"

	nodePrefix     = "k8s-ovs-node:"
	operatorPrefix = "k8s-ovs-operator:"
)

// NodeUser is the agent of node host; id tells nodes apart that had that name one
// after the other: see ID of topology.Node.
func NodeUser(host, id string) string { return nodePrefix + host + ":" + id }

// ParseNodeUser takes the name of a node's user apart.
func ParseNodeUser(user string) (host, id string, ok bool) {
	rest, ok := strings.CutPrefix(user, nodePrefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, ":")
}

// IsNodeUser reports whether user is the agent of some node.
func IsNodeUser(user string) bool { return strings.HasPrefix(user, nodePrefix) }

// OperatorUser is a person.
func OperatorUser(name string) string { return operatorPrefix + name }
