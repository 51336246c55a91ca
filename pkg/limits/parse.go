package limits

import (
	"cmp"
	"fmt"
	"math"
	"strconv"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// The annotations of a pod that say its limits: rates in bits per second
// (Kubernetes, "Support traffic shaping"), bursts in bytes.
const (
	IngressRateAnnotation  = "kubernetes.io/ingress-bandwidth"
	EgressRateAnnotation   = "kubernetes.io/egress-bandwidth"
	IngressBurstAnnotation = "k8s-ovs.io/ingress-burst"
	EgressBurstAnnotation  = "k8s-ovs.io/egress-burst"
)

// Annotations are all of them.
func Annotations() []string {
	return []string{IngressRateAnnotation, EgressRateAnnotation, IngressBurstAnnotation, EgressBurstAnnotation}
}

// MaxBurst is the largest burst that can be asked for, bytes: the kernel takes it
// as a number of 32 bits (TCA_TBF_BURST).
const MaxBurst uint64 = math.MaxUint32

// noBurst bits and more are what runtimes send for want of a burst, which
// Kubernetes' annotations cannot say: dockershim this, containerd and CRI-O
// math.MaxUint32.
const noBurst uint64 = math.MaxInt32

// FromAnnotations reads the limits of a pod. The error names every annotation
// that is refused, with its value; a direction with one has no limit in what is
// returned beside it, the other one has what it asks for.
func FromAnnotations(a map[string]string) (Limits, error) {
	ingress, err := fromAnnotations(a, IngressRateAnnotation, IngressBurstAnnotation)
	egress, err2 := fromAnnotations(a, EgressRateAnnotation, EgressBurstAnnotation)
	return Limits{Ingress: ingress, Egress: egress}, both(err, err2)
}

// both is one line, as a CNI error and an Event have it.
func both(ingress, egress error) error {
	if ingress != nil && egress != nil {
		return fmt.Errorf("%w; %w", ingress, egress)
	}
	return cmp.Or(ingress, egress)
}

func fromAnnotations(a map[string]string, rate, burst string) (Limit, error) {
	rateText, limited := a[rate]
	burstText, bursts := a[burst]
	if !limited {
		if bursts {
			return Limit{}, fmt.Errorf("annotation %s is %s, but there is no %s, which it belongs to", burst, quote(burstText), rate)
		}
		return Limit{}, nil
	}
	var l Limit
	var err error
	if l.Rate, err = ParseRate(rateText); err != nil {
		return Limit{}, fmt.Errorf("annotation %s is %s: %w", rate, quote(rateText), err)
	}
	if !bursts {
		return l, nil
	}
	if l.Burst, err = within(burstText, 1, int64(MaxBurst)); err != nil {
		return Limit{}, fmt.Errorf("annotation %s is %s: %w bytes", burst, quote(burstText), err)
	}
	return l, nil
}

// quote is a value for an error, of which nobody needs more than what could be one.
func quote(text string) string {
	if len(text) > maxLength {
		return strconv.Quote(text[:maxLength]) + "..."
	}
	return strconv.Quote(text)
}

// within reads a quantity from lowest to highest, rounded up to a whole number.
func within(text string, lowest, highest int64) (uint64, error) {
	q, err := parseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("%w, of", err)
	}
	// Value is right only for what an int64 can hold.
	if q.Sign() < 0 || q.CmpInt64(highest) > 0 || q.Value() < lowest {
		return 0, fmt.Errorf("it must be %d to %d", lowest, highest)
	}
	return uint64(q.Value()), nil
}

// FromCapability reads the limits that a runtime passes; b is nil where it
// passes none. The error is as [FromAnnotations]'.
func FromCapability(b *cniapi.Bandwidth) (Limits, error) {
	if b == nil {
		return Limits{}, nil
	}
	ingress, err := fromCapability("ingress", b.IngressRate, b.IngressBurst)
	egress, err2 := fromCapability("egress", b.EgressRate, b.EgressBurst)
	return Limits{Ingress: ingress, Egress: egress}, both(err, err2)
}

func fromCapability(direction string, rate, burst uint64) (Limit, error) {
	if rate == 0 {
		return Limit{}, nil // a burst without a rate was refused by cniapi
	}
	if rate < MinRate || rate > MaxRate {
		return Limit{}, fmt.Errorf("runtimeConfig.bandwidth.%sRate is %d: it must be %d to %d bits per second", direction, rate, MinRate, MaxRate)
	}
	if burst >= noBurst {
		burst = 0
	}
	return Limit{Rate: rate, Burst: (burst + 7) / 8}, nil
}
