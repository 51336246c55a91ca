package uplink

import (
	"fmt"
	"strconv"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

// MaxAuto is the fastest link that is shared without being asked for, bits per
// second: hfsc has one lock for all processors, and hides the device's own queues,
// which costs more than it is worth where several of them are needed.
const MaxAuto uint64 = 10_000_000_000

// Rate is what pods share: the value of --uplink-rate.
type Rate struct {
	// Off shares nothing.
	Off bool
	// Bits per second; 0 for the speed of the link.
	Bits uint64
}

// String is the flag's value.
func (r Rate) String() string {
	switch {
	case r.Off:
		return "off"
	case r.Bits == 0:
		return "auto"
	}
	return strconv.FormatUint(r.Bits, 10)
}

// Set reads the flag's value: "auto", "off" or a quantity, bits per second.
func (r *Rate) Set(text string) error {
	switch text {
	case "auto":
		*r = Rate{}
		return nil
	case "off":
		*r = Rate{Off: true}
		return nil
	}
	bits, err := limits.ParseRate(text)
	if err != nil {
		return fmt.Errorf("%q is neither auto nor off: %w", text, err)
	}
	if bits > tc.MaxHFSCRate {
		return fmt.Errorf("%q is more than the kernel can share: %d bits per second", text, tc.MaxHFSCRate)
	}
	*r = Rate{Bits: bits}
	return nil
}

// Type is the name of the flag's value.
func (r *Rate) Type() string { return "rate" }
