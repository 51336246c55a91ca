package policies

import (
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// The names of policies in what a node tells of its pods are for people, and whoever makes policies
// decides how many there are, and how long. Without bounds one namespace could make the record
// larger than etcd takes, and then the leader would know none of the node's pods.
const (
	// maxNames is how many names each list of a pod has.
	maxNames = 10
	// maxNamed is how long a record with names is, bytes; a longer one only counts. A pod without
	// names has at most some 600, so 1,700 of them are in the 1 MiB that a request of a node may
	// have.
	maxNamed = 512 << 10
	// podBytes is more than a pod has in JSON besides what its strings have, nameBytes what a name has.
	podBytes, nameBytes = 250, 3
)

// list is what the node tells the leader of its pods, in order of their addresses.
func (p *picture) list() []topology.NodePod {
	out := []topology.NodePod{}
	for _, one := range p.pods {
		out = append(out, one.tell(maxNames))
	}
	if bytesOf(out) > maxNamed {
		out = out[:0]
		for _, one := range p.pods {
			out = append(out, one.tell(0))
		}
	}
	slices.SortFunc(out, func(a, b topology.NodePod) int { return a.Address.Compare(b.Address) })
	return out
}

// tell is what the node tells of a pod, with so many names at most in each list.
func (p *pod) tell(names int) topology.NodePod {
	out := topology.NodePod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Address: p.Address}
	out.Ingress, out.Unnamed.Ingress = atMost(p.selected.ingress, names)
	out.Egress, out.Unnamed.Egress = atMost(p.selected.egress, names)
	out.Cluster, out.Unnamed.Cluster = atMost(p.selected.cluster, names)
	return out
}

// atMost are the first names of a list, and how many others it has.
func atMost(list []string, names int) (first []string, others int) {
	switch {
	case len(list) <= names:
		return list, 0
	case names == 0:
		return nil, len(list)
	}
	return list[:names:names], len(list) - names
}

// bytesOf is at least the length of the pods in a record.
func bytesOf(pods []topology.NodePod) int {
	size := 0
	for _, p := range pods {
		size += podBytes + len(p.Namespace) + len(p.Name) + len(p.UID)
		for _, list := range [][]string{p.Ingress, p.Egress, p.Cluster} {
			for _, name := range list {
				size += nameBytes + len(name)
			}
		}
	}
	return size
}
