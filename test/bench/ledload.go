package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// load is what a second was: numbers of what was written, and bytes of keys and values.
type load struct{ transactions, records, bytes, agents float64 }

// ledLoad counts what is written to etcd. Each transaction has a revision of its own.
type ledLoad struct {
	mu   sync.Mutex
	now  load
	last int64 // the leader's last transaction
	acks map[string][]ledAck
	over chan struct{}
}

// ledAck is an acknowledgement of a node's record, as the node sees it.
type ledAck struct {
	at       time.Time
	revision int64
}

// ledKinds are the kinds of records that the leader writes for policies; in each transaction it
// writes into its history, too.
var ledKinds = map[string]bool{"sets": true, "policies": true, "isolation": true, "clusterpolicies": true, "acknowledged": true, "history": true}

// watchLoad counts until ctx ends.
func (l *led) watchLoad(ctx context.Context) *ledLoad {
	all := netlab.EtcdPrefix + "/" + topology.DefaultConfig().Name + "/"
	w := &ledLoad{acks: map[string][]ledAck{}, over: make(chan struct{})}
	changes := l.Watch(ctx, all, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-changes
	go func() {
		defer close(w.over)
		for resp := range changes {
			now := time.Now()
			w.mu.Lock()
			for _, e := range resp.Events {
				w.count(now, strings.TrimPrefix(string(e.Kv.Key), all), e.Kv.ModRevision, len(e.Kv.Key), e.Kv.Value)
			}
			w.mu.Unlock()
		}
	}()
	return w
}

// count takes in one record; w.mu is held.
func (w *ledLoad) count(now time.Time, name string, revision int64, keyBytes int, value []byte) {
	kind, rest, _ := strings.Cut(name, "/")
	bytes := float64(keyBytes + len(value))
	switch {
	case kind == "pods":
		w.now.agents += bytes
	case ledKinds[kind]:
		w.now.records++
		w.now.bytes += bytes
		if revision != w.last {
			w.last = revision
			w.now.transactions++
		}
	}
	if kind != "acknowledged" {
		return
	}
	if a, err := topology.ParseAcknowledged(rest, value); err == nil {
		w.acks[rest] = append(w.acks[rest], ledAck{now, a.Revision})
	}
}

// take is what was counted since it was asked last.
func (w *ledLoad) take() load {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.now
	w.now = load{}
	return was
}

// waits are how long after a pod came its node learned that it is in the records, ms.
func (w *ledLoad) waits(nodes []*ledNode) (ms []float64, err error) {
	for _, n := range nodes {
		acks := w.acks[n.record.HostIP.String()]
		for _, one := range n.wrote {
			for len(acks) > 0 && acks[0].revision < one.revision {
				acks = acks[1:]
			}
			if len(acks) == 0 {
				return nil, fmt.Errorf("revision %d of the pods of %s was never acknowledged", one.revision, n.record.Host)
			}
			ms = append(ms, acks[0].at.Sub(one.began).Seconds()*1000)
		}
	}
	return ms, nil
}

// measure measures some seconds of coming and going.
func (l *led) measure(ctx context.Context) error {
	controller, err := l.lab.Controller().Get()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := l.replace(ctx, 2, func() error { return nil }); err != nil {
		return err
	}
	w := l.watchLoad(ctx)
	used, err := processorOf(controller.PID)
	if err != nil {
		return err
	}
	var transactions, records, kilobytes, agents, processor []float64
	began, seconds := time.Now(), l.times(30, 5)
	last := began
	err = l.replace(ctx, seconds, func() error {
		now, err := processorOf(controller.PID)
		one, length := w.take(), time.Since(last).Seconds()
		transactions, records = append(transactions, one.transactions/length), append(records, one.records/length)
		kilobytes, agents = append(kilobytes, one.bytes/1000/length), append(agents, one.agents/1000/length)
		processor = append(processor, (now-used)/length)
		used, last = now, time.Now()
		return err
	})
	took := time.Since(began)
	if err == nil {
		err = l.settle(ctx)
	}
	if err != nil {
		return err
	}
	memory, err := residentOf(controller.PID)
	if err != nil {
		return err
	}
	cancel()
	<-w.over
	waits, err := w.waits(l.nodes)
	if err != nil {
		return err
	}
	replaced := float64(seconds) * float64(time.Second/ledEach) / took.Seconds()
	l.add(
		alone("policy_leader_replaced", "pods replaced while policies' leader is measured: "+ledSize, "pods/s", replaced, 1, nil),
		measured("policy_leader_event_median", "from when a pod comes to its addresses in all records, "+ledSize+", median", "ms", median, waits, nil),
		measured("policy_leader_event_p99", "from when a pod comes to its addresses in all records, "+ledSize+", p99", "ms", rank(0.99), waits, nil),
		measured("policy_leader_transactions", "the leader's transactions in etcd, "+ledSize, "transactions/s", average, transactions, nil),
		measured("policy_leader_records", "the records that it writes in them", "records/s", average, records, nil),
		measured("policy_leader_bytes", "their keys and values", "kB/s", average, kilobytes, nil),
		measured("policy_leader_agents_bytes", "beside them the nodes' records of their pods", "kB/s", average, agents, nil),
		measured("policy_leader_processor", "processor time of the controller with etcd in it, "+ledSize, "ms/s", average, processor, nil),
		alone("policy_leader_rss", "resident memory of the controller with etcd in it, "+ledSize, "MB", memory, 1, nil),
	)
	return nil
}
