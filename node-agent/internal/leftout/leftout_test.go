package leftout

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// told hears Events.
type told struct{ events *[]string }

func (t told) Event(ref kube.ObjectRef, warning bool, reason kube.EventReason, message string) {
	*t.events = append(*t.events, fmt.Sprint(ref, warning, reason, message))
}

// TestLeftOutSaid: every node logs what is left out, and one of them, not always the
// same, sends the Event.
func TestLeftOutSaid(t *testing.T) {
	var nodes []netip.Addr
	for i := range 20 {
		nodes = append(nodes, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
	}
	senders := map[netip.Addr]bool{}
	for i := range 10 {
		s := service.Service{Key: service.Key{Namespace: "a", Name: fmt.Sprint("web-", i)}, UID: "u"}
		left := []service.LeftOut{
			{Protocol: service.TCP, Endpoint: service.Endpoint{Address: netip.MustParseAddr("127.0.0.1"), Port: 80}, Reason: service.Loopback},
			{Protocol: service.TCP, Endpoint: service.Endpoint{Address: netip.MustParseAddr("127.0.0.2"), Port: 80}, Reason: service.Loopback},
		}
		var events []string
		for _, self := range nodes {
			var log bytes.Buffer
			l := Sayer{Events: told{events: &events}, Self: self, Logger: slog.New(slog.NewTextHandler(&log, nil)), Peers: func() []pipeline.Peer {
				var peers []pipeline.Peer
				for _, n := range slices.Backward(nodes) {
					if n != self {
						peers = append(peers, pipeline.Peer{VTEP: n})
					}
				}
				return peers
			}}
			before := len(events)
			l.Say(s, left)
			if len(events) > before {
				senders[self] = true
			}
			if text := log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "service="+s.Name) || !strings.Contains(text, "TCP 127.0.0.1:80 (loopback)") {
				t.Errorf("%v logs %q", self, text)
			}
			l.Say(s, nil)
		}
		want := fmt.Sprint(kube.ObjectRef{Kind: "Service", Namespace: "a", Name: s.Name, UID: "u"}, true, "EndpointsLeftOut", "endpoint TCP 127.0.0.1:80 (loopback) is left out: no pod is sent there, nor to 1 more")
		if len(events) != 1 || events[0] != want {
			t.Errorf("events %q, want one: %q", events, want)
		}
	}
	if len(senders) < 3 {
		t.Errorf("the same %d nodes send all Events", len(senders))
	}
}

// TestTooManySaid: an Event about what there was no room for says how much there is, and what to do.
func TestTooManySaid(t *testing.T) {
	var events []string
	l := Sayer{Events: told{events: &events}, Logger: slog.New(slog.DiscardHandler), Peers: func() []pipeline.Peer { return nil }}
	at := service.Endpoint{Address: netip.MustParseAddr("192.0.2.1"), Port: 80}
	l.Say(service.Service{Key: service.Key{Namespace: "a", Name: "web"}}, []service.LeftOut{{Protocol: service.TCP, Endpoint: at, Reason: service.TooMany}})
	if len(events) != 1 || !strings.Contains(events[0], "all endpoints of port TCP 192.0.2.1:80 (too-many)") || !strings.Contains(events[0], fmt.Sprintf("one service may come to %d flows, and those of a namespace to %d: give it fewer ports or endpoints", service.MostFlows, service.MostFlowsOfNamespace)) {
		t.Errorf("events %q", events)
	}
}
