package exits

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
)

// deaf is a node where nothing that is sent arrives.
type deaf struct{ Host }

func (deaf) PathTo(netip.Addr) (link.Path, error) {
	return link.Path{Link: link.Link{Name: "eth0"}}, nil
}
func (d deaf) PathOf(netip.Addr, string, netip.Addr) (link.Path, error) {
	return d.PathTo(netip.Addr{})
}
func (deaf) HopsOf(netip.Addr, string, netip.Addr) ([]link.Path, error) { return nil, nil }
func (deaf) Sysctl(string) (string, error)                              { return "1", nil }
func (deaf) Send(context.Context, ...[]byte) error                      { return nil }
func (deaf) Forget()                                                    {}
func (deaf) Fill() (used, size uint64, err error)                       { return 0, 0, nil }

func (deaf) Call(to netip.AddrPort, _ bool) (netip.AddrPort, error) { return to, nil }
func (deaf) Track(conntrack.Translated, time.Duration) error        { return nil }

func (deaf) Passed(context.Context, hostnet.Way) (hostnet.Passed, error) {
	return hostnet.Passed{}, nil
}

// TestPatience: a check that fails takes as long as its packets may take, and no longer: the
// loop of the agent waits for it.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 { // whatever the jitter of the pauses is
			c := New(deaf{}, deaf{}, NewFile(t.TempDir()), slog.New(slog.DiscardHandler))
			began := time.Now()
			err := c.Outside(t.Context(), deaf{}, Gateway{Device: "tun0", Address: netip.MustParseAddr("172.11.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")})
			if took := time.Since(began); err == nil || took != attempts*patience {
				t.Fatalf("it took %s and said %v, want %s", took, err, attempts*patience)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := New(deaf{}, deaf{}, NewFile(t.TempDir()), slog.New(slog.DiscardHandler))
		if err := c.Outside(ctx, deaf{}, Gateway{Device: "tun0", Address: netip.MustParseAddr("172.11.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}); !errors.Is(err, context.Canceled) {
			t.Errorf("nobody waits any more: %v", err)
		}
	})
}
