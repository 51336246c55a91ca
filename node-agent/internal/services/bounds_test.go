package services

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// wide is a service with so many ports, and so many endpoints of each.
func wide(namespace, name string, last byte, ports, endpoints int) service.Service {
	s := service.Service{Key: service.Key{Namespace: namespace, Name: name}}
	for p := range ports {
		port := service.Port{VIP: netip.AddrFrom4([4]byte{10, 96, 1, last}), Protocol: service.TCP, Port: uint16(1000 + p)}
		for e := range endpoints {
			port.Endpoints = append(port.Endpoints, service.Endpoint{Address: netip.AddrFrom4([4]byte{203, 0, 113, byte(e)}), Port: uint16(1000 + p)})
		}
		s.Ports = append(s.Ports, port)
	}
	return s
}

// TestBounds: a service, and the services of a namespace, come to no more flows than they may. What is
// there stays, what comes gets what is left, and the rest is told; other namespaces do not notice.
func TestBounds(t *testing.T) {
	b := newBridge(t)
	table := b.table()
	table.room.most, table.room.mostOfNamespace = 1<<15, 1<<16 // fewer than there are, which take the switch long
	told := map[string]int{}
	table.cfg.LeftOut = func(s service.Service, left []service.LeftOut) { told[s.Key.String()] = len(left) }
	if err := b.connect(table); err != nil {
		t.Fatal(err)
	}
	all := map[service.Key]service.Service{}
	served := func(when string, want map[string]int) {
		t.Helper()
		got := map[string]int{}
		for key, p := range table.parts {
			for _, port := range p.service.Ports {
				if len(port.Endpoints) > 0 {
					got[key.String()]++
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: ports with endpoints (-want +got)\n%s", when, diff)
		}
	}
	update := func(isAll bool, some ...service.Service) {
		t.Helper()
		news := map[service.Key]service.Service{}
		for _, s := range some {
			news[s.Key], all[s.Key] = s, s
		}
		u := service.Update{Services: news}
		if isAll {
			u = full(all)
		}
		if err := table.Update(context.Background(), u); err != nil {
			t.Fatal(err)
		}
	}
	// A port with 80 endpoints is 162 flows: 202 of them are one service's.
	update(true, wide("a", "one", 1, 300, 80), wide("b", "web", 9, 10, 80))
	served("one service", map[string]int{"a/one": 202, "b/web": 10})
	if want := 98; told["a/one"] != want || table.LeftOut()[service.TooMany] != want {
		t.Errorf("told %v, counts %v; want %d", told, table.LeftOut(), want)
	}
	update(false, wide("a", "zero", 2, 150, 80))
	update(false, wide("a", "other", 3, 100, 80))
	served("a namespace is full", map[string]int{"a/one": 202, "a/zero": 150, "a/other": 52, "b/web": 10})

	// What is there stays, whatever comes first by name, also where all is computed anew.
	update(false, wide("a", "zero", 2, 200, 80), wide("a", "early", 4, 1, 80))
	served("one grows", map[string]int{"a/one": 202, "a/zero": 150, "a/other": 52, "b/web": 10})
	early := wide("a", "one", 1, 300, 80)
	for i := range early.Ports {
		early.Ports[i].Port -= 50 // half a hundred come before those that are there
	}
	early.Ports = early.Ports[:260]
	update(false, early)
	for _, p := range table.parts[early.Key].service.Ports {
		if p.Port < 1000 && len(p.Endpoints) > 0 {
			t.Errorf("port %d took the place of one that was there", p.Port)
		}
	}
	update(false, wide("a", "one", 1, 300, 80))

	// Who waits gets what becomes free.
	update(false, wide("a", "one", 1, 20, 80))
	served("there is room", map[string]int{"a/one": 20, "a/zero": 200, "a/other": 100, "a/early": 1, "b/web": 10})
	if len(table.left) > 0 || told["a/one"]+told["a/zero"]+told["a/other"]+told["a/early"] > 0 {
		t.Errorf("left out: %d, told %v", len(table.left), told)
	}
	delete(all, service.Key{Namespace: "a", Name: "zero"})
	update(true)
	if diff := cmp.Diff(map[string]int{"a": 121 * 162, "b": 1620}, table.room.taken); diff != "" || len(table.room.short) > 0 {
		t.Errorf("taken (-want +got)\n%s and short %v", diff, table.room.short)
	}
	before := fmt.Sprint(table.room)
	table.mu.Lock()
	table.forget()
	table.mu.Unlock()
	update(true)
	if now := fmt.Sprint(table.room); now != before {
		t.Errorf("computed anew: %s, before %s", now, before)
	}
}

// TestOrdinaryFits: services of an ordinary size get all of their ports, however many there are.
func TestOrdinaryFits(t *testing.T) {
	of := func(name string, ports, endpoints int) service.Service {
		s := service.Service{Key: service.Key{Namespace: "a", Name: name}}
		for p := range ports {
			s.Ports = append(s.Ports, service.Port{Protocol: service.TCP, Port: uint16(1000 + p), Endpoints: make([]service.Endpoint, endpoints)})
		}
		return s
	}
	for name, services := range map[string][]service.Service{
		"10,000 pods with several ports": {of("web", 6, 10_000), of("db", 6, 10_000)},
		"10,000 services": slices.Collect(func(yield func(service.Service) bool) {
			for i := 0; i < 10_000 && yield(of(fmt.Sprint(i), 1, 12)); i++ {
			}
		}),
	} {
		table := &Table{parts: map[service.Key]part{}, room: newRoom()}
		for _, s := range services {
			fits, left := table.fit(s, nil)
			if len(left) > 0 || len(table.room.short) > 0 {
				t.Fatalf("%s: %d endpoints of %v are left out", name, len(left), s.Key)
			}
			table.room.takes(s.Namespace, service.Service{}, fits)
		}
	}
}
