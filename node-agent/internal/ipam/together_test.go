package ipam

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Several at once are written once, and where that fails nothing of it holds.
func TestTogether(t *testing.T) {
	p := open(t, t.TempDir(), small, "b")
	allocate(t, p, 0)
	before, writes := p.Leases(), 0
	replace := p.file.replace
	full := errors.New("full")
	p.file.replace = func(string, []byte) error {
		writes++
		return full
	}
	wants := []Lease{pod(1), pod(0), pod(2), pod(1), pod(3), pod(4), pod(5)}
	failed := func(err error) bool { return errors.Is(err, full) }
	for i, done := range p.allocate(context.Background(), wants) {
		var none *FullError
		switch {
		case i == 1 && (done.err != nil || done.lease.first() != before[0].first()),
			i == 6 && !errors.As(done.err, &none), i != 1 && i != 6 && !failed(done.err):
			t.Errorf("%d: %+v", i, done)
		}
	}
	if diff := cmp.Diff(before, p.Leases(), cmpOpts); diff != "" || writes != 1 {
		t.Errorf("%d writes, leases (-want +got):\n%s", writes, diff)
	}
	p.file.replace = func(path string, data []byte) error {
		writes++
		return replace(path, data)
	}
	got := map[string]bool{}
	for i, done := range p.allocate(context.Background(), wants) {
		if done.err == nil {
			got[done.lease.first().String()] = true
		} else if i != 6 {
			t.Errorf("%d: %v", i, done.err)
		}
	}
	if len(got) != 5 || writes != 2 {
		t.Errorf("addresses %v in %d writes", got, writes)
	}
	if n := p.ReleaseAll(pod(1).Attachment(), pod(9).Attachment(), pod(2).Attachment()); n != 2 || writes != 3 {
		t.Errorf("%d released in %d writes, want 2 in one more", n, writes)
	}
	if n := p.ReleaseAll(pod(9).Attachment()); n != 0 || writes != 3 {
		t.Errorf("%d released in %d writes; nobody had an address", n, writes)
	}
}

// Who is leaving keeps the address until it is released, also after a restart and
// whatever Open vSwitch still has.
func TestLeave(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, small, "b")
	for i := range 3 {
		allocate(t, p, i)
	}
	leave := func(as ...cniapi.Attachment) {
		t.Helper()
		for _, err := range p.leave(context.Background(), as) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	leave(pod(0).Attachment(), pod(7).Attachment(), pod(2).Attachment())
	leave(pod(0).Attachment())
	if _, err := p.Allocate(pod(0)); err == nil {
		t.Error("one that is leaving gets its address anew")
	}
	want := []Lease{leased(0, "172.11.4.2"), leased(1, "172.11.4.3"), leased(2, "172.11.4.4")}
	want[0].Leaving, want[2].Leaving = true, true
	for _, live := range [][]Lease{nil, {leased(0, "172.11.4.2"), leased(1, "172.11.4.3")}} {
		if diff := cmp.Diff(want, open(t, dir, small, "b", live...).Leases(), cmpOpts); diff != "" {
			t.Errorf("after a restart (-want +got):\n%s", diff)
		}
	}
	full := errors.New("full")
	p.file.replace = func(string, []byte) error { return full }
	if err := p.Leave(pod(1).Attachment()); !errors.Is(err, full) {
		t.Errorf("on a full disk: %v", err)
	}
	if diff := cmp.Diff(want, p.Leases(), cmpOpts); diff != "" {
		t.Errorf("after it could not be written (-want +got):\n%s", diff)
	}
	p = open(t, dir, small, "b")
	allocate(t, p, 3)
	allocate(t, p, 4)
	_, err := p.Allocate(pod(5))
	var none *FullError
	if !errors.As(err, &none) || *none != (FullError{Subnet: small, Leased: 5, Leaving: 2}) || !strings.Contains(err.Error(), "2 of them to pods that were detached") {
		t.Errorf("no address left: %v", err)
	}
}

// At once from many sides nobody gets the address of another.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, small, "b")
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			for range 20 {
				if _, err := p.Allocate(pod(i)); err != nil {
					t.Error(err)
				}
				if err := p.Leave(pod(i).Attachment()); err != nil {
					t.Error(err)
				}
				if !p.Release(pod(i).Attachment()) {
					t.Errorf("%d had no address", i)
				}
			}
			if _, err := p.Allocate(pod(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, l := range open(t, dir, small, "b").Leases() {
		seen[l.first().String()] = true
	}
	if len(seen) != 5 {
		t.Errorf("addresses %v", seen)
	}
}
