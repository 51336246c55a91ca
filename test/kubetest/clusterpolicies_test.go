package kubetest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

const (
	denyAll = `{tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`
	// strange is a rule with a peer of a kind that nobody knows yet.
	strange = `{tier: Baseline, priority: 8, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [example.com]}]}]}`
)

// clusterPolicyWatch is what a program is told of ClusterNetworkPolicies.
type clusterPolicyWatch struct {
	t       *testing.T
	changes *kube.Changes[string, kube.ClusterNetworkPolicy]
	have    map[string]kube.ClusterNetworkPolicy
}

// until waits for what the program knows.
func (w *clusterPolicyWatch) until(what string, cond func() bool) {
	w.t.Helper()
	timeout := time.After(time.Minute)
	for !cond() {
		select {
		case <-w.changes.News():
		case <-timeout:
			w.t.Fatalf("%s: not told; known are %+v", what, w.have)
		}
		changed, _ := w.changes.Take()
		for name, p := range changed {
			if delete(w.have, name); p != nil {
				w.have[name] = *p
			}
		}
	}
}

// TestServerClusterPolicies: ClusterNetworkPolicies are listed and watched as a real server's
// are, in each version that is served, from when they are defined until they are not, and their
// status is written beside what others write there.
func TestServerClusterPolicies(t *testing.T) {
	for _, versions := range [][]string{ClusterPolicyVersions, {"v1alpha2"}} {
		t.Run(strings.Join(versions, " "), func(t *testing.T) {
			s := NewServer()
			s.DefineClusterPolicies(versions...)
			client := Open(t, s)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			w := &clusterPolicyWatch{t: t, changes: client.WatchClusterNetworkPolicies(ctx), have: map[string]kube.ClusterNetworkPolicy{}}
			for name, spec := range map[string]string{"deny": denyAll, "strange": strange} {
				if err := s.PutClusterPolicy(name, spec); err != nil {
					t.Fatal(err)
				}
			}
			w.until("two policies", func() bool { return len(w.have) == 2 })
			deny := w.have["deny"]
			if deny.Priority != 7 || deny.Baseline || len(deny.Ingress) != 1 || deny.Problem != "" || deny.Generation != 1 {
				t.Errorf("deny is %+v", deny)
			}
			if ref := deny.Ref(); ref.APIVersion != "policy.networking.k8s.io/"+versions[0] || ref.Kind != "ClusterNetworkPolicy" || ref.Name != "deny" || ref.UID == "" {
				t.Errorf("Events are about %+v", ref)
			}
			if got := w.have["strange"].Problem; !strings.Contains(got, "egress[0]: to[0]: k8s-ovs does not support domainNames") {
				t.Errorf("strange: %q", got)
			}

			// Its condition, beside another's, and again after a change.
			other := s.ClusterPolicy("deny").DeepCopy()
			meta.SetStatusCondition(&other.Status.Conditions, metav1.Condition{Type: "example.com/Seen", Status: metav1.ConditionTrue, Reason: "Seen"})
			put(t, s, other)
			say := kube.Honoured{Generation: 1, Reason: "Understood", Message: "all of it", OK: true}
			if err := client.TellHonoured(ctx, deny, say); err != nil {
				t.Fatal(err)
			}
			w.until("the condition", func() bool { return w.have["deny"].Told == say })
			since := conditionOf(t, s, "deny").LastTransitionTime
			if err := s.PutClusterPolicy("deny", strings.Replace(denyAll, "7", "9", 1)); err != nil {
				t.Fatal(err)
			}
			w.until("the change", func() bool { return w.have["deny"].Priority == 9 })
			say.Generation, say.Message = 2, strings.Repeat("ä", 40000)
			if err := client.TellHonoured(ctx, w.have["deny"], say.Short()); err != nil {
				t.Fatal(err)
			}
			w.until("the newest condition", func() bool { return w.have["deny"].Told.Generation == 2 })
			switch c := conditionOf(t, s, "deny"); {
			case !c.LastTransitionTime.Equal(&since):
				t.Errorf("it says yes since %v, and before since %v", c.LastTransitionTime, since)
			case len(c.Message) > 32768 || !strings.HasSuffix(c.Message, "ä ..."):
				t.Errorf("a message of %d bytes: %s", len(c.Message), c.Message)
			case len(s.ClusterPolicy("deny").Status.Conditions) != 2:
				t.Errorf("conditions %+v", s.ClusterPolicy("deny").Status.Conditions)
			}
			namesake := w.have["deny"]
			namesake.UID = "another"
			if err := client.TellHonoured(ctx, namesake, say.Short()); err == nil {
				t.Error("a namesake was told")
			}
			namesake.Name = "none"
			if err := client.TellHonoured(ctx, namesake, say); !errors.Is(err, kube.ErrNotFound) {
				t.Errorf("told one that is not there: %v", err)
			}

			if err := s.DeleteClusterPolicy("strange"); err != nil {
				t.Fatal(err)
			}
			w.until("its end", func() bool { return len(w.have) == 1 })
			s.DefineClusterPolicies()
			w.until("the end of all", func() bool { return len(w.have) == 0 })
			if made, err := client.MakeDefinition(ctx, []byte("apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: x}")); err != nil || !made {
				t.Errorf("made %v, %v", made, err)
			}
			if err := s.PutClusterPolicy("late", denyAll); err != nil {
				t.Fatal(err)
			}
			w.until("one of the new definition", func() bool { return len(w.have) == 1 })
		})
	}
}

func conditionOf(t *testing.T, s *Server, name string) *metav1.Condition {
	t.Helper()
	c := meta.FindStatusCondition(s.ClusterPolicy(name).Status.Conditions, "k8s-ovs.io/Honoured")
	if c == nil {
		t.Fatalf("%s has no condition", name)
	}
	return c
}
