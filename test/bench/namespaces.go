package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

const (
	// manyNamespaces come at once.
	manyNamespaces     = 10000
	manyNamespacesText = "10,000 new namespaces at once"
	// putsAtOnce are in one transaction; etcd takes 128 operations by default.
	putsAtOnce = 100
	// newcomerPrefix begins the names of namespaces that come at once.
	newcomerPrefix = "newcomer"
	// asking is the namespace that a person changes meanwhile.
	asking = "asking"
)

// flock is many namespaces that come at once, in a lab of its own: their records would
// stand in the way of what is measured in the other one later.
type flock struct {
	lab  *netlab.Lab
	node netlab.Node
	records
	// written says when a request is in the record of asking, and changes when that has
	// another netID, as seen from node.
	written, changes <-chan time.Time
}

// newNamespaces measures how long it takes until the last of many namespaces that come at
// once has its first netID, and how long what a person asks for meanwhile takes.
func newNamespaces(ctx context.Context, b *bench) (err error) {
	lab, err := netlab.Up(ctx, netlab.Options{
		Name: fmt.Sprintf("bench-%d-many", os.Getpid()), Nodes: 2, BinDir: b.bin, Datapath: "netdev",
		AgentArgs: []string{"--log-level", "info"}, ControllerArgs: []string{"--log-level", "info"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Down()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, err := newFlock(ctx, lab)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var given []time.Duration
	var carriedOut, byController, told []time.Duration
	for range b.times(7, 2) {
		took, waits, err := f.come(ctx)
		if err != nil {
			return err
		}
		given = append(given, took)
		for _, w := range waits {
			carriedOut, byController, told = append(carriedOut, w.carriedOut), append(byController, w.byController), append(told, w.told)
		}
		if err := f.leave(ctx); err != nil {
			return err
		}
	}
	g, c, w, o := milliseconds(given), milliseconds(carriedOut), milliseconds(byController), milliseconds(told)
	const meanwhile = "`netns join` and `netns isolate` meanwhile"
	b.add(
		measured("new_namespaces_median", manyNamespacesText+", from the first record to the last one's netID, median", "ms", median, g, oursAtMost(5000)),
		measured("new_namespaces_max", manyNamespacesText+", from the first record to the last one's netID, longest", "ms", longest, g, nil),
		measured("new_namespaces_join_median", meanwhile+", until the controller has carried it out, median", "ms", median, c, nil),
		measured("new_namespaces_join_p99", meanwhile+", until the controller has carried it out, p99", "ms", rank(0.99), c, oursAtMost(1000)),
		measured("new_namespaces_join_controller_p99", "of it from when the request is in its record, p99", "ms", rank(0.99), w, nil),
		measured("new_namespaces_join_nodes_p99", meanwhile+", until all nodes have it, p99", "ms", rank(0.99), o, nil),
	)
	return nil
}

// newFlock makes the namespaces that a person asks about.
func newFlock(ctx context.Context, lab *netlab.Lab) (*flock, error) {
	node, err := lab.Node("n1")
	if err != nil {
		return nil, err
	}
	client, err := lab.Etcd()
	if err != nil {
		return nil, err
	}
	f := &flock{lab: lab, node: node, records: records{client}}
	for _, name := range []string{asking, still} {
		if _, err := f.put(ctx, "netnamespaces", name, topology.Namespace{NetName: name}); err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
	err = f.waitApplied(ctx, node, []string{asking, still}, func(ids map[netid.ID]int) bool { return len(ids) == 2 })
	if err == nil {
		f.written = f.requests(ctx)
		f.changes, err = recordEvents(ctx, lab, node, asking)
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return f, nil
}

// requests says when somebody has asked for something in the record of asking.
func (f *flock) requests(ctx context.Context) <-chan time.Time {
	out := make(chan time.Time, 64)
	go func() {
		defer close(out)
		for resp := range f.Watch(ctx, key("netnamespaces", asking)) {
			now := time.Now()
			for _, e := range resp.Events {
				if n, err := topology.ParseNamespace(asking, e.Kv.Value); err == nil && n.Action != topology.None {
					out <- now
				}
			}
		}
	}()
	return out
}

// come has the namespaces come, and returns how long it took until all had netIDs, and
// how long each request took that a person made meanwhile.
func (f *flock) come(ctx context.Context) (time.Duration, []requestTimes, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now, err := f.Get(ctx, key("netnamespaces", newcomerPrefix), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, nil, err
	}
	if now.Count > 0 {
		return 0, nil, fmt.Errorf("%d namespaces are there before they come", now.Count)
	}
	watch := f.Watch(ctx, key("netnamespaces", newcomerPrefix), clientv3.WithPrefix(), clientv3.WithRev(now.Header.Revision+1))
	done := make(chan struct{})
	var waits []requestTimes
	var asked error
	var person sync.WaitGroup
	began := time.Now()
	person.Go(func() { waits, asked = f.ask(ctx, done) })
	err = f.putMany(ctx)
	if err == nil {
		err = allGiven(ctx, watch)
	}
	took := time.Since(began)
	close(done)
	if err != nil {
		cancel()
	}
	person.Wait()
	return took, waits, errors.Join(err, asked)
}

// putMany writes the records of all namespaces, as many at once as etcd takes.
func (f *flock) putMany(ctx context.Context) error {
	puts := make([]clientv3.Op, manyNamespaces)
	for i := range puts {
		name := fmt.Sprintf("%s%d", newcomerPrefix, i)
		data, err := json.Marshal(topology.Namespace{NetName: name})
		if err != nil {
			return err
		}
		puts[i] = clientv3.OpPut(key("netnamespaces", name), string(data))
	}
	for some := range slices.Chunk(puts, putsAtOnce) {
		if _, err := f.Txn(ctx).Then(some...).Commit(); err != nil {
			return fmt.Errorf("write the records of %d namespaces: %w", manyNamespaces, err)
		}
	}
	return nil
}

// allGiven returns when every namespace has a netID of its own.
func allGiven(ctx context.Context, watch clientv3.WatchChan) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*waitLimit, fmt.Errorf("not so after %s", 2*waitLimit))
	defer cancel()
	given := map[netid.ID]string{}
	for len(given) < manyNamespaces {
		select {
		case resp, open := <-watch:
			if err := resp.Err(); err != nil || !open {
				return fmt.Errorf("watch the records of new namespaces: %w", errors.Join(err, ctx.Err()))
			}
			for _, e := range resp.Events {
				name := strings.TrimPrefix(string(e.Kv.Key), key("netnamespaces", ""))
				n, err := topology.ParseNamespace(name, e.Kv.Value)
				if err != nil {
					return err
				}
				if n.Effective == nil {
					continue
				}
				if other, taken := given[*n.Effective]; taken && other != name {
					return fmt.Errorf("namespaces %s and %s both have netID %d", other, name, *n.Effective)
				}
				given[*n.Effective] = name
			}
		case <-ctx.Done():
			return fmt.Errorf("wait until %d namespaces have netIDs, %d have: %w", manyNamespaces, len(given), context.Cause(ctx))
		}
	}
	return nil
}

// requestTimes are how long after a person began to ask the record said that it was carried
// out, which took the controller byController from when the request was written, and the
// command said that all nodes had it.
type requestTimes struct{ carriedOut, byController, told time.Duration }

// ask joins and isolates a namespace in turn, as a person does, until done is closed, and
// isolates it in the end.
func (f *flock) ask(ctx context.Context, done <-chan struct{}) ([]requestTimes, error) {
	var waits []requestTimes
	for i := 0; ; i++ {
		select {
		case <-done:
			if i%2 == 0 {
				return waits, nil
			}
			_, err := f.request(ctx, false)
			return waits, err
		default:
		}
		took, err := f.request(ctx, i%2 == 0)
		if err != nil {
			return waits, err
		}
		waits = append(waits, took)
	}
}

// request makes one.
func (f *flock) request(ctx context.Context, join bool) (requestTimes, error) {
	args := []string{"isolate", asking, "--timeout", "30s"}
	if join {
		args = []string{"join", asking, still, "--timeout", "30s"}
	}
	drain(f.written)
	drain(f.changes)
	began := time.Now()
	if out, err := f.lab.Netns(ctx, args...); err != nil {
		return requestTimes{}, fmt.Errorf("%w\n%s", err, out)
	}
	told := time.Since(began)
	written, err := next(ctx, f.written, "request in the record of namespace "+asking)
	if err != nil {
		return requestTimes{}, err
	}
	changed, err := next(ctx, f.changes, "record of namespace "+asking)
	return requestTimes{carriedOut: changed.Sub(began), byController: changed.Sub(written), told: told}, err
}

// leave removes the namespaces that came, and returns when all nodes and the controller
// have seen that: they carry out something newer.
func (f *flock) leave(ctx context.Context) error {
	if _, err := f.Delete(ctx, key("netnamespaces", newcomerPrefix), clientv3.WithPrefix()); err != nil {
		return fmt.Errorf("remove %d namespaces: %w", manyNamespaces, err)
	}
	for _, join := range []bool{true, false} {
		if _, err := f.request(ctx, join); err != nil {
			return err
		}
	}
	return nil
}
