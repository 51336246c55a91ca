package shaping

import (
	"math"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

const (
	// ethernet is the header of a frame; headers are it with bare IPv4 and TCP: what
	// a full frame has more than an application gets. Bytes.
	ethernet = 14
	headers  = ethernet + 20 + 20
	// minMTU is the least that IPv4 allows (RFC 791), bytes.
	minMTU = 68

	// burstTime of the rate is the default burst, queueTime of it the queue, seconds.
	burstTime, queueTime = 0.005, 0.1
	// defaultFrames and minFrames are the least of a default burst and of any, in
	// full frames.
	defaultFrames, minFrames = 8, 2
	// minQueue is the least that may wait, bytes: less loses packets of one TCP flow.
	minQueue = 256 << 10
	// maxBurst and maxQueue, bytes, are what the kernel's 32 bits hold; maxBurstTime,
	// seconds, is a bucket that the kernel can tell.
	maxBurst, maxQueue, maxBurstTime = 1 << 31, 1 << 30, 240

	// meterMargin is how much faster the meter is than the tbf. Its bucket is that of
	// the tbf twice, and meterTime of the rate, in seconds: the switch may come late to
	// what the tbf has let go. At least meterBurst bytes: two unsegmented packets.
	meterMargin, meterTime, meterBurst = 1.02, 0.25, 128 << 10
)

// unlimited is a tbf that holds nothing up: at this rate the kernel computes no
// time for any packet.
var unlimited = tc.TBF{Rate: limits.MaxRate / 8, Burst: maxBurst, Queue: 64 << 20}

// shape is the tbf of a limit on a device with that MTU, bytes; unlimited without one.
func shape(l limits.Limit, mtu int) tc.TBF {
	if l.Rate == 0 {
		return unlimited
	}
	frame := float64(max(mtu, minMTU) + ethernet)
	rate := compensated(l, frame)
	burst := float64(l.Burst)
	if l.Burst == 0 {
		burst = max(rate*burstTime, defaultFrames*frame)
	}
	burst = max(min(burst, rate*maxBurstTime), minFrames*frame)
	return tc.TBF{
		Rate:  uint64(max(math.Round(rate), 1)),
		Burst: uint32(min(burst, maxBurst)),
		Queue: uint32(min(max(rate*queueTime, minQueue), maxQueue)),
	}
}

// compensated is the rate of full frames, bytes per second, at which an
// application gets the limit's.
func compensated(l limits.Limit, frame float64) float64 {
	return float64(l.Rate) / 8 * frame / (frame - headers)
}

// Meter is the backstop behind the tbf of a pod's own device, which the pod may be
// able to remove: a little faster and with a deeper bucket, so that it sees nothing
// to drop while the tbf is there. It is zero without a limit, and where the rate is
// more than a meter's 32 bits hold (4.2 Tbit/s).
func Meter(l limits.Limit, mtu int) desired.Meter {
	if l.Rate == 0 {
		return desired.Meter{}
	}
	t := shape(l, mtu)
	kbits := func(bytes float64) float64 { return math.Ceil(bytes * 8 / 1000) }
	rate := kbits(float64(t.Rate) * meterMargin)
	if rate > math.MaxUint32 {
		return desired.Meter{}
	}
	burst := kbits(max(2*float64(t.Burst)+float64(t.Rate)*meterTime, meterBurst))
	return desired.Meter{Rate: uint32(rate), Burst: uint32(min(burst, math.MaxUint32))}
}
