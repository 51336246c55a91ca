package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestNamesake: a pod that outlives its Namespace reaches no pod of another one that takes the
// name, on its node and on others, and none of these reaches it, also after its agent started anew.
// CHECK says what is to be done.
func TestNamesake(t *testing.T) {
	l := up(t, netlab.Options{})
	ctx := t.Context()
	etcd, key := l.etcd(), networkKey+"/netnamespaces/red"
	record := func(uid string, id int) {
		t.Helper()
		_, err := etcd.Put(ctx, key, fmt.Sprintf(`{"NetName":"red","NetID":%d,"Effective":%[1]d,"UID":%q}`, id, uid))
		l.must(err)
	}
	record("A", 777)
	l.pods(map[string][]string{"n1": {"red/a", "red/also"}})
	l.requireMatrix("in the Namespace that it came in", everybody)
	_, err := etcd.Delete(ctx, key)
	l.must(err)
	record("B", 778)
	l.eventually("both pods have outlived their Namespace", 30*time.Second, func() error {
		for _, name := range []string{"red/a", "red/also"} {
			if err := l.CNICheck(ctx, l.get(name)); err == nil {
				return fmt.Errorf("CHECK of %s finds nothing", name)
			}
		}
		return nil
	})
	l.says("CHECK", l.CNICheck(ctx, l.get("red/a")), "delete the pod")
	l.pods(map[string][]string{"n1": {"red/b"}, "n2": {"red/c"}})
	apart := func(x, y probe.Endpoint) bool {
		return x.Name == y.Name || x.Name != "a" && x.Name != "also" && y.Name != "a" && y.Name != "also"
	}
	l.requireMatrix("beside the namesake's pods", apart)
	l.must(l.Agent("n1").Restart(ctx))
	l.requireMatrix("after a start of the agent", apart)
	l.must(l.DelPod(ctx, l.get("red/also")))
	l.requireMatrix("when one was deleted", apart)
}
