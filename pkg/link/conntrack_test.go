package link

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
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
	for _, src := range []string{"172.11.0.2", "172.11.0.3"} {
		conntrack("-I", "-p", "udp", "-s", src, "-d", "203.0.113.9", "--sport", "1000", "--dport", "53", "--timeout", "100")
	}
	for range 2 {
		noErr(t, n.ForgetConnections(netip.MustParseAddr("172.11.0.2")))
	}
	left := conntrack("-L")
	if strings.Contains(left, "src=172.11.0.2 ") || !strings.Contains(left, "src=172.11.0.3 ") {
		t.Errorf("left:\n%s", left)
	}
}
