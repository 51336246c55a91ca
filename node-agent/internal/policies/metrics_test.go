package policies

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// Policies that are about pods here are counted, and their rules.
func TestRulesCounted(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		reg := prometheus.NewRegistry()
		w.table.cfg.Metrics = NewMetrics(reg)
		two := allowing("two", "web")
		two.Ingress.Rules = append(two.Ingress.Rules, policy.Rule{AnyPeer: true, AnyPort: true})
		w.see(withMembers(viewAt(1, two, allowing("one", "web"), allowing("of others", "nobody")), 1, true, client))
		w.add(web1, "web-1", app("web"))
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				got[f.GetName()] = m.GetGauge().GetValue()
			}
		}
		for name, want := range map[string]float64{"k8s_ovs_policies": 2, "k8s_ovs_policy_rules": 3, "k8s_ovs_policy_selected_pods": 1} {
			if diff := cmp.Diff(want, got[name]); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	})
}
