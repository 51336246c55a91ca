package store

import (
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// newPauses are the pauses between attempts to reach etcd.
func newPauses() backoff.Pauses {
	return backoff.Pauses{First: 50 * time.Millisecond, Last: 2 * time.Second}
}
