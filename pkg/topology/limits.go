package topology

import "net/netip"

// NodeLimits is the record limits/<nodeIP>: what the limits of a live node's pods
// do. It is written under a lease and goes with the node's agent, or with the last
// limited pod.
type NodeLimits struct {
	Host   string      `json:"Host"`
	HostIP netip.Addr  `json:"HostIP"`
	Pods   []PodLimits `json:"Pods"`
}

// PodLimits is one pod that is limited in one direction at least.
type PodLimits struct {
	Namespace string     `json:"Namespace"`
	Pod       string     `json:"Pod"`
	Ingress   *LimitUsed `json:"Ingress,omitempty"`
	Egress    *LimitUsed `json:"Egress,omitempty"`
}

// LimitUsed is a limit and what it has done since it began.
type LimitUsed struct {
	// Rate in bits per second; Burst in bytes, 0 where the agent chose it.
	Rate  uint64 `json:"Rate"`
	Burst uint64 `json:"Burst,omitempty"`
	// Bytes that have passed; packets that waited (Delayed) or did not pass (Dropped).
	Bytes   uint64 `json:"Bytes"`
	Delayed uint64 `json:"Delayed"`
	Dropped uint64 `json:"Dropped"`
}
