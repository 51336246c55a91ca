package policies

import (
	"fmt"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// This file has what becomes of records that would be too large, and of policies that would come
// to too much: they close, and whoever made them is told. What one namespace makes must not keep
// anything from being written of others.

// limit is how long a record may be, bytes.
func (s *state) limit(key store.PolicyKey) int {
	if refused, ok := s.refused[key]; ok {
		return min(maxRecord, refused-1)
	}
	return maxRecord
}

// refuse takes in that etcd did not take a record of that length. From now on the record is closed
// where it would be as long; one that cannot be closed is left as it is.
func (s *state) refuse(key store.PolicyKey, length int, now time.Time) {
	s.refused[key] = min(length, s.limit(key)+1)
	s.touched[key] = true
	_, rest, _ := strings.Cut(string(key), "/")
	switch kindOf(key) {
	case "policies":
		namespace, name, _ := strings.Cut(rest, "/")
		k := policy.Key{Namespace: namespace, Name: name}
		if p, there := s.policies[k]; there {
			s.setPolicy(k, &p, now)
		}
	case "clusterpolicies":
		if p, there := s.cluster[rest]; there {
			s.setClusterPolicy(rest, &p.ClusterNetworkPolicy, now)
		}
	}
}

// bounded is the policy where etcd takes its record, and else one that allows nothing.
func (s *state) bounded(p *kube.NetworkPolicy) *kube.NetworkPolicy {
	record, _ := encode(p.Record())
	most := s.limit(store.PolicyRecordKey(p.Namespace, p.Name))
	if len(record) <= most {
		return p
	}
	return closedPolicy(p, tooLong(len(record), most))
}

// closedPolicy is what is left of a policy whose rules cannot be in force: it isolates whom it
// isolated, and allows nothing.
func closedPolicy(p *kube.NetworkPolicy, problem string) *kube.NetworkPolicy {
	closed := *p
	closed.Ingress.Rules, closed.Egress.Rules = nil, nil
	closed.Problem = problem
	return &closed
}

// boundedCluster is the policy where etcd takes its record, and else one that closes.
func (s *state) boundedCluster(p *kube.ClusterNetworkPolicy) *kube.ClusterNetworkPolicy {
	record, _ := encode(p.Record())
	most := s.limit(store.ClusterPolicyKey(p.Name))
	if len(record) <= most {
		return p
	}
	closed := *p
	closed.ClusterPolicy = p.Closed()
	closed.Problem = tooLong(len(record), most)
	return &closed
}

func tooLong(length, most int) string {
	return fmt.Sprintf("its rules make a record of %d bytes, at most %d are possible: none of them is in force, write several policies", length, most)
}
