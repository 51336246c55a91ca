package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func TestSnapshot(t *testing.T) {
	e, s := network(t)
	e.Put(key("a"), `{"NetName":"a","NetID":300924,"Action":"","Namespace":"","Effective":300924}`)
	e.Put(key("broken"), `{"NetName":`)
	e.Put(DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"172.11.0.0/22","Assign":false}`)
	e.Put(DefaultPrefix+"/k8ssdn/subnets/198.18.0.199", `{"Host":"n2","HostIP":"198.18.0.1","Subnet":"","Assign":true}`)
	e.Put(DefaultPrefix+"/other/netnamespaces/b", `{"NetName":"b","NetID":12}`)
	got, revs, err := s.Snapshot(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	id, eff, ip := int64(300924), netid.ID(300924), netip.MustParseAddr("198.18.0.1")
	want := topology.Snapshot{
		Revision: 7, Config: topology.DefaultConfig(),
		Nodes:      map[netip.Addr]topology.Node{ip: {Host: "n1", HostIP: ip, Subnet: netip.MustParsePrefix("172.11.0.0/22")}},
		Namespaces: map[string]topology.Namespace{"a": {NetName: "a", NetID: &id, Effective: &eff}},
		Invalid: map[string]string{
			"netnamespaces/broken": "namespace record broken is not valid JSON of its form: unexpected end of JSON input",
			"subnets/198.18.0.199": "node record 198.18.0.199: HostIP is 198.18.0.1; it must be the address in the key",
		},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
	wantRevs := Revs{
		Config: 2, Nodes: map[netip.Addr]Rev{ip: {5, 5}}, Namespaces: map[string]Rev{"a": {3, 3}},
		Invalid: map[string]Raw{
			"netnamespaces/broken": {Key: "broken", Value: []byte(`{"NetName":`), Rev: Rev{4, 4}},
			"subnets/198.18.0.199": {Node: true, Key: "198.18.0.199", Value: []byte(`{"Host":"n2","HostIP":"198.18.0.1","Subnet":"","Assign":true}`), Rev: Rev{6, 6}},
		},
	}
	if diff := cmp.Diff(wantRevs, revs, byValue); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
}

func TestSnapshotWithoutConfig(t *testing.T) {
	e, s := network(t)
	e.Put(DefaultPrefix+"/config", `{"Name":"k8ssdn"}`)
	if _, _, err := s.Snapshot(ctxOf(t)); !errors.Is(err, ErrInvalid) {
		t.Errorf("invalid configuration: %v, want ErrInvalid", err)
	}
	if _, err := s.connectOrDie(t).Delete(ctxOf(t), DefaultPrefix+"/config"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Snapshot(ctxOf(t)); !errors.Is(err, ErrNoConfig) || !errors.Is(err, ErrNotFound) {
		t.Errorf("no configuration: %v, want ErrNoConfig", err)
	}
}

func TestWatch(t *testing.T) {
	e, s := network(t)
	ch := s.WatchRecords(ctxOf(t))
	first := until(t, ch, "the first snapshot", func(Records) bool { return true })
	if len(first.Namespaces) != 0 || first.Revision != 2 {
		t.Errorf("first snapshot %+v", first.Snapshot)
	}
	e.Put(key("a"), nsRecord("a", 100))
	e.Put(DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"172.11.0.0/22"}`)
	e.Put(key("a"), nsRecord("a", 101))
	r := until(t, ch, "the third change", func(r Records) bool { return r.Revision >= 5 })
	if !has(r.Snapshot, "a", 101) || len(r.Nodes) != 1 || r.Revs.Namespaces["a"] != (Rev{Mod: 5, Create: 3}) {
		t.Errorf("snapshot %+v", r)
	}
	// A record that breaks leaves the others; mended it is back; deleted it is gone
	// (the first k8s-ovs took the whole key for the name and missed all deletions).
	e.Put(key("a"), `{"NetName":"b"}`)
	until(t, ch, "the broken record", func(r Records) bool {
		return len(r.Namespaces) == 0 && r.Invalid["netnamespaces/a"] != "" && len(r.Nodes) == 1
	})
	e.Put(key("a"), nsRecord("a", 102))
	until(t, ch, "the mended record", func(r Records) bool {
		return has(r.Snapshot, "a", 102) && len(r.Invalid) == 0 && len(r.Revs.Invalid) == 0
	})
	if err := s.DeleteNamespace(ctxOf(t), "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteNode(ctxOf(t), netip.MustParseAddr("198.18.0.1")); err != nil {
		t.Fatal(err)
	}
	until(t, ch, "the deletions", func(r Records) bool {
		return len(r.Namespaces) == 0 && len(r.Nodes) == 0 && len(r.Revs.Namespaces) == 0 && len(r.Revs.Nodes) == 0
	})
}

// A change of one kind alone moves Revision on: netns waits for that. Etcd says
// how far its watches are; nothing had to be listed anew to find out.
func TestWatchRevisionOfOneKind(t *testing.T) {
	e, s := network(t)
	ch := s.WatchRecords(ctxOf(t))
	for n := range 20 {
		e.Put(key("a"), nsRecord("a", 100+n))
		r := until(t, ch, "the revision of the change", func(r Records) bool { return r.Revision >= int64(3+n) && has(r.Snapshot, "a", int64(100+n)) })
		if r.Listing != 1 {
			t.Fatalf("change %d came with listing %d", n, r.Listing)
		}
	}
}

// What a snapshot says of its revision is true: every change up to it is in it.
func TestWatchRevisionIsWhole(t *testing.T) {
	_, s := network(t)
	ctx, cancel := context.WithCancel(ctxOf(t))
	c := s.connectOrDie(t)
	ch := s.WatchRecords(ctx)
	until(t, ch, "the first snapshot", func(Records) bool { return true })
	const changes = 400
	go func() {
		for n := range changes {
			// Both kinds in turn; revision n+3 has value n.
			if n%2 == 0 {
				_, _ = c.Put(ctx, key("a"), nsRecord("a", 100+n))
			} else {
				_, _ = c.Put(ctx, DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", fmt.Sprintf(`{"Host":"n%d","HostIP":"198.18.0.1"}`, n))
			}
		}
	}()
	snapshots := 0
	until(t, ch, "the last change", func(r Records) bool {
		snapshots++
		newest := r.Revision - 3
		if newest < 0 {
			return false // the first listing anew
		}
		ns, node := newest-newest%2, newest-(newest+1)%2
		if *r.Namespaces["a"].NetID < 100+ns {
			t.Errorf("revision %d without namespace change %d: %d", r.Revision, ns, *r.Namespaces["a"].NetID-100)
		}
		if node >= 0 {
			var got int64
			if _, err := fmt.Sscanf(r.Nodes[netip.MustParseAddr("198.18.0.1")].Host, "n%d", &got); err != nil || got < node {
				t.Errorf("revision %d without node change %d: %d", r.Revision, node, got)
			}
		}
		return newest >= changes-1
	})
	t.Logf("%d changes came as %d snapshots", changes, snapshots)
	cancel()
	for range ch {
	}
}

// A slow reader gets the newest, not a backlog, and the watch does not wait for it.
func TestWatchCoalesces(t *testing.T) {
	_, s := network(t)
	ch := s.Watch(ctxOf(t))
	until(t, ch, "the first snapshot", func(topology.Snapshot) bool { return true })
	c := s.connectOrDie(t)
	const changes = 300
	for n := range changes {
		if _, err := c.Put(ctxOf(t), key(fmt.Sprintf("ns%d", n)), nsRecord(fmt.Sprintf("ns%d", n), 100+n)); err != nil {
			t.Fatal(err)
		}
	}
	reads := 0
	until(t, ch, "all changes", func(s topology.Snapshot) bool {
		reads++
		// The reader is slow: by the time it reads again much has happened.
		eventually(t, "more to come", func() bool { return len(ch) > 0 || len(s.Namespaces) == changes })
		return len(s.Namespaces) == changes
	})
	if reads > changes/2 {
		t.Errorf("%d reads for %d changes: they were queued", reads, changes)
	}
}

// Who only reads gets many changes at once where they come fast and there are many records, since each time
// costs as much as there are: but all of them, and one alone at once.
func TestWatchSpaces(t *testing.T) {
	_, s := network(t)
	const records, changes = 4000, 300
	const spacing = records * snapshotSpacing
	c, ctx := s.connectOrDie(t), ctxOf(t)
	var puts []clientv3.Op
	for i := range records {
		name := fmt.Sprintf("ns%d", i)
		puts = append(puts, clientv3.OpPut(key(name), nsRecord(name, 100+i)))
	}
	for some := range slices.Chunk(puts, 100) {
		if _, err := c.Txn(ctx).Then(some...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	ch := s.Watch(ctx)
	until(t, ch, "all records", func(s topology.Snapshot) bool { return len(s.Namespaces) == records })
	time.Sleep(spacing)
	began := time.Now()
	put := make(chan error, 1)
	go func() {
		for i := range changes {
			if _, err := c.Put(ctx, key("ns0"), nsRecord("ns0", 20000+i)); err != nil {
				put <- err
				return
			}
		}
		put <- nil
	}()
	got := 0
	until(t, ch, "the last change", func(s topology.Snapshot) bool { got++; return has(s, "ns0", 20000+changes-1) })
	if most := int(time.Since(began)/spacing) + 2; got > most {
		t.Errorf("%d changes came in %d snapshots within %s, want %d at most", changes, got, time.Since(began), most)
	}
	if err := <-put; err != nil {
		t.Error(err)
	}
}

// FollowRecords has read all when it returns, or says why it could not, and goes on like any watch.
func TestFollowRecords(t *testing.T) {
	e, s := network(t)
	e.Put(key("a"), nsRecord("a", 100))
	ch, err := s.FollowRecords(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-ch:
		if !has(r.Snapshot, "a", 100) || r.Revs.Namespaces["a"].Mod != 3 {
			t.Errorf("the first value is %+v", r)
		}
	default:
		t.Error("there is no value yet")
	}
	e.Put(key("a"), nsRecord("a", 101))
	until(t, ch, "a change", func(r Records) bool { return has(r.Snapshot, "a", 101) })
	e.Stop()
	e.Restart()
	e.Put(key("a"), nsRecord("a", 102))
	until(t, ch, "a change after etcd was away", func(r Records) bool { return has(r.Snapshot, "a", 102) })

	e.Put(DefaultPrefix+"/config", "{")
	if _, err := s.FollowRecords(ctxOf(t)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a configuration that does not parse: %v, want ErrInvalid", err)
	}
	e.Stop()
	brief, cancel := context.WithTimeout(ctxOf(t), time.Second)
	defer cancel()
	if _, err := s.FollowRecords(brief); !errors.Is(err, ErrUnavailable) {
		t.Errorf("etcd is away: %v, want ErrUnavailable", err)
	}
}

func TestWatchWaitsForConfig(t *testing.T) {
	e, s := network(t)
	if _, err := s.connectOrDie(t).Delete(ctxOf(t), DefaultPrefix+"/config"); err != nil {
		t.Fatal(err)
	}
	ch := s.Watch(ctxOf(t))
	eventually(t, "unhealthy without configuration", func() bool { return errors.Is(s.Healthy(), ErrNoConfig) })
	e.Put(DefaultPrefix+"/config", `{"Name":"x"}`)
	eventually(t, "unhealthy with an invalid one", func() bool { return errors.Is(s.Healthy(), ErrInvalid) })
	if _, err := s.connectOrDie(t).Delete(ctxOf(t), DefaultPrefix+"/config"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	until(t, ch, "the first snapshot", func(s topology.Snapshot) bool { return s.Config.Name == "k8ssdn" })
	eventually(t, "healthy", func() bool { return s.Healthy() == nil })
	// Another network: its records, and none of the old one's.
	e.Put(key("a"), nsRecord("a", 100))
	until(t, ch, "a namespace", func(s topology.Snapshot) bool { return has(s, "a", 100) })
	e.Put(DefaultPrefix+"/other/netnamespaces/b", nsRecord("b", 200))
	e.Put(DefaultPrefix+"/config", `{"Name":"other","Network":"172.12.0.0/16","HostSubnetLength":8,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-subnet"}`)
	until(t, ch, "the other network", func(s topology.Snapshot) bool {
		return s.Config.Name == "other" && has(s, "b", 200) && len(s.Namespaces) == 1
	})
}

func TestWatchEnds(t *testing.T) {
	_, s := network(t)
	ctx, cancel := context.WithCancel(ctxOf(t))
	ch := s.Watch(ctx)
	cancel()
	drained(t, ch)
	ch = s.Watch(ctxOf(t))
	until(t, ch, "the first snapshot", func(topology.Snapshot) bool { return true })
	s.Close()
	drained(t, ch)
	if _, _, err := s.Snapshot(ctxOf(t)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

func drained[T any](t *testing.T, ch <-chan T) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-timeout:
			t.Fatal("the channel was not closed")
		}
	}
}

// Failure 19: changes made while this node was cut off, and compacted before it
// was back, are seen: also deletions and changes within a record.
func TestWatchSurvivesCompaction(t *testing.T) {
	for name, cut := range map[string]func(*link) (heal func()){
		"connection refused": (*link).cut,
		"silence":            (*link).freeze,
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := network(t)
			l := newLink(t, strings.TrimPrefix(e.Endpoints[0], "unix://"))
			s, err := Open(Config{Endpoints: []string{"unix://" + l.path}, DialTimeout: time.Second, Logger: testLogger(t)})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, ns := range []string{"gone", "changed", "same"} {
				e.Put(key(ns), nsRecord(ns, 100))
			}
			ch := s.Watch(ctxOf(t))
			until(t, ch, "the first snapshot", func(s topology.Snapshot) bool { return len(s.Namespaces) == 3 })
			heal := cut(l)
			eventually(t, "unhealthy", func() bool { return errors.Is(s.Healthy(), ErrUnavailable) })
			c := e.Client()
			if _, err := c.Delete(ctxOf(t), key("gone")); err != nil {
				t.Fatal(err)
			}
			e.Put(key("changed"), nsRecord("changed", 200))
			e.Put(key("new"), nsRecord("new", 300))
			r, err := c.Get(ctxOf(t), "x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Compact(ctxOf(t), r.Header.Revision); err != nil {
				t.Fatal(err)
			}
			heal()
			until(t, ch, "all changes", func(s topology.Snapshot) bool {
				return len(s.Namespaces) == 3 && has(s, "changed", 200) && has(s, "new", 300) && has(s, "same", 100)
			})
			eventually(t, "healthy", func() bool { return s.Healthy() == nil })
		})
	}
}

// A watch that begins at a compacted revision is begun anew. The follower is
// made to believe in an old revision; etcd answers that it is compacted.
func TestFollowerListsAnewWhenCompacted(t *testing.T) {
	e, s := network(t)
	for n := range 10 {
		e.Put(key("a"), nsRecord("a", 100+n))
	}
	c := s.connectOrDie(t)
	if _, err := c.Compact(ctxOf(t), 10); err != nil {
		t.Fatal(err)
	}
	l, err := s.list(ctxOf(t), recordKinds...)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{store: s, kinds: recordKinds, sink: &recordSink{keys: s.keys, out: make(latest[Records], 1)}, id: s.health.join(nil)}
	f.start(l)
	f.sink.reset(l)
	f.seen = 3
	err = f.watch(ctxOf(t), c, nil)
	if err == nil || readable(err) == "" || !contains(err.Error(), "compacted") {
		t.Errorf("watch from a compacted revision ended with %v", err)
	}
}

// etcd restored from an older backup: what was undone there is undone here,
// although its revisions are lower than those seen.
func TestWatchSurvivesRestore(t *testing.T) {
	e, s := network(t)
	e.Put(key("a"), nsRecord("a", 100))
	ch := s.WatchRecords(ctxOf(t))
	first := until(t, ch, "the first snapshot", func(r Records) bool { return has(r.Snapshot, "a", 100) })
	e.Stop()
	restore := e.Save()
	e.Restart()
	for n := range 5 {
		e.Put(key("a"), nsRecord("a", 200+n))
	}
	e.Put(key("b"), nsRecord("b", 300))
	before := until(t, ch, "later changes", func(r Records) bool { return has(r.Snapshot, "a", 204) && has(r.Snapshot, "b", 300) })
	e.Stop()
	restore()
	e.Restart()
	after := until(t, ch, "the restored records", func(r Records) bool { return has(r.Snapshot, "a", 100) && len(r.Namespaces) == 1 })
	if after.Revision >= before.Revision || after.Listing <= before.Listing || before.Listing <= first.Listing {
		t.Errorf("revisions %d, then %d; listings %d, %d, %d", before.Revision, after.Revision, first.Listing, before.Listing, after.Listing)
	}
	// And it is followed from there.
	e.Put(key("c"), nsRecord("c", 400))
	until(t, ch, "a change after that", func(r Records) bool { return has(r.Snapshot, "c", 400) })
	// Another etcd at the same address, empty.
	e.Stop()
	e.Wipe()
	e.Restart()
	eventually(t, "unhealthy: no configuration", func() bool { return errors.Is(s.Healthy(), ErrNoConfig) })
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	until(t, ch, "the empty network", func(r Records) bool { return len(r.Namespaces) == 0 })
}

// Stops of etcd at any time lose nothing in the end.
func TestWatchSurvivesStops(t *testing.T) {
	e, s := network(t)
	ch := s.Watch(ctxOf(t))
	for round := range 3 {
		e.Put(key("a"), nsRecord("a", 100+round))
		until(t, ch, fmt.Sprintf("round %d", round), func(s topology.Snapshot) bool { return has(s, "a", int64(100+round)) })
		e.Stop()
		eventually(t, "unhealthy", func() bool { return errors.Is(s.Healthy(), ErrUnavailable) })
		e.Restart()
		eventually(t, "healthy", func() bool { return s.Healthy() == nil })
	}
}
