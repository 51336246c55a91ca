package signer

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// told stands in for the store: it tells what comes.
type told chan store.Records

func (r told) WatchRecords(ctx context.Context) <-chan store.Records {
	out := make(chan store.Records)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case next := <-r:
				select {
				case out <- next:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func (r told) tell(records ...topology.Node) {
	r <- store.Records{Snapshot: topology.Snapshot{Nodes: nodes(records...)}}
}

type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// lab is a signer beside an API server, whose one user is the agent of node n1, UID u1.
type lab struct {
	t       *testing.T
	client  *kube.Client
	api     *kubetest.Server
	records told
	ca      *pki.Pair
	metrics *Metrics
	log     *log

	mu     sync.Mutex // guards what follows
	who    string
	broken error
}

func newLab(t *testing.T) *lab {
	ca, err := pki.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, api: kubetest.NewServer(), records: make(told, 10), ca: ca, metrics: NewMetrics(prometheus.NewRegistry()), log: &log{}, who: account}
	l.api.Who = func(*http.Request) (string, map[string][]string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.who, map[string][]string{extraNodeName: {"n1"}, extraNodeUID: {"u1"}, extraPodUID: {"p1"}}
	}
	l.client = kubetest.Open(t, l.api)
	s := New(Config{
		API: l.client, Records: l.records, Account: account, Metrics: l.metrics, Logger: slog.New(slog.NewTextHandler(l.log, nil)),
		CA: func() (*pki.Pair, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.ca, l.broken },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return l
}

func (l *lab) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *lab) ask(csr []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	return l.client.RequestCertificate(ctx, "k8s-ovs-agent-n1-", csr, Name, Lifetime)
}

func (l *lab) eventually(what string, cond func() bool) {
	l.t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func (l *lab) counted(outcome string) float64 {
	var m dto.Metric
	if err := l.metrics.answered.WithLabelValues(outcome).Write(&m); err != nil {
		l.t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func (l *lab) expect(outcomes string) {
	l.t.Helper()
	got := ""
	for _, o := range []string{"signed", "denied", "failed"} {
		got += fmt.Sprintf("%s %v ", o, l.counted(o))
	}
	if strings.TrimSpace(got) != outcomes {
		l.t.Errorf("counted %s, want %s", got, outcomes)
	}
}

func (l *lab) signed(certPEM []byte, csr []byte, err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		l.t.Fatal(err)
	}
	request, err := pki.ParseRequest(csr)
	if err != nil {
		l.t.Fatal(err)
	}
	left := time.Until(cert.NotAfter)
	if !pki.Signs(l.ca.CertPEM, cert) || cert.Subject.CommonName != "k8s-ovs-node:n1:u1" || !bytes.Equal(cert.RawSubjectPublicKeyInfo, request.RawSubjectPublicKeyInfo) || left > Lifetime || left < Lifetime-time.Minute {
		l.t.Errorf("got %s for %s", cert.Subject, left)
	}
}

func TestSigns(t *testing.T) {
	l := newLab(t)
	l.records.tell()
	csr := requestFor(t, "k8s-ovs-node:n1:u1")
	type answer struct {
		certPEM []byte
		err     error
	}
	answers := make(chan answer, 2)
	for range 2 { // an agent that starts anew meanwhile asks by the same request
		go func() {
			certPEM, err := l.ask(csr)
			answers <- answer{certPEM, err}
		}()
	}
	l.eventually("says why it waits", func() bool { return l.log.count("no record below subnets/ yet") > 0 })
	l.records.tell(topology.Node{Host: "n2", UID: "u2"})
	l.records.tell(topology.Node{Host: "n1", UID: "u1"})
	for range 2 {
		a := <-answers
		l.signed(a.certPEM, csr, a.err)
	}
	l.eventually("counted", func() bool { return l.counted("signed") > 0 })
	l.expect("signed 1 denied 0 failed 0")
	if n := l.log.count("no record below subnets/ yet"); n != 1 {
		t.Errorf("said %d times why it waits", n)
	}
}

func TestDenies(t *testing.T) {
	l := newLab(t)
	l.records.tell(topology.Node{Host: "n1", UID: "u1"}, topology.Node{Host: "n2", UID: "u2"})
	csr := requestFor(t, "k8s-ovs-node:n2:u2")
	for range 2 { // what was denied stays so
		if _, err := l.ask(csr); !errors.Is(err, kube.ErrDenied) || !strings.Contains(err.Error(), "it asks to be k8s-ovs-node:n2:u2") {
			t.Errorf("error %v", err)
		}
	}
	l.set(func() { l.who = "system:node:n1" })
	if _, err := l.ask(requestFor(t, "k8s-ovs-node:n1:u1")); !errors.Is(err, kube.ErrDenied) || !strings.Contains(err.Error(), "service account") {
		t.Errorf("error %v", err)
	}
	l.eventually("an Event", func() bool { return len(l.api.Events()) > 0 })
	if e := l.api.Events()[0]; e.InvolvedObject.Name != "n1" || e.Reason != reasonDenied || len(l.api.Events()) != 1 {
		t.Errorf("event %+v", e)
	}
	l.eventually("counted", func() bool { return l.counted("denied") > 1 })
	l.expect("signed 0 denied 2 failed 0")
}

// TestSignsLater: what keeps it from signing now does not deny.
func TestSignsLater(t *testing.T) {
	l := newLab(t)
	l.set(func() { l.broken = errors.New("the clock is wrong") })
	l.records.tell(topology.Node{Host: "n1", UID: "u1"})
	csr := requestFor(t, "k8s-ovs-node:n1:u1")
	go func() {
		l.eventually("says why", func() bool { return l.log.count("the clock is wrong") > 0 })
		l.set(func() { l.broken = nil })
	}()
	certPEM, err := l.ask(csr)
	l.signed(certPEM, csr, err)
}
