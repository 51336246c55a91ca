package link

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestForgetConnections(t *testing.T) {
	n := space(t)
	conntrack := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ip", append([]string{"netns", "exec", nameOf(n), "conntrack"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("conntrack %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	for _, src := range []string{"172.11.0.2", "172.11.0.3", "172.11.0.4"} {
		conntrack("-I", "-p", "udp", "-s", src, "-d", "203.0.113.9", "--sport", "1000", "--dport", "53", "--timeout", "100")
	}
	for range 2 {
		noErr(t, n.ForgetConnections(netip.MustParseAddr("172.11.0.2"), netip.MustParseAddr("172.11.0.4")))
	}
	noErr(t, n.ForgetConnections())
	left := conntrack("-L")
	if strings.Contains(left, "src=172.11.0.2 ") || strings.Contains(left, "src=172.11.0.4 ") || !strings.Contains(left, "src=172.11.0.3 ") {
		t.Errorf("left:\n%s", left)
	}
}

func TestConnections(t *testing.T) {
	n := space(t)
	for _, args := range []string{
		"-s 172.11.0.2 -d 203.0.113.9 --sport 1000 --dport 53",
		"-s 172.11.0.2 -d 203.0.113.9 --sport 1001 --dport 53",
		"-s 172.11.0.2 -d 203.0.113.9 --sport 1000 --dport 53 --zone 65520",
		"-s 172.11.0.3 -d 203.0.113.9 --sport 1000 --dport 53",
		"-s 198.18.0.1 -d 172.11.0.2 --sport 1000 --dport 53",
	} {
		command := append([]string{"netns", "exec", nameOf(n), "conntrack", "-I", "-p", "udp", "--timeout", "100"}, strings.Fields(args)...)
		if out, err := exec.Command("ip", command...).CombinedOutput(); err != nil {
			t.Fatalf("conntrack %s: %v: %s", args, err, out)
		}
	}
	used, size, err := n.Connections()
	noErr(t, err)
	if used != 5 || size < used {
		t.Errorf("%d of %d used, want 5", used, size)
	}
	got, err := n.ConnectionsBySource(netip.MustParsePrefix("172.11.0.0/22"))
	noErr(t, err)
	want := map[netip.Addr]uint64{netip.MustParseAddr("172.11.0.2"): 3, netip.MustParseAddr("172.11.0.3"): 1}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}
