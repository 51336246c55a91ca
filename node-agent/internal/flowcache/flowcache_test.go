package flowcache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// fakeSwitch is one with such a cache; it counts how often its flows are listed.
type fakeSwitch struct {
	cache  ovs.FlowCache
	err    error
	ports  map[string]uint64
	listed int
}

func (f *fakeSwitch) FlowCache(context.Context, string) (ovs.FlowCache, error) {
	return f.cache, f.err
}

func (f *fakeSwitch) FlowsByPort(context.Context, string) (map[string]uint64, error) {
	f.listed++
	return f.ports, nil
}

// A pod that fills the cache again and again has its flows listed, and people told, once in ten minutes; the
// status says it all the while, with the ports of the last list.
func TestWatchIsNotKeptBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		sw := &fakeSwitch{ports: map[string]uint64{"kov1": 9000}}
		told := 0
		w := New(Config{
			Switch: sw, Pods: pods{}, Tell: func(string) { told++ },
			Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		floods := 0
		for began := time.Now(); time.Since(began) < time.Hour; floods++ {
			sw.cache = ovs.FlowCache{Flows: 9000, Limit: 10_000}
			for range fullLooks {
				time.Sleep(lookEvery)
				w.look(t.Context())
			}
			if !strings.Contains(w.Why(), "9000 from port kov1") {
				t.Fatalf("after %s the status says %q", time.Since(began), w.Why())
			}
			sw.cache.Flows = 8999
			time.Sleep(lookEvery)
			w.look(t.Context())
		}
		if sw.listed > 6 || told > 6 || sw.listed < 5 || told < 5 {
			t.Errorf("%d floods within an hour: listed %d times, told %d times; want 6", floods, sw.listed, told)
		}
		if n := strings.Count(log.String(), "\n"); n > 12 {
			t.Errorf("%d lines in the log:\n%s", n, &log)
		}
	})
}

type pods []attach.Attachment

func (p pods) List() []attach.Attachment { return p }

// A cache that stays full is told once, with the pods whose ports have most flows; one that is full for a
// moment is not. Flows are listed only then, and only where there are not too many.
func TestWatch(t *testing.T) {
	var log bytes.Buffer
	red := attach.Attachment{Attachment: cniapi.Attachment{ContainerID: "c1", IfName: "eth0"}, Namespace: "red", Pod: "a"}
	sw := &fakeSwitch{ports: map[string]uint64{red.HostIf(): 9000, "vxlan0": 20, "tun0": 10, "kovother": 5}}
	var told []string
	w := New(Config{
		Switch: sw, Pods: pods{red}, Tell: func(why string) { told = append(told, why) },
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	looks := func(flows, limit uint64, n int) {
		sw.cache = ovs.FlowCache{Flows: flows, Limit: limit}
		for range n {
			w.look(t.Context())
		}
	}
	looks(8999, 10_000, 10)
	looks(9000, 10_000, fullLooks-1)
	looks(8999, 10_000, 1)
	looks(9000, 10_000, fullLooks-1)
	if sw.listed > 0 || w.Why() != "" || len(told) > 0 {
		t.Errorf("flows were listed %d times, told was %q, the status says %q", sw.listed, told, w.Why())
	}
	looks(9000, 10_000, 10)
	if sw.listed != 1 || len(told) != 1 || w.Why() != told[0] {
		t.Fatalf("flows were listed %d times, told was %q, the status says %q", sw.listed, told, w.Why())
	}
	for _, part := range []string{"9000 of 10000 flows, no room for 0 packets'", "9000 from port " + red.HostIf() + " of pod red/a, 20 from port vxlan0, 10 from port tun0;", "flow-limit"} {
		if !strings.Contains(told[0], part) {
			t.Errorf("no %q in %q", part, told[0])
		}
	}
	sw.err = errors.New("no ovs-vswitchd")
	looks(0, 0, 3)
	if w.Why() == "" || strings.Count(log.String(), "no ovs-vswitchd") != 1 {
		t.Errorf("while the switch is away the status says %q, and the log\n%s", w.Why(), log.String())
	}
	sw.err = nil
	looks(10, 10_000, 1)
	if w.Why() != "" {
		t.Errorf("when there is room again the status says %q", w.Why())
	}
	looks(200_000, 200_000, fullLooks)
	if sw.listed != 1 || !strings.Contains(w.Why(), "dump-flows") {
		t.Errorf("flows were listed %d times, the status says %q", sw.listed, w.Why())
	}
}

// A cache that overflows so fast that Open vSwitch empties it is full, whatever is in it when it is looked at. A
// counter that is high from before, or begins anew, tells nothing.
func TestWatchOverflow(t *testing.T) {
	sw := &fakeSwitch{ports: map[string]uint64{"kov1": 12}}
	w := New(Config{
		Switch: sw, Pods: pods{}, Tell: func(string) {}, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
	})
	refused := func(n ...uint64) string {
		for _, n := range n {
			sw.cache = ovs.FlowCache{Flows: 12, Limit: 2000, Refused: n}
			w.look(t.Context())
		}
		return w.Why()
	}
	if why := refused(5_000_000, 5_000_999, 5_001_998, 5_002_997, 10, 20, 30); why != "" {
		t.Errorf("a cache with room is said to be full: %s", why)
	}
	if why := refused(1030, 2030, 3030); !strings.Contains(why, "12 of 2000 flows, no room for 1000 packets'") || !strings.Contains(why, "12 from port kov1") {
		t.Errorf("a cache that overflows is not said to be full: %q", why)
	}
	if why := refused(4029); why != "" {
		t.Errorf("one that has room again is said to be full: %s", why)
	}
}
