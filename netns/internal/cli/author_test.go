package cli

import (
	"errors"
	"os/user"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func TestAuthor(t *testing.T) {
	users := func(id string) (*user.User, error) {
		if id == "1000" {
			return &user.User{Username: "alice"}, nil
		}
		return nil, errors.New("no such user")
	}
	for want, test := range map[string]struct {
		uid        int
		sudo, host string
	}{
		"alice@desk":    {1000, "", "desk"},
		"alice":         {1000, "mallory", ""}, // only sudo makes root
		"bob@desk":      {0, "bob", "desk"},
		"root@pod-1":    {0, "", "pod-1"},
		"uid 65532@pod": {65532, "", "pod"},
	} {
		hostname := func() (string, error) { return test.host, nil }
		if got := authorOf(test.uid, test.sudo, users, hostname); got != want {
			t.Errorf("%+v is %q, want %q", test, got, want)
		}
	}
}

// TestAuthorOfRequests: show and list say who asked.
func TestAuthorOfRequests(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100), space("b", 200))
	l.netns("join", "a", "b", "--no-wait").expect(t, ExitDone, nil, nil)
	l.netns("show", "a").expect(t, ExitDone, []string{"pending: join a b is requested by " + author()}, nil)
	l.netns("list", "-o", "json").expect(t, ExitDone, []string{`"requestedBy": "` + author() + `"`}, nil)
	if n := l.record("a"); n.By != author() {
		t.Errorf("record %+v, want it by %s", n, author())
	}
}
