package store

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// DefaultStatusTTL is how long a node's status outlives its agent.
const DefaultStatusTTL = 15 * time.Second

// Statuses are what the live nodes have applied.
func (s *Store) Statuses(ctx context.Context) (map[netip.Addr]topology.NodeStatus, error) {
	l, err := s.list(ctx, kindStatus)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]topology.NodeStatus{}
	for _, k := range l.kinds[0] {
		if st, ok := parseStatus(s.keys.last(k.key, l.config.Value.Name, kindStatus), k.value); ok {
			out[st.HostIP] = st
		}
	}
	return out, nil
}

// parseStatus passes over what is no status: agents write them anew all the time.
func parseStatus(key string, value []byte) (topology.NodeStatus, bool) {
	var st topology.NodeStatus
	if json.Unmarshal(value, &st) != nil || st.HostIP.String() != key {
		return topology.NodeStatus{}, false
	}
	return st, true
}

// StatusPublisher keeps one node's status in etcd, for as long as the agent runs.
type StatusPublisher = Publisher[topology.NodeStatus]

// StatusPublisher starts to publish in the network called name. A ttl of zero
// is DefaultStatusTTL; etcd grants whole seconds and not less than two. Nothing is
// written before the first Set.
func (s *Store) StatusPublisher(name string, ttl time.Duration) *StatusPublisher {
	return newPublisher(s, "the node's status", ttl, func(st topology.NodeStatus) string { return s.keys.ofNode(name, kindStatus, st.HostIP) }, nil)
}
