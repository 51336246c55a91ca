package kube_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

func aPolicy(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: "u-1"},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
}

func TestWatchNetworkPolicies(t *testing.T) {
	client, cs := kubetest.New(t, aPolicy("deny"))
	ctx, cancel := context.WithCancel(t.Context())
	policies := client.WatchNetworkPolicies(ctx)
	want := map[string]kube.NetworkPolicy{"u-1": {Namespace: "a", Name: "deny", UID: "u-1"}}
	if diff := cmp.Diff(want, next(t, policies)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	watching(t, cs, 1)
	must(t, cs.NetworkingV1().NetworkPolicies("a").Delete(ctx, "deny", metav1.DeleteOptions{}))
	for len(next(t, policies)) != 0 {
	}
	cancel()
	for range policies {
	}
	ref := kube.ObjectRef{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "a", Name: "deny", UID: "u-1"}
	if got := want["u-1"].Ref(); got != ref {
		t.Errorf("%+v, want %+v", got, ref)
	}
}

// TestPoliciesForbidden: with a role that lacks the right there is one line in the log,
// and all is told once the right is there.
func TestPoliciesForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cs := fake.NewClientset(aPolicy("deny"))
		var mu sync.Mutex // guards what follows
		asked, problem := 0, error(errors.New("away"))
		// becomes is what is wrong from now on; it returns how often was asked until now.
		becomes := func(err error) int {
			mu.Lock()
			defer mu.Unlock()
			was := asked
			asked, problem = 0, err
			return was
		}
		cs.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return problem != nil, nil, problem
		})
		var log bytes.Buffer
		client := kube.New(kube.Interfaces{Networking: cs.NetworkingV1(), Clientset: cs}, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		policies := client.WatchNetworkPolicies(ctx)
		time.Sleep(time.Minute)
		if asked := becomes(apierrors.NewForbidden(networkingv1.Resource("networkpolicies"), "", errors.New("no"))); asked < 10 {
			t.Errorf("an API server that is away was asked %d times in a minute", asked)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if asked := becomes(nil); asked == 0 || asked > 13 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "ClusterRole") {
			t.Errorf("asked %d times in an hour, log %q", asked, log.String())
		}
		if got := <-policies; len(got) != 1 {
			t.Errorf("told %v", got)
		}
		cancel()
		for range policies {
		}
	})
}
