package hostnet

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestJudgeTells: who asked for it hears of requests and answers that are dropped, with the addresses that they end at;
// of a pod that sends much it hears a part, and of others all the same. Nobody else can hear them meanwhile.
func TestJudgeTells(t *testing.T) {
	l := newJudgeLab(t)
	told := make(chan DroppedPacket, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	l.ok(l.judge.TellDropped(ctx, func(p DroppedPacket) { told <- p }, slog.Default()))
	another, err := NewJudge(l.ns)
	l.ok(err)
	if err := another.TellDropped(ctx, func(DroppedPacket) {}, slog.Default()); err == nil {
		t.Error("another hears what the first is told")
	}
	hears := func(what string, protocol uint8, from, to string) {
		t.Helper()
		for {
			select {
			case p := <-told:
				if p.Protocol == protocol && (p.From.String() == from || p.From.Addr().String() == from) && (p.To.String() == to || p.To.Addr().String() == to) {
					return
				}
			case <-time.After(patience):
				t.Fatalf("%s is not told", what)
			}
		}
	}
	l.set()
	l.asks("172.11.0.5", 80)
	hears("a request", 6, "172.11.0.5", "198.18.0.1:8080")
	l.asks("172.11.0.5", 81)
	hears("a request to the node", 6, "172.11.0.5", "198.18.0.7:8080")

	l.set(l.allow("198.18.0.0/24"))
	e := l.openUDP()
	if !e.ask() {
		t.Fatal("what is allowed does not pass")
	}
	l.set()
	e.answer()
	hears("an answer", 17, "198.18.0.1:8080", "172.11.0.5")

	both := l.senders()
	both.Reach[netip.MustParseAddr("172.11.0.6")] = both.Reach[l.five]
	l.ok(l.judge.Set(t.Context(), both))
	before, err := l.judge.Total(t.Context())
	l.ok(err)
	const sent = 500
	l.ok(ns.Do(l.pods, func() error {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: l.five.AsSlice()}}).Dial("udp4", "10.96.0.10:53")
		for range sent {
			if err == nil {
				_, err = c.Write([]byte("x"))
			}
		}
		return err
	}))
	l.asks("172.11.0.6", 80)
	flood := 0
	for heard := false; !heard; {
		select {
		case p := <-told:
			if p.From.Addr() == l.five {
				flood++
			}
			heard = p.From.Addr() == netip.MustParseAddr("172.11.0.6")
		case <-time.After(patience):
			t.Fatal("beside a pod that sends much another's packet is not told")
		}
	}
	after, err := l.judge.Total(t.Context())
	l.ok(err)
	if after-before < sent || flood == 0 || flood > sent/2 {
		t.Errorf("of %d packets %d were counted and %d told", sent, after-before, flood)
	}

	// One that starts anew hears as well, and one that does not ask for it leaves nothing that tells.
	cancel()
	again, err := NewJudge(l.ns)
	l.ok(err)
	for l.judge = again; ; time.Sleep(10 * time.Millisecond) { // until the group is free
		if err = again.TellDropped(t.Context(), func(p DroppedPacket) { told <- p }, slog.Default()); err == nil || t.Context().Err() != nil {
			break
		}
	}
	l.set()
	l.asks("172.11.0.5", 80)
	hears("a request", 6, "172.11.0.5", "198.18.0.1:8080")
	if l.judge, err = NewJudge(l.ns); err != nil {
		t.Fatal(err)
	}
	l.set()
	if l.asks("172.11.0.5", 80) {
		t.Error("without telling it drops nothing")
	}
}

func TestReadDropped(t *testing.T) {
	tcp := []byte{0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 172, 11, 0, 5, 198, 18, 0, 1, 0xde, 0x2a, 0x1f, 0x90}
	with := func(change func(b []byte)) []byte {
		b := append([]byte(nil), tcp...)
		change(b)
		return b
	}
	for name, tt := range map[string]struct {
		packet   []byte
		from, to string
		ok       bool
	}{
		"TCP":                   {tcp, "172.11.0.5:56874", "198.18.0.1:8080", true},
		"later fragment":        {with(func(b []byte) { b[7] = 1 }), "172.11.0.5:0", "198.18.0.1:0", true},
		"ICMP":                  {with(func(b []byte) { b[9] = 1 }), "172.11.0.5:0", "198.18.0.1:0", true},
		"no ports":              {tcp[:20], "172.11.0.5:0", "198.18.0.1:0", true},
		"options cut off":       {with(func(b []byte) { b[0] = 0x4f }), "172.11.0.5:0", "198.18.0.1:0", true},
		"header shorter than 5": {with(func(b []byte) { b[0] = 0x40 }), "172.11.0.5:0", "198.18.0.1:0", true},
		"IPv6":                  {with(func(b []byte) { b[0] = 0x60 }), "", "", false},
		"short":                 {tcp[:19], "", "", false},
		"nothing":               {nil, "", "", false},
	} {
		p, ok := readDropped(tt.packet)
		if ok != tt.ok || ok && (p.From.String() != tt.from || p.To.String() != tt.to) {
			t.Errorf("%s: %v, %t", name, p, ok)
		}
	}
}
