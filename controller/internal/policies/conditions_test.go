package policies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// teller is an API server that conditions are told to; it refuses those of bad.
type teller struct {
	API
	bad  error
	told []string
}

func (a *teller) TellHonoured(_ context.Context, p kube.ClusterNetworkPolicy, say kube.Honoured) error {
	if p.Name == "bad" {
		return a.bad
	}
	a.told = append(a.told, fmt.Sprint(p.Name, " ", say.Generation, " ", say.OK))
	return nil
}

// TestConditions: each policy is told what is new of it, whatever becomes of others, and what
// could not be told is told later; a failure is told to people once.
func TestConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		api := &teller{bad: errors.New("refused")}
		c := newConditions(api, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.run(ctx)
		}()
		all := map[string]clusterPolicy{}
		put := func(name string, generation int64, problem string) {
			p := kube.ClusterNetworkPolicy{ClusterPolicy: policy.ClusterPolicy{Name: name}, UID: name, Generation: generation, Problem: problem}
			p.Told = all[name].Told
			all[name] = clusterPolicy{ClusterNetworkPolicy: p}
		}
		expect := func(what string, want ...string) {
			t.Helper()
			c.set(all)
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if got := strings.Join(api.told, ", "); got != strings.Join(want, ", ") {
				t.Errorf("%s: told %s, want %v", what, got, want)
			}
			api.told = nil
			for name, p := range all {
				if name != "bad" {
					p.Told = honouredOf(p.ClusterNetworkPolicy)
					all[name] = p
				}
			}
		}
		put("bad", 1, "")
		put("good", 1, "")
		put("odd", 1, "it is odd")
		expect("at first", "good 1 true", "odd 1 false")
		put("good", 2, "")
		expect("a change", "good 2 true")
		expect("nothing new")
		delete(all, "bad")
		expect("one that is gone")
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
		put("bad", 3, "")
		api.bad = fmt.Errorf("condition: %w", kube.ErrNotFound)
		expect("one that the API server does not have any more")
		cancel()
		<-done
	})
}
