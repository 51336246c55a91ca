package pipeline

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

var update = flag.Bool("update", false, "write the golden file anew")

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// sample has one of everything.
func sample() Model {
	return Model{
		Network: prefix("172.11.0.0/16"), Subnet: prefix("172.11.0.0/22"), Gateway: addr("172.11.0.1"),
		TunnelPort: 1, GatewayPort: 2, VXLANPort: 4789,
		Peers: []Peer{
			{VTEP: addr("198.18.0.2"), Subnet: prefix("172.11.4.0/22")},
			{VTEP: addr("198.18.0.3"), Subnet: prefix("172.11.8.0/22")},
		},
		Tenants: []Tenant{
			{Slot: 101, NetID: 300924, Known: true},
			{Slot: 102, NetID: netid.Global, Known: true},
			{Slot: 103},
		},
		Pods: []Pod{
			{Address: addr("172.11.0.2"), Port: 12, Slot: 101},
			{Address: addr("172.11.0.3"), Port: 13, Slot: 102},
			{Address: addr("172.11.0.4"), Port: 14, Slot: 103},
		},
	}
}

// TestGolden holds the flows as text. Whoever changes them raises Version, so
// that flows of one generation always mean the same.
func TestGolden(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "version %d\n", Version)
	for _, f := range sample().Flows() {
		b.WriteString(f.String() + "\n")
	}
	const path = "testdata/flows.golden"
	want, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	same := string(want) == b.String()
	oldVersion, _, _ := strings.Cut(string(want), "\n")
	sameVersion := oldVersion == fmt.Sprintf("version %d", Version)
	switch {
	case same:
	case sameVersion:
		t.Errorf("the flows changed and Version is still %d: raise it, change PIPELINE.md, run the test with -update:\n%s", Version, cmp.Diff(string(want), b.String()))
	case *update:
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("Version is %d, the golden file is of %q: run the test with -update", Version, oldVersion)
	}
}

// TestCounts: the counts that PIPELINE.md promises, and that nothing else grows.
func TestCounts(t *testing.T) {
	m := sample()
	for name, tc := range map[string]struct{ got, want int }{
		"fixed":   {len(m.Fixed()), 22},
		"peer":    {len(m.Peer(m.Peers[0])), 2},
		"pod":     {len(m.Pod(m.Pods[0])), 3},
		"tenant":  {len(m.Tenant(m.Tenants[0])), 4},
		"global":  {len(m.Tenant(m.Tenants[1])), 2},
		"unknown": {len(m.Tenant(m.Tenants[2])), 1},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %d flows, want %d", name, tc.got, tc.want)
		}
	}
}

// TestUnique: no two flows have the same key, or one would silently replace the other.
func TestUnique(t *testing.T) {
	seen := map[string]of.Flow{}
	for _, f := range sample().Flows() {
		if g, dup := seen[f.Key()]; dup {
			t.Errorf("two flows with one key:\n%s\n%s", f, g)
		}
		seen[f.Key()] = f
	}
}

// TestDropsHaveReasons: every flow without an action says why, and no other does.
func TestDropsHaveReasons(t *testing.T) {
	used := map[Reason]bool{}
	for _, f := range sample().Flows() {
		c := DecodeCookie(f.Cookie)
		drops := len(f.Actions) == 0 && f.Goto == nil
		if drops != (c.Reason != 0) {
			t.Errorf("drops is %t, reason is %q: %s", drops, c.Reason, f)
		}
		if c.Generation != Version {
			t.Errorf("generation %d, want %d: %s", c.Generation, Version, f)
		}
		used[c.Reason] = true
	}
	for _, r := range Reasons() {
		if !used[r] {
			t.Errorf("no flow drops for reason %s", r)
		}
	}
}

func TestCookie(t *testing.T) {
	c := Cookie{Generation: Version, Kind: KindPod, Reason: OtherTenant, Object: object(addr("172.11.0.2"))}
	if diff := cmp.Diff(c, DecodeCookie(c.Encode())); diff != "" {
		t.Error(diff)
	}
	if got := c.Address(); got != addr("172.11.0.2") {
		t.Errorf("address %s", got)
	}
	cookie, mask := PodCookie(addr("172.11.0.2"))
	for _, f := range sample().Flows() {
		mine := f.Cookie&mask == cookie
		about := strings.Contains(f.String(), "172.11.0.2,") || strings.HasSuffix(f.String(), "172.11.0.2") || strings.Contains(f.String(), "172.11.0.2 ")
		if mine != about {
			t.Errorf("selected by the pod's cookie: %t, about the pod: %t: %s", mine, about, f)
		}
	}
}
