package store

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Limits are what the live nodes' limited pods do, by node. Nodes without such
// pods are not among them.
func (s *Store) Limits(ctx context.Context) (map[netip.Addr]topology.NodeLimits, error) {
	l, err := s.list(ctx, kindLimits)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]topology.NodeLimits{}
	for _, k := range l.kinds[0] {
		var n topology.NodeLimits
		// What is none is passed over: agents write them anew all the time.
		if json.Unmarshal(k.value, &n) == nil && n.HostIP.String() == s.keys.last(k.key, l.config.Value.Name, kindLimits) {
			out[n.HostIP] = n
		}
	}
	return out, nil
}

// LimitsPublisher keeps what a node's limited pods do in etcd, for as long as the
// agent runs.
type LimitsPublisher = Publisher[topology.NodeLimits]

// LimitsPublisher starts to publish in the network called name, as
// [Store.StatusPublisher] does. Nobody watches these records, so that they may be
// written often.
func (s *Store) LimitsPublisher(name string, ttl time.Duration) *LimitsPublisher {
	return newPublisher(s, "what the node's limits do", ttl, func(l topology.NodeLimits) string { return s.keys.ofNode(name, kindLimits, l.HostIP) }, nil)
}
