package tc

import (
	"errors"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// The kernel keeps what was asked for, from 1 kbit/s to 1 Pbit/s, and it can be
// told from another.
func TestTBF(t *testing.T) {
	n := space(t)
	ip(t, n, "link add dev0 type veth peer name dev1")
	q := must(n.Qdisc("dev0"))(t)
	if !q.Default {
		t.Errorf("a device that was never up has qdisc %+v; want the default", q)
	}
	ip(t, n, "link set dev0 up")
	for _, c := range []struct {
		tbf  TBF
		want string
	}{
		{TBF{Rate: 130, Burst: 11_712, Queue: 256 << 10}, "rate 1040bit"},
		{TBF{Rate: 130, Burst: 31_200, Queue: 256 << 10}, "rate 1040bit"},
		{TBF{Rate: 1_300_000, Burst: 11_712, Queue: 256 << 10}, "rate 10400Kbit"},
		{TBF{Rate: 130_000_000, Burst: 650_000, Queue: 13_000_000}, "rate 1040Mbit"},
		{TBF{Rate: 13_000_000_000, Burst: 65_000_000, Queue: 1 << 30}, "rate 104Gbit"},
		{TBF{Rate: 130_000_000_000_000, Burst: 1 << 31, Queue: 1 << 30}, "rate 1040Tbit"},
	} {
		noErr(t, n.SetTBF("dev0", c.tbf))
		q := must(n.Qdisc("dev0"))(t)
		if !q.Shapes(c.tbf) || q.Default {
			t.Errorf("after SetTBF(%+v): %+v, which does not shape it", c.tbf, q)
		}
		if out := tc(t, n, "qdisc show dev dev0"); !strings.Contains(out, "qdisc tbf ") || !strings.Contains(out, c.want) {
			t.Errorf("after SetTBF(%+v) tc shows %s; want %s", c.tbf, out, c.want)
		}
		for _, other := range []TBF{
			{c.tbf.Rate + 1, c.tbf.Burst, c.tbf.Queue},
			{c.tbf.Rate, c.tbf.Burst / 2, c.tbf.Queue},
			{c.tbf.Rate, c.tbf.Burst, c.tbf.Queue + 1},
		} {
			if q.Shapes(other) {
				t.Errorf("%+v is taken for %+v", c.tbf, other)
			}
		}
	}
}

// Another's qdisc is replaced, whatever its handle; what is right stays.
func TestRootQdiscReplacesAnother(t *testing.T) {
	n := space(t)
	ip(t, n, "link add dev0 type veth peer name dev1")
	ip(t, n, "link set dev0 up")
	tbf := TBF{Rate: 1_000_000, Burst: 20_000, Queue: 256 << 10}
	for _, other := range []string{"handle 1: pfifo", "handle 7: tbf rate 1mbit burst 10k limit 10k", "handle 8001: pfifo", "handle 1: htb default 1"} {
		tc(t, n, "qdisc replace dev dev0 root "+other)
		noErr(t, n.SetTBF("dev0", tbf))
		if q := must(n.Qdisc("dev0"))(t); !q.Shapes(tbf) {
			t.Errorf("after %q and SetTBF: %+v", other, q)
		}
	}
	for _, want := range []bool{true, false} {
		if changed := must(n.EnsureGate("dev0"))(t); changed != want {
			t.Errorf("EnsureGate: changed %t; want %t", changed, want)
		}
	}
	if q := must(n.Qdisc("dev0"))(t); !q.Gates() || q.Default {
		t.Errorf("after EnsureGate: %+v", q)
	}
}

func TestRedirect(t *testing.T) {
	n := space(t)
	ip(t, n, "link add dev0 type veth peer name dev1")
	if _, err := n.EnsureRedirect("dev0", "ifb0"); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("a redirection to nothing: %v; want ErrNoLink", err)
	}
	noErr(t, n.EnsureIFB("ifb0"))
	noErr(t, n.EnsureIFB("ifb0"))
	if changed := must(n.DeleteRedirect("dev0"))(t); changed {
		t.Error("a device without a gate had a redirection")
	}
	must(n.EnsureGate("dev0"))(t)
	redirect := func(want bool) {
		t.Helper()
		if changed := must(n.EnsureRedirect("dev0", "ifb0"))(t); changed != want {
			t.Errorf("EnsureRedirect: changed %t; want %t", changed, want)
		}
		if out := tc(t, n, "filter show dev dev0"); strings.Count(out, "mirred") != 1 || !strings.Contains(out, "Egress Redirect to device ifb0") {
			t.Errorf("after EnsureRedirect tc shows %s", out)
		}
		if !must(n.Redirects("dev0", "ifb0"))(t) {
			t.Error("Redirects says no")
		}
	}
	redirect(true)
	redirect(false)
	// The ifb was lost and made anew: the filter leads nowhere, and is replaced.
	noErr(t, n.DeleteIFB("ifb0"))
	noErr(t, n.DeleteIFB("ifb0"))
	noErr(t, n.EnsureIFB("ifb0"))
	if must(n.Redirects("dev0", "ifb0"))(t) {
		t.Error("a filter to a device that is gone is taken for one to its successor")
	}
	redirect(true)
	for _, want := range []bool{true, false} {
		if changed := must(n.DeleteRedirect("dev0"))(t); changed != want {
			t.Errorf("DeleteRedirect: changed %t; want %t", changed, want)
		}
	}
	if out := tc(t, n, "filter show dev dev0"); out != "" {
		t.Errorf("after DeleteRedirect tc shows %s", out)
	}
}

func TestIFBLeavesOthersAlone(t *testing.T) {
	n := space(t)
	ip(t, n, "link add dev0 type veth peer name dev1")
	if err := n.EnsureIFB("dev0"); !errors.Is(err, link.ErrLinkExists) {
		t.Errorf("EnsureIFB over a veth: %v; want ErrLinkExists", err)
	}
	if err := n.DeleteIFB("dev0"); err == nil || !strings.Contains(err.Error(), "veth") {
		t.Errorf("DeleteIFB of a veth: %v; want an error that names its type", err)
	}
	if !must(n.LinkExists("dev0"))(t) {
		t.Error("the veth is gone")
	}
}

func TestQdiscOfNothing(t *testing.T) {
	n := space(t)
	_, qdisc := n.Qdisc("dev0")
	_, gate := n.EnsureGate("dev0")
	_, redirects := n.Redirects("dev0", "ifb0")
	for _, err := range []error{qdisc, gate, redirects, n.SetTBF("dev0", TBF{Rate: 1, Burst: 1, Queue: 1}), n.Kick("dev0")} {
		if !errors.Is(err, link.ErrNoLink) || !strings.Contains(err.Error(), "dev0") {
			t.Errorf("%v; want ErrNoLink that names the device", err)
		}
	}
}
