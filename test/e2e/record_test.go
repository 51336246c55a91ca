package e2e

import (
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// namespaceRecord is a netnamespaces record as anybody with etcdctl sees it.
type namespaceRecord struct {
	NetName   string
	NetID     int64
	Action    string
	Effective *uint32
}

const networkKey = netlab.EtcdPrefix + "/k8ssdn"

// etcd is a client that is closed with the test.
func (l *lab) etcd() *clientv3.Client {
	l.t.Helper()
	c, err := l.Etcd()
	l.must(err)
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (l *lab) record(namespace string) namespaceRecord {
	l.t.Helper()
	r, err := l.tryRecord(l.etcd(), namespace)
	l.must(err)
	return r
}

func (l *lab) tryRecord(c *clientv3.Client, namespace string) (namespaceRecord, error) {
	var r namespaceRecord
	got, err := c.Get(l.t.Context(), networkKey+"/netnamespaces/"+namespace)
	if err != nil {
		return r, err
	}
	if len(got.Kvs) == 0 {
		return r, fmt.Errorf("namespace %s has no record", namespace)
	}
	return r, json.Unmarshal(got.Kvs[0].Value, &r)
}
