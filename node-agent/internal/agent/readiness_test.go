package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// eventsOfNode stands in for the API server, and keeps what it was told, with the second.
type eventsOfNode struct {
	begun time.Time
	told  []string
}

func (e *eventsOfNode) Event(ref kube.ObjectRef, warning bool, reason kube.EventReason, message string) {
	if ref.Kind == "Node" && ref.Name == "n1" && warning == (reason == "NetworkNotReady") {
		e.told = append(e.told, time.Since(e.begun).String()+" "+string(reason)+": "+message)
	}
}

// Whoever looks at the log or at the Node's Events knows why it is not ready now.
func TestReasonsAreTold(t *testing.T) {
	ready := ""
	// Each step is a reason, and how long it stands.
	type step struct {
		why   string
		lasts time.Duration
	}
	flapping := func(times int, lasts time.Duration) (out []step) {
		for range times {
			out = append(out, step{"a", lasts}, step{"b", lasts})
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		steps []step
		want  []string
	}{
		{
			"a start", []step{{"no etcd", time.Second}, {"no bridge", time.Second}, {ready, time.Minute}},
			[]string{"2s NetworkReady: pods can be attached"},
		},
		{
			"a start that does not come to an end", []step{{"no etcd", time.Second}, {"no default route", time.Hour}},
			[]string{"5.5s NetworkNotReady: no default route"},
		},
		{
			"one after the other", []step{{ready, time.Minute}, {"a", time.Minute}, {"b", time.Minute}, {ready, time.Minute}},
			[]string{"0s NetworkReady: pods can be attached", "1m0s NetworkNotReady: a", "2m5.5s NetworkNotReady: b", "3m0s NetworkReady: pods can be attached"},
		},
		{
			"in between for a moment", []step{{ready, time.Minute}, {"a", time.Minute}, {"b", time.Second}, {"a", time.Minute}},
			[]string{"0s NetworkReady: pods can be attached", "1m0s NetworkNotReady: a"},
		},
		{
			"to and fro", append([]step{{ready, time.Minute}}, flapping(30, 2*time.Second)...),
			[]string{
				"0s NetworkReady: pods can be attached", "1m0s NetworkNotReady: a", "1m6s NetworkNotReady: b",
				"2m0s NetworkNotReady: a", "2m10s NetworkNotReady: b",
			},
		},
		{
			"to and fro, then for good", append([]step{{ready, time.Minute}}, append(flapping(2, 3*time.Second), step{"a", time.Hour})...),
			[]string{"0s NetworkReady: pods can be attached", "1m0s NetworkNotReady: a", "1m9s NetworkNotReady: b", "2m2.5s NetworkNotReady: a"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				api := &eventsOfNode{}
				n := &readiness{node: "n1", events: api, gauge: newMetrics(prometheus.NewRegistry()).ready, log: slog.New(slog.NewTextHandler(&log, nil)), why: errStarting}
				ctx, cancel := context.WithCancel(t.Context())
				watching := make(chan error)
				go func() { watching <- n.watch(ctx) }()
				time.Sleep(time.Second / 2) // so that nothing happens at the moment when it looks
				api.begun = time.Now()
				for _, s := range tt.steps {
					// Once: the loop may wait for something meanwhile.
					var why error
					if s.why != ready {
						why = errors.New(s.why)
					}
					n.set(why)
					time.Sleep(s.lasts)
				}
				cancel()
				if err := <-watching; err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(tt.want, api.told); diff != "" {
					t.Error(diff)
				}
				if lines := strings.Count(log.String(), "\n"); lines != len(tt.want) {
					t.Errorf("%d lines for %d Events:\n%s", lines, len(tt.want), log.String())
				}
			})
		})
	}
}

// Reasons that are never the same are told too, one each minute, and do not pile up.
func TestEndlessReasons(t *testing.T) {
	var told telling
	now := time.Unix(0, 0)
	said := 0
	for i := range 3600 {
		if told.next(errors.New(strings.Repeat("x", i)), now.Add(time.Duration(i)*time.Second)) != noNews {
			said++
		}
	}
	if said != 59 || len(told.seen) > 61 || len(told.told) > 1 {
		t.Errorf("said %d times in an hour, holds %d and %d reasons", said, len(told.seen), len(told.told))
	}
}
