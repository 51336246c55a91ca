package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// judges are policies that select every pod. They note what they are told, and what there is
// of the pod then.
type judges struct {
	w    *world
	a    *Attacher
	told []string
	// here are the addresses of pods, held those that nobody may have yet.
	here, held map[netip.Addr]bool
	// stuck is why no connection is forgotten, unarmed why rules are not there.
	stuck, unarmed error
}

var judged = pipeline.PodPolicy{Ingress: true}

func startJudged(t *testing.T, w *world, dir string) (*Attacher, *judges) {
	t.Helper()
	j := &judges{w: w, here: map[netip.Addr]bool{}, held: map[netip.Addr]bool{}}
	j.a = New(NewBare(w, w, theNode.Bridge, dir, slog.New(slog.DiscardHandler)), w, w, w)
	j.a.SetPolicies(j)
	attached, err := j.a.Start(t.Context(), theNode, dir, "boot")
	if err != nil {
		t.Fatal(err)
	}
	clear(w.flows)
	for _, at := range attached {
		w.flows[at.Port] = at
	}
	j.a.SetReady(nil)
	return j.a, j
}

// note notes what happens, and what there is of an address.
func (j *judges) note(what string, address netip.Addr) {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	has := []string{what}
	if f := j.w.flowsOf(address); f.Port != 0 {
		has = append(has, fmt.Sprintf("flows %+v", f.Policy))
	}
	if slices.ContainsFunc(j.a.pool.Leases(), func(l ipam.Lease) bool { return slices.Contains(l.Addresses, address) }) {
		has = append(has, "lease")
	}
	j.told = append(j.told, strings.Join(has, ", "))
}

func (j *judges) Load(all []Attachment) {
	for _, at := range all {
		j.here[at.Addresses[0]] = true
	}
}

func (j *judges) Enter(_ context.Context, at Attachment, uid string) {
	j.here[at.Addresses[0]] = true
	j.note("enter "+uid, at.Addresses[0])
}

func (j *judges) Arm(_ context.Context, at Attachment) error {
	j.note("arm", at.Addresses[0])
	return j.unarmed
}

func (j *judges) Selection(at Attachment) pipeline.PodPolicy {
	if !j.here[at.Addresses[0]] {
		return pipeline.PodPolicy{}
	}
	return judged
}

func (j *judges) Await(_ context.Context, at Attachment) { j.note("await", at.Addresses[0]) }

func (j *judges) Leave(at Attachment) {
	if len(at.Addresses) > 0 && j.here[at.Addresses[0]] {
		delete(j.here, at.Addresses[0])
		j.note("leave", at.Addresses[0])
	}
}

func (j *judges) Forget(_ context.Context, addresses ...netip.Addr) error {
	for _, a := range addresses {
		j.note("forget", a)
	}
	return j.stuck
}

func (j *judges) Reusable(a netip.Addr) bool { return !j.held[a] }

// What selects a pod is in its first flows, and it has its rules when ADD answers. Its
// connections are forgotten when its flows are gone, and before its address is free.
func TestPoliciesOfPod(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a, j := startJudged(t, w, dir)
	req := request(1)
	req.PodUID = "u1"
	if _, err := a.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	// One that starts with it goes on so.
	b, again := startJudged(t, w, dir)
	if got := w.flowsOf(firstPod[0]).Policy; got != judged {
		t.Errorf("after a restart its flows have %+v", got)
	}
	if err := b.Del(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	finished(t, b)
	want := []string{"enter u1, lease", "arm, lease", fmt.Sprintf("await, flows %+v, lease", pipeline.PodPolicy{Ingress: true}), "leave, lease", "forget, lease"}
	if diff := cmp.Diff(want, append(j.told, again.told...)); diff != "" {
		t.Errorf("policies are told (-want +got):\n%s", diff)
	}
	w.empty(t)
}

// A pod that could not be attached is none to policies, whatever failed.
func TestPoliciesOfFailedPod(t *testing.T) {
	for failAt := 1; ; failAt++ {
		w := newWorld()
		a, j := startJudged(t, w, t.TempDir())
		w.failAt = failAt
		_, err := a.Add(t.Context(), request(1))
		if err == nil {
			if failAt < 5 {
				t.Fatalf("ADD has only %d steps", failAt-1)
			}
			return
		}
		if len(j.here) > 0 || len(j.told) > 0 && j.told[len(j.told)-1] != "forget, lease" {
			t.Errorf("step %d: policies have %v, and were told %q", failAt, j.here, j.told)
		}
	}
}

// Without the rules that deny, a pod gets no flows: ADD is to come again.
func TestPoliciesUnarmed(t *testing.T) {
	w := newWorld()
	a, j := startJudged(t, w, t.TempDir())
	j.unarmed = errors.New("the switch is slow")
	if _, err := a.Add(t.Context(), request(1)); cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "slow") {
		t.Errorf("ADD: %v", err)
	}
	for _, told := range j.told {
		if strings.Contains(told, "flows") {
			t.Errorf("it had flows: %q", j.told)
		}
	}
	finished(t, a)
	w.empty(t)
}

// An address that other nodes may still take for another pod's is not given out: ADD is to
// come again.
func TestAddressesThatWait(t *testing.T) {
	w := newWorld()
	a, j := startJudged(t, w, t.TempDir())
	for n := range 5 { // all of the subnet
		if _, err := a.Add(t.Context(), request(n)); err != nil {
			t.Fatal(err)
		}
	}
	j.held[firstPod[0]] = true
	if err := a.Del(t.Context(), request(0)); err != nil {
		t.Fatal(err)
	}
	_, err := a.Add(t.Context(), request(7))
	if cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "sets of NetworkPolicies") {
		t.Errorf("ADD: %v", err)
	}
	j.held[firstPod[0]] = false
	if got, err := a.Add(t.Context(), request(7)); err != nil || got.IPs[0].Address.Addr() != firstPod[0] {
		t.Errorf("ADD gets %v, %v", got, err)
	}
}

// While connections cannot be forgotten the address is nobody's.
func TestConnectionsThatStay(t *testing.T) {
	w := newWorld()
	a, j := startJudged(t, w, t.TempDir())
	if _, err := a.Add(t.Context(), request(1)); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(t.Context(), request(1)); err != nil {
		t.Fatal(err)
	}
	j.stuck = errors.New("ovs-vswitchd is away")
	if err := a.finish(t.Context()); err == nil || len(holders(a)) != 1 {
		t.Errorf("the address is given back: %v, %v", holders(a), err)
	}
	j.stuck = nil
	finished(t, a)
	w.empty(t)
}
