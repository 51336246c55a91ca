package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

func policies(names ...string) map[string]kube.NetworkPolicy {
	all := map[string]kube.NetworkPolicy{}
	for _, name := range names {
		all["u-"+name] = kube.NetworkPolicy{Namespace: "a", Name: name, UID: "u-" + name}
	}
	return all
}

// TestNotices: each policy once a day, whatever else comes and goes.
func TestNotices(t *testing.T) {
	n, now := NewNotices(), now
	for i, step := range []struct {
		after    time.Duration
		policies map[string]kube.NetworkPolicy
		want     []string
		again    time.Duration
	}{
		{0, nil, nil, 0},
		{0, policies("x"), []string{"x"}, noticeEvery},
		{time.Hour, policies("y", "x"), []string{"y"}, noticeEvery - time.Hour},
		{time.Hour, policies("y"), nil, noticeEvery - time.Hour},
		{0, policies("y", "x"), []string{"x"}, noticeEvery - time.Hour}, // made anew
		{noticeEvery - time.Hour, policies("y", "x"), []string{"y"}, time.Hour},
	} {
		now = now.Add(step.after)
		due, again := n.Due(step.policies, now)
		var got []string
		for _, e := range due {
			if e.Reason != PolicyNotEnforced || !e.Warning || e.Object.APIVersion != "networking.k8s.io/v1" || e.Object.Kind != "NetworkPolicy" {
				t.Errorf("event %+v", e)
			}
			got = append(got, e.Object.Name)
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
		if want := now.Add(step.again); step.again == 0 && !again.IsZero() || step.again != 0 && !again.Equal(want) {
			t.Errorf("step %d: again at %v, want %v", i, again, want)
		}
	}
}

// TestManyNotices: a thousand policies are told of a few at a time, and all of them.
func TestManyNotices(t *testing.T) {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("p%04d", i))
	}
	n, all, told := NewNotices(), policies(names...), map[string]int{}
	at := now
	for at.Before(now.Add(noticeEvery)) {
		due, again := n.Due(all, at)
		if len(due) > noticesAtOnce || !again.After(at) {
			t.Fatalf("%d at once, again at %v", len(due), again)
		}
		for _, e := range due {
			told[e.Object.Name]++
		}
		at = again
	}
	for _, name := range names {
		if told[name] != 1 {
			t.Errorf("%s: told %d times in a day", name, told[name])
		}
	}
}
