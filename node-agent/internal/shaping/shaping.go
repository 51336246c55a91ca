// Package shaping holds pods to their limits in the kernel: what a pod receives by a
// tbf on an ifb that its host's end redirects to, what it sends by a tbf on its own
// device. See docs/limits.md.
//
// Both are prepared with the pair, so that a limit appears, changes and goes without
// touching the queue of a device that is in use. Nothing is remembered: what is there
// is read back. Which limits a pod has is the caller's.
package shaping

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

const (
	// hostPrefix begins the names of the host's ends (attach.HostIfPrefix), ifbPrefix
	// those of their ifbs; the rest is the same.
	hostPrefix, ifbPrefix = "kov", "koi"
	// settle is how long after a filter is gone a processor may still be using it;
	// drain is how long a queue without a limit may take to empty.
	settle, drain = 10 * time.Millisecond, time.Second
)

// Wire is a pod's pair of devices.
type Wire struct {
	// HostIf is the host's end, and IfName the pod's in Sandbox, the path of its
	// network namespace.
	HostIf, Sandbox, IfName string
	// MTU of both ends, bytes. A limit's rate follows from it: when it grows, apply the
	// limits first, since a frame larger than the burst is dropped.
	MTU int
}

// Direction counts what went through one of a pod's limits. It starts anew with
// the limit.
type Direction struct {
	// Dropped are packets that found the queue full.
	Bytes, Packets, Dropped uint64
	// Delayed is how often the shaper had to hold a packet back.
	Delayed uint64
	// Backlog is what waits now, bytes.
	Backlog uint64
}

// Counters are those of a pod; a direction without a limit has none.
type Counters struct{ Ingress, Egress Direction }

// Shaper applies limits. Its methods may be called from several goroutines, but
// for one pod at a time.
type Shaper struct {
	host *link.NS
	tc   tc.Control // of host
	log  *slog.Logger
}

// New returns the shaper of the node whose namespace is host.
func New(host *link.NS, log *slog.Logger) *Shaper { return &Shaper{host, tc.In(host), log} }

// PrepareHost puts the gate on the host's end of a pair, whose other end should not
// be up yet: so nothing is lost. It may be repeated.
func PrepareHost(host *link.NS, hostIf string) error {
	_, err := tc.In(host).EnsureGate(hostIf)
	return err
}

// EnsureGates puts the gate in the place of what somebody else put on host's ends, and returns on which. What led to an ifb from
// there is gone then, as [Shaper.Differences] has it.
func (s *Shaper) EnsureGates(ends ...link.Link) (mended []string, err error) {
	return s.tc.EnsureGates(ends...)
}

// PrepareSandbox puts a tbf without a limit on the pod's device, which should not be
// up yet: so nothing is lost. One that is there, of whatever rate, stays; as
// does a qdisc of another kind, which is the pod's own.
func PrepareSandbox(sandbox *link.NS, ifName string) error {
	own := tc.In(sandbox)
	q, err := own.Qdisc(ifName)
	if err != nil || !q.Default {
		return err
	}
	return own.SetTBF(ifName, unlimited)
}

// Apply makes the pod's limits l. It may be repeated, changes what differs without
// loss, and completes what was interrupted. It takes some 10 ms where a limit to the pod
// goes. [link.ErrNoLink] or [link.ErrNoSandbox] where the pod is gone.
func (s *Shaper) Apply(w Wire, l limits.Limits) error {
	if err := errors.Join(s.ingress(w, l.Ingress), s.egress(w, l.Egress)); err != nil {
		return fmt.Errorf("limits of %s: %w", w.HostIf, err)
	}
	return nil
}

func (s *Shaper) ingress(w Wire, l limits.Limit) error {
	if err := PrepareHost(s.host, w.HostIf); err != nil {
		return err
	}
	if l.Rate == 0 {
		return s.open(w.HostIf)
	}
	ifb := ifbOf(w.HostIf)
	if err := s.tc.EnsureIFB(ifb); err != nil {
		return err
	}
	changed, err := setTBF(s.tc, ifb, shape(l, w.MTU))
	if err != nil {
		return err
	}
	if _, err := s.host.SetUp(ifb); err != nil {
		return err
	}
	// Last: an ifb that is not ready drops.
	added, err := s.tc.EnsureRedirect(w.HostIf, ifb)
	if changed || added {
		s.log.Debug("limited what a pod receives", "port", w.HostIf, "rate", l.Rate)
	}
	return err
}

// open takes the limit to the pod away: what waits goes first, then the way there,
// then the ifb.
func (s *Shaper) open(hostIf string) error {
	ifb := ifbOf(hostIf)
	ok, err := s.host.LinkExists(ifb)
	if err != nil || !ok {
		_, gone := s.tc.DeleteRedirect(hostIf)
		return errors.Join(err, gone)
	}
	if _, err := setTBF(s.tc, ifb, unlimited); err != nil {
		return err
	}
	if _, err := s.tc.DeleteRedirect(hostIf); err != nil {
		return err
	}
	if err := s.drained(ifb); err != nil {
		return err
	}
	s.log.Debug("what a pod receives is no longer limited", "port", hostIf)
	return s.Remove(hostIf)
}

// drained waits until the ifb, which has no limit and nothing led to it any more,
// is empty. It is not cut short when the agent stops: the kernel does not say when the last
// packet that was on its way is there, and a limit that goes half leaves its ifb behind. The
// wait is some 10 ms, and drain at most.
func (s *Shaper) drained(ifb string) error {
	for end := time.Now().Add(drain); ; {
		time.Sleep(settle)
		q, err := s.tc.Qdisc(ifb)
		if err != nil || q.Backlog == 0 {
			return err
		}
		if err := s.tc.Kick(ifb); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s still holds %d bytes %s after its limit went; it is deleted by the next attempt", ifb, q.Backlog, drain)
		}
	}
}

func (s *Shaper) egress(w Wire, l limits.Limit) error {
	return in(w, func(sandbox *link.NS) error {
		own := tc.In(sandbox)
		q, err := own.Qdisc(w.IfName)
		if err != nil {
			return err
		}
		if l.Rate == 0 && !q.Default && q.Kind != "tbf" {
			return nil // the pod's own
		}
		changed, err := setTBF(own, w.IfName, shape(l, w.MTU))
		if changed {
			s.log.Debug("set the limit of what a pod sends", "port", w.HostIf, "sandbox", w.Sandbox, "rate", l.Rate)
		}
		return err
	})
}

// setTBF leaves a tbf alone that is as it should be: every change fills its bucket.
func setTBF(n tc.Control, name string, t tc.TBF) (changed bool, err error) {
	q, err := n.Qdisc(name)
	if err != nil || q.Shapes(t) {
		return false, err
	}
	if err := n.SetTBF(name, t); err != nil {
		return false, err
	}
	q, err = n.Qdisc(name)
	if err != nil || q.Backlog == 0 {
		return true, err
	}
	return true, n.Kick(name)
}

// Device is what [Shaper.Remove] takes away, for who removes many.
func Device(hostIf string) link.Device { return link.Device{Name: ifbOf(hostIf), Type: "ifb"} }

// Remove takes away what does not go with the pair: the ifb, with what waits in it.
// None is no error.
func (s *Shaper) Remove(hostIf string) error { return s.tc.DeleteIFB(ifbOf(hostIf)) }

// Sweep removes the ifbs of host's ends that are neither in keep nor there, and
// returns how many: a crash between the pair and its ifb leaves them.
func (s *Shaper) Sweep(keep map[string]bool) (int, error) {
	links, err := s.host.Links()
	if err != nil {
		return 0, err
	}
	there := map[string]bool{}
	for _, l := range links {
		there[l.Name] = true
	}
	removed := 0
	for _, l := range links {
		rest, ours := strings.CutPrefix(l.Name, ifbPrefix)
		hostIf := hostPrefix + rest
		if !ours || l.Type != "ifb" || keep[hostIf] || there[hostIf] {
			continue
		}
		if err := s.Remove(hostIf); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

func ifbOf(hostIf string) string { return ifbPrefix + strings.TrimPrefix(hostIf, hostPrefix) }

// in opens the pod's sandbox for do.
func in(w Wire, do func(sandbox *link.NS) error) error {
	sandbox, err := link.Open(w.Sandbox)
	if err != nil {
		return err
	}
	return errors.Join(do(sandbox), sandbox.Close())
}
