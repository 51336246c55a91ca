package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// many has ip(8) carry out n commands in the namespace.
func many(t *testing.T, in *NS, n int, command func(i int) string) {
	t.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, command(i))
	}
	path := filepath.Join(t.TempDir(), "batch")
	noErr(t, os.WriteFile(path, []byte(b.String()), 0o600))
	ip(t, in, "-batch "+path)
}

// TestPodOfManyRoutes: a pod that fills its own tables is told from others, and is not read to the end.
func TestPodOfManyRoutes(t *testing.T) {
	node, hostile, other := space(t), space(t), space(t)
	for name, sandbox := range map[string]*NS{"ovs1": hostile, "ovs2": other} {
		noErr(t, node.CreateVeth(name, sandbox, pair))
		_, err := sandbox.ConfigureSandbox(pod)
		noErr(t, err)
	}
	many(t, hostile, 100_000, func(i int) string {
		return fmt.Sprintf("route add 100.%d.%d.%d/32 dev eth0 table 9", i>>16, i>>8&255, i&255)
	})
	spec := pod
	spec.MTU, spec.RouteMTU = 1400, 1300
	_, err := node.SetPairMTU("ovs1", hostile, spec)
	if !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), hostile.Path()) {
		t.Errorf("error %v, want one of that sandbox: %v", err, ErrTooMany)
	}
	if _, err := node.SetPairMTU("ovs2", other, spec); err != nil {
		t.Error(err)
	}
	if diff, err := other.CheckSandbox(spec); err != nil || len(diff) > 0 {
		t.Errorf("the other pod: %v, %v", diff, err)
	}
	if _, err := hostile.CheckSandbox(spec); !errors.Is(err, ErrTooMany) {
		t.Errorf("check: %v", err)
	}
	// With fewer it is a pod like others.
	ip(t, hostile, "route flush table 9")
	_, err = node.SetPairMTU("ovs1", hostile, spec)
	noErr(t, err)
}

// TestPodOfManyOthers: so it is with neighbours, addresses and rules.
func TestPodOfManyOthers(t *testing.T) {
	defer func(most int) { mostListed = most }(mostListed)
	mostListed = 500 // the kernel takes long to make thousands of these
	for _, tc := range []struct {
		name    string
		command func(i int) string
		list    func(n *NS) error
	}{
		{"neighbours", func(i int) string {
			return fmt.Sprintf("neigh add 100.64.%d.%d lladdr 0a:58:00:00:00:01 dev eth0 nud permanent", i>>8, i&255)
		}, func(n *NS) error { _, err := n.CheckSandbox(pod); return err }},
		{"rules", func(i int) string {
			return fmt.Sprintf("rule add from 100.64.%d.%d table 9 priority %d", i>>8, i&255, 20_000-i)
		}, func(n *NS) error { return n.LeaveSandbox("eth0", pod.Address) }},
		{"addresses", func(i int) string {
			return fmt.Sprintf("addr add 100.64.%d.%d/32 dev lo", i>>8, i&255)
		}, func(n *NS) error { _, _, err := n.Describe("eth0"); return err }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node, sandbox := space(t), space(t)
			noErr(t, node.CreateVeth("ovs1", sandbox, pair))
			_, err := sandbox.ConfigureSandbox(pod)
			noErr(t, err)
			noErr(t, tc.list(sandbox))
			many(t, sandbox, mostListed+10, tc.command)
			if err := tc.list(sandbox); !errors.Is(err, ErrTooMany) {
				t.Errorf("error %v, want %v", err, ErrTooMany)
			}
		})
	}
}

// TestInSandboxReadsTheSame: what is read of a sandbox with a bound is what the library reads of it without.
func TestInSandboxReadsTheSame(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	_, err := sandbox.ConfigureSandbox(pod)
	noErr(t, err)
	ip(t, sandbox, "route add 198.51.100.0/24 via 172.11.0.1 dev eth0 mtu 1300 metric 7 src 172.11.0.5 proto boot")
	ip(t, sandbox, "route add 203.0.113.0/24 dev eth0 table 70000")
	ip(t, sandbox, "rule add from 172.11.0.5 oif eth0 table 70000 priority 7700")
	ip(t, sandbox, "addr add 192.0.2.1/30 dev eth0")
	unbound := &NS{path: sandbox.path, file: sandbox.file, nl: sandbox.nl, home: true}
	l, _, err := sandbox.Link("eth0")
	noErr(t, err)
	for _, table := range []int{unix.RT_TABLE_MAIN, 70_000} {
		want, err := unbound.table(unix.AF_INET, table)
		noErr(t, err)
		got, err := sandbox.table(unix.AF_INET, table)
		noErr(t, err)
		if diff := cmp.Diff(fmt.Sprint(through(l.Index, want)), fmt.Sprint(through(l.Index, got))); diff != "" || len(got) == 0 {
			t.Errorf("table %d (-want +got)\n%s", table, diff)
		}
	}
	want, err := unbound.addresses(l.Index)
	noErr(t, err)
	got, err := sandbox.addresses(l.Index)
	noErr(t, err)
	if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" || len(got) != 2 {
		t.Errorf("addresses (-want +got)\n%s", diff)
	}
	rules, err := sandbox.rulesInSandbox(unix.AF_INET)
	noErr(t, err)
	all, err := sandbox.nl.RuleList(unix.AF_INET)
	noErr(t, err)
	if diff := cmp.Diff(fmt.Sprint(all), fmt.Sprint(rules)); diff != "" || len(rules) != 4 {
		t.Errorf("rules (-want +got)\n%s", diff)
	}
}
