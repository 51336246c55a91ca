package kube_test

import (
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// An agent that lost its rights is being uninstalled; one that gets no answer
// knows nothing.
func TestDaemonSetWantsRefused(t *testing.T) {
	away := errors.New("connection refused")
	for _, test := range []struct{ answer, want error }{
		{apierrors.NewForbidden(schema.GroupResource{Resource: "daemonsets"}, "agent", errors.New("no role")), nil},
		{apierrors.NewUnauthorized("no such account"), nil},
		{away, away},
	} {
		client, cs := kubetest.New(t)
		cs.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, test.answer })
		if wants, err := client.DaemonSetWants(t.Context(), "kube-system", "agent", "n1"); wants || !errors.Is(err, test.want) {
			t.Errorf("answer %v: %v, %v", test.answer, wants, err)
		}
	}
}
