// Package limits says how fast a pod may send and receive, and reads that from
// what people and runtimes write: annotations and the CNI capability "bandwidth".
//
// It is pure.
package limits

// The smallest and the largest rate that can be asked for, bits per second: what
// Kubernetes accepts of these annotations (1k to 1P).
const (
	MinRate uint64 = 1_000
	MaxRate uint64 = 1_000_000_000_000_000
)

// Limit is that of one direction.
type Limit struct {
	// Rate in bits per second, as an application sees it with full-size packets;
	// 0 for no limit.
	Rate uint64 `json:"rate,omitempty"`
	// Burst is what may pass at once after a pause, bytes; 0 leaves it to the agent.
	Burst uint64 `json:"burst,omitempty"`
}

// Limits are those of one pod. They are comparable.
type Limits struct {
	// Ingress is of what the pod receives, Egress of what it sends.
	Ingress Limit `json:"ingress,omitzero"`
	Egress  Limit `json:"egress,omitzero"`
}
