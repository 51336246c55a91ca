package shaping

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// patience is how long a test waits for what should come at once.
const patience = 5 * time.Second

// TCP is held to the rate and fills it.
func TestRate(t *testing.T) {
	const size, rate = 2 << 20, 40_000_000
	p := newPod(t, 1450)
	for _, d := range p.directions() {
		t.Run(d.name, func(t *testing.T) {
			l := d.limit(limits.Limit{Rate: rate})
			p.apply(t, l)
			took := d.transfer(t, size)
			sent := uint64(size)
			burst := shape(limits.Limit{Rate: rate}, 1450).Burst
			least := time.Duration(float64(size-burst) * 8 / rate / 1.02 * float64(time.Second))
			for try := 1; took > 4*least && try < 5; try++ { // a busy machine
				took = d.transfer(t, size)
				sent += size
			}
			c, err := p.Counters(p.wire, l)
			noErr(t, err)
			got := d.count(c)
			if got.Bytes < sent || got.Packets < sent/1450 || got.Delayed == 0 {
				t.Errorf("counters %+v; want %d bytes and more, delayed", got, sent)
			}
			if took < least || took > 4*least {
				t.Errorf("%d bytes took %s; want %s and not much more", size, took, least)
			}
		})
	}
}

// transfer sends size bytes by TCP and returns how long it took.
func (d direction) transfer(t *testing.T, size int64) time.Duration {
	t.Helper()
	listener, err := ns.ListenTCP(d.to.Path(), d.dst+":0")
	noErr(t, err)
	defer listener.Close()
	out, err := ns.DialTCP(d.from.Path(), listener.Addr().String(), patience)
	noErr(t, err)
	in, err := listener.Accept()
	noErr(t, err)
	defer in.Close()
	noErr(t, in.SetDeadline(time.Now().Add(30*time.Second)))
	start, sent := time.Now(), make(chan error, 1)
	go func() {
		_, err := out.Write(make([]byte, size))
		sent <- errors.Join(err, out.Close())
	}()
	n, err := io.Copy(io.Discard, in)
	took := time.Since(start)
	noErr(t, errors.Join(err, <-sent))
	if n != size {
		t.Fatalf("%d of %d bytes arrived", n, size)
	}
	return took
}

// A limit appears, changes and goes under a stream that is slower: nothing is
// lost and nothing comes twice.
func TestChangesLoseNothing(t *testing.T) {
	for _, mtu := range []int{1450, 8950} {
		p := newPod(t, mtu)
		for _, d := range p.directions() {
			s := d.stream(t)
			sent := make(chan error, 1)
			go func() { sent <- s.sendMany(mtu-28, 50e6/8/mtu/2) }()
			for done := false; !done; {
				for _, rate := range []uint64{400e6, 300e6, 1e9, limits.MaxRate, 400e6, 0} {
					p.apply(t, d.limit(limits.Limit{Rate: rate}))
				}
				select {
				case err := <-sent:
					noErr(t, err)
					done = true
				default:
				}
			}
			if missing, twice := s.receive(patience); missing != 0 || twice != 0 {
				t.Errorf("%s, MTU %d: %d of %d datagrams are missing, %d came twice", d.name, mtu, missing, s.sent, twice)
			}
		}
	}
}

// sendMany sends that many datagrams, at some 50 Mbit/s.
func (s *stream) sendMany(size, count int) error {
	tick := time.NewTicker(time.Duration(size) * 8 * time.Second / 50e6)
	defer tick.Stop()
	for range count {
		<-tick.C
		if err := s.send(size); err != nil {
			return err
		}
	}
	return nil
}

// What waits for a slow limit goes at once when the limit goes or is raised, also
// if nothing else is sent: by itself the tbf would wait for 6 s.
func TestWhatWaitedGoes(t *testing.T) {
	p := newPod(t, 1450)
	for _, d := range p.directions() {
		for name, next := range map[string]uint64{"gone": 0, "raised": 100e6} {
			t.Run(d.name+", "+name, func(t *testing.T) {
				slow := d.limit(limits.Limit{Rate: limits.MinRate})
				p.apply(t, slow)
				s := d.stream(t)
				for range 40 {
					noErr(t, s.send(1000))
				}
				c, err := p.Counters(p.wire, slow)
				noErr(t, err)
				if got := d.count(c); got.Backlog < 20_000 || got.Backlog > 35_000 {
					t.Fatalf("at 1 kbit/s after 40 datagrams: %+v; want most of them to wait", got)
				}
				start := time.Now()
				p.apply(t, d.limit(limits.Limit{Rate: next}))
				missing, twice := s.receive(patience)
				if took := time.Since(start); missing != 0 || twice != 0 || took > 5*time.Second {
					t.Errorf("%d of %d datagrams are missing, %d came twice, after %s", missing, s.sent, twice, took)
				}
			})
		}
	}
}

// Every change fills the bucket, so there must be none without a reason.
func TestApplyTwiceChangesNothing(t *testing.T) {
	p := newPod(t, 1450)
	both := limits.Limits{Ingress: limits.Limit{Rate: 1000}, Egress: limits.Limit{Rate: 1000, Burst: 4000}}
	for _, l := range []limits.Limits{{}, both} {
		p.apply(t, l)
		for _, d := range p.directions() {
			s := d.stream(t)
			for range 20 {
				noErr(t, s.send(1000))
			}
		}
		before, err := p.Counters(p.wire, l)
		noErr(t, err)
		p.apply(t, l)
		after, err := p.Counters(p.wire, l)
		noErr(t, err)
		for _, d := range p.directions() {
			// A full bucket is 4000 bytes and more; what the time lets pass is little.
			if passed := d.count(after).Bytes - d.count(before).Bytes; passed > 2000 {
				t.Errorf("%+v, %s: the second Apply let %d bytes pass", l, d.name, passed)
			}
		}
	}
}

// Whatever an interrupted change, or somebody else, has left: Differences names it
// where it matters, and Apply makes it right.
func TestApplyCompletes(t *testing.T) {
	const ifb = "koiabcdef012345"
	limited := limits.Limits{Ingress: limits.Limit{Rate: 10e6}, Egress: limits.Limit{Rate: 20e6}}
	for _, c := range []struct {
		name   string
		before limits.Limits
		spoil  func(t *testing.T, p *pod)
		after  limits.Limits
		same   bool // nothing that Differences names
	}{
		{"an ifb, down", limits.Limits{}, func(t *testing.T, p *pod) { p.ip(t, p.host, "link add "+ifb+" type ifb") }, limited, false},
		{"an ifb, down, to none", limits.Limits{}, func(t *testing.T, p *pod) { p.ip(t, p.host, "link add "+ifb+" type ifb") }, limits.Limits{}, false},
		{"an ifb without its tbf", limited, func(t *testing.T, p *pod) { p.tc(t, p.host, "qdisc del dev "+ifb+" root") }, limited, false},
		{"an ifb set down", limited, func(t *testing.T, p *pod) { p.ip(t, p.host, "link set "+ifb+" down") }, limited, false},
		{"no filter", limited, func(t *testing.T, p *pod) { p.tc(t, p.host, "filter del dev "+p.wire.HostIf) }, limited, false},
		{"no filter, to none", limited, func(t *testing.T, p *pod) { p.tc(t, p.host, "filter del dev "+p.wire.HostIf) }, limits.Limits{}, false},
		{"no ifb", limited, func(t *testing.T, p *pod) { p.ip(t, p.host, "link del "+ifb) }, limited, false},
		{"no ifb, to none", limited, func(t *testing.T, p *pod) { p.ip(t, p.host, "link del "+ifb) }, limits.Limits{}, false},
		{"no gate", limited, func(t *testing.T, p *pod) { p.tc(t, p.host, "qdisc del dev "+p.wire.HostIf+" root") }, limited, false},
		{"not prepared", limits.Limits{}, func(t *testing.T, p *pod) {
			p.tc(t, p.host, "qdisc del dev "+p.wire.HostIf+" root")
			p.tc(t, p.sandbox, "qdisc del dev eth0 root")
		}, limits.Limits{}, true},
		{"the pod removed its tbf", limited, func(t *testing.T, p *pod) { p.tc(t, p.sandbox, "qdisc del dev eth0 root") }, limited, false},
		{"the pod put another there", limited, func(t *testing.T, p *pod) { p.tc(t, p.sandbox, "qdisc replace dev eth0 root handle 8001: pfifo") }, limited, false},
		{"the pod made it faster", limited, func(t *testing.T, p *pod) {
			p.tc(t, p.sandbox, "qdisc change dev eth0 root tbf rate 1gbit burst 100k limit 1m")
		}, limited, false},
		{"another MTU", limited, func(t *testing.T, p *pod) { p.wire.MTU = 1280 }, limited, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPod(t, 1450)
			p.apply(t, c.before)
			c.spoil(t, p)
			if diff, err := p.Differences(p.wire, c.after); err != nil || (len(diff) == 0) != c.same {
				t.Errorf("Differences: %q, %v; want some: %t", diff, err, !c.same)
			}
			p.apply(t, c.after)
			for _, d := range p.directions() {
				s := d.stream(t)
				noErr(t, s.send(1000))
				if missing, _ := s.receive(patience); missing > 0 {
					t.Errorf("%s nothing passes", d.name)
				}
			}
			ok, err := p.host.LinkExists(ifb)
			if err != nil || ok != (c.after.Ingress.Rate != 0) {
				t.Errorf("%s is there: %t, %v", ifb, ok, err)
			}
		})
	}
}

// A pod without a limit may have a qdisc of its own.
func TestThePodsOwnQdiscStays(t *testing.T) {
	p := newPod(t, 1450)
	p.tc(t, p.sandbox, "qdisc replace dev eth0 root pfifo limit 77")
	p.apply(t, limits.Limits{})
	noErr(t, PrepareSandbox(p.sandbox, "eth0"))
	q, err := tc.In(p.sandbox).Qdisc("eth0")
	if err != nil || q.Kind != "pfifo" {
		t.Errorf("the pod's pfifo became %+v, %v", q, err)
	}
}

// Preparing is done before a device is up, and does not touch a limit later.
func TestPrepare(t *testing.T) {
	p := newPod(t, 1450)
	gate, err := tc.In(p.host).Qdisc(p.wire.HostIf)
	noErr(t, err)
	own, err := tc.In(p.sandbox).Qdisc("eth0")
	noErr(t, err)
	if !gate.Gates() || !own.Shapes(unlimited) {
		t.Errorf("prepared are %+v and %+v; want an htb and a tbf without a limit", gate, own)
	}
	l := limits.Limits{Ingress: limits.Limit{Rate: 1e6}, Egress: limits.Limit{Rate: 1e6}}
	p.apply(t, l)
	noErr(t, PrepareHost(p.host, p.wire.HostIf))
	noErr(t, PrepareSandbox(p.sandbox, p.wire.IfName))
	if diff, err := p.Differences(p.wire, l); err != nil || len(diff) > 0 {
		t.Errorf("differences %q, %v", diff, err)
	}
}

func TestSweep(t *testing.T) {
	p := newPod(t, 1450)
	p.apply(t, limits.Limits{Ingress: limits.Limit{Rate: 1e6}})
	for _, name := range []string{"koikept", "koigone1", "koigone2", "other"} {
		p.ip(t, p.host, "link add "+name+" type ifb")
	}
	p.ip(t, p.host, "link add koiveth type veth peer name kother")
	if n, err := p.Sweep(map[string]bool{"kovkept": true}); err != nil || n != 2 {
		t.Errorf("Sweep = %d, %v; want 2", n, err)
	}
	var left []string
	links, err := p.host.Links()
	noErr(t, err)
	for _, l := range links {
		if l.Type == "ifb" || l.Name == "koiveth" {
			left = append(left, l.Name)
		}
	}
	if diff := cmp.Diff([]string{"koiabcdef012345", "koikept", "other", "koiveth"}, left); diff != "" {
		t.Errorf("left differs (-want +got):\n%s", diff)
	}
}

// Of a pod that is gone there is nothing but the ifb to remove.
func TestGone(t *testing.T) {
	p := newPod(t, 1450)
	l := limits.Limits{Ingress: limits.Limit{Rate: 1e6}, Egress: limits.Limit{Rate: 1e6}}
	p.apply(t, l)
	p.ip(t, p.host, "link del "+p.wire.HostIf)
	if err := p.Apply(p.wire, l); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("Apply without devices: %v; want ErrNoLink", err)
	}
	if _, err := p.Differences(p.wire, l); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("Differences without devices: %v; want ErrNoLink", err)
	}
	noErr(t, p.Remove(p.wire.HostIf))
	noErr(t, p.Remove(p.wire.HostIf))
	p.wire.Sandbox = "/run/netns/none"
	if err := p.Apply(p.wire, limits.Limits{}); !errors.Is(err, link.ErrNoSandbox) {
		t.Errorf("Apply without a sandbox: %v; want ErrNoSandbox", err)
	}
	if c, err := p.Counters(p.wire, l); err != nil || c != (Counters{}) {
		t.Errorf("Counters of nothing: %+v, %v; want none", c, err)
	}
}

// A pod that renames its device keeps nobody from mending what it receives.
func TestRenamed(t *testing.T) {
	p := newPod(t, 1450)
	l := limits.Limits{Ingress: limits.Limit{Rate: 1e6}, Egress: limits.Limit{Rate: 1e6}}
	p.apply(t, l)
	p.ip(t, p.sandbox, "link set eth0 down", "link set eth0 name other", "link set other up")
	p.tc(t, p.host, "filter del dev "+p.wire.HostIf)
	for _, want := range []int{1, 0} {
		diff, err := p.Differences(p.wire, l)
		if len(diff) != want || !errors.Is(err, link.ErrNoLink) {
			t.Errorf("Differences: %q, %v; want %d and ErrNoLink", diff, err, want)
		}
		if err := p.Apply(p.wire, l); !errors.Is(err, link.ErrNoLink) {
			t.Errorf("Apply: %v; want ErrNoLink", err)
		}
	}
}
