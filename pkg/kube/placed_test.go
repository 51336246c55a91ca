package kube_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

const (
	tableHead = `"columnDefinitions":[{"name":"Name","type":"string"},{"name":"Node","type":"string","priority":1}],`
	noNode    = `"columnDefinitions":[{"name":"Name","type":"string"}],`
)

// aTable is a table of pods as an API server writes it: pods are name/node.
func aTable(head, meta string, pods ...string) string {
	var rows []string
	for _, p := range pods {
		name, node, _ := strings.Cut(p, "/")
		rows = append(rows, fmt.Sprintf(`{"cells":[%q,%q],"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"namespace":"a","name":%q,"uid":"u-%s","resourceVersion":"7","labels":{"app":%q}}}}`, name, node, name, name, name))
	}
	return fmt.Sprintf(`{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{%s},%s"rows":[%s]}`, meta, head, strings.Join(rows, ","))
}

// tableServer answers as an API server does that shows pods as tables: a list in two chunks,
// then a watch of events, one after another.
type tableServer struct {
	head    string
	events  chan string
	watched atomic.Int32
}

func (s *tableServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case !strings.Contains(r.Header.Get("Accept"), "as=Table"):
		fmt.Fprint(w, `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[]}`)
	case q.Get("includeObject") != "Metadata":
		http.Error(w, "whole objects", http.StatusForbidden)
	case q.Get("watch") == "true":
		s.watched.Add(1)
		for {
			w.(http.Flusher).Flush()
			select {
			case e := <-s.events:
				fmt.Fprintln(w, e)
				if strings.Contains(e, "ERROR") {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
	case q.Get("continue") == "":
		fmt.Fprint(w, aTable(s.head, `"resourceVersion":"5","continue":"more"`, "one/n1", "two/<none>"))
	default:
		fmt.Fprint(w, aTable(s.head, `"resourceVersion":"5"`, "three/n2"))
	}
}

// event is one of a watch.
func event(kind, object string) string {
	text, _ := json.Marshal(map[string]any{"type": kind, "object": json.RawMessage(object)})
	return string(text)
}

// TestPlacedPods: pods and their nodes, read as tables: a list in chunks, events of which only the
// first names columns, bookmarks with a row and without, and a watch that is too old.
func TestPlacedPods(t *testing.T) {
	s := &tableServer{head: tableHead, events: make(chan string)}
	front := httptest.NewServer(s)
	defer front.Close()
	client, err := kube.Open(kube.Config{Kubeconfig: kubeconfig(t, front.URL)})
	must(t, err)
	defer client.Close()
	pods := client.WatchPodLabels(t.Context())
	of := func(name, node string) *kube.PodLabels {
		return &kube.PodLabels{UID: "u-" + name, Node: node, Labels: map[string]string{"app": name}}
	}
	key := func(name string) kube.PodKey { return kube.PodKey{Namespace: "a", Name: name} }
	all := map[kube.PodKey]*kube.PodLabels{key("one"): of("one", "n1"), key("two"): of("two", "<none>"), key("three"): of("three", "n2")}
	if diff := cmp.Diff(all, taken(t, pods)); diff != "" {
		t.Fatalf("the list (-want +got):\n%s", diff)
	}
	s.events <- event("MODIFIED", aTable(tableHead, `"resourceVersion":"6"`, "two/n3"))
	if diff := cmp.Diff(map[kube.PodKey]*kube.PodLabels{key("two"): of("two", "n3")}, taken(t, pods)); diff != "" {
		t.Errorf("a pod that was bound (-want +got):\n%s", diff)
	}
	s.events <- event("BOOKMARK", aTable("", `"resourceVersion":"8"`))
	s.events <- event("BOOKMARK", aTable("", `"resourceVersion":"9"`, "/<none>"))
	s.events <- event("DELETED", aTable("", `"resourceVersion":"10"`, "one/n1"))
	if diff := cmp.Diff(map[kube.PodKey]*kube.PodLabels{key("one"): nil}, taken(t, pods)); diff != "" {
		t.Errorf("a pod that went (-want +got):\n%s", diff)
	}
	// After an error all is listed anew.
	s.events <- event("ERROR", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}`)
	if got := taken(t, pods); got[key("one")] == nil {
		t.Errorf("after a watch that was too old: %v", got)
	}
}

// TestPlacedPodsNoNode: a table without nodes is no list of pods that are on none.
func TestPlacedPodsNoNode(t *testing.T) {
	s := &tableServer{head: noNode, events: make(chan string)}
	asked := make(chan struct{}, 1)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeHTTP(w, r)
		if strings.Contains(r.Header.Get("Accept"), "as=Table") {
			select {
			case asked <- struct{}{}:
			default:
			}
		}
	}))
	defer front.Close()
	client, err := kube.Open(kube.Config{Kubeconfig: kubeconfig(t, front.URL)})
	must(t, err)
	defer client.Close()
	pods := client.WatchPodLabels(t.Context())
	for range 2 { // it is asked again, so the first answer was not taken
		next(t, asked)
	}
	if changed, ok := pods.Take(); ok || s.watched.Load() > 0 {
		t.Errorf("taken for a list: %v", changed)
	}
}
