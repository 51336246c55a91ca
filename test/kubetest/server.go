package kubetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// kinds are what a Server has objects of, by the name in the URL.
var kinds = map[string]schema.GroupVersionKind{
	"pods":            {Version: "v1", Kind: "Pod"},
	"services":        {Version: "v1", Kind: "Service"},
	"events":          {Version: "v1", Kind: "Event"},
	"nodes":           {Version: "v1", Kind: "Node"},
	"namespaces":      {Version: "v1", Kind: "Namespace"},
	"secrets":         {Version: "v1", Kind: "Secret"},
	"configmaps":      {Version: "v1", Kind: "ConfigMap"},
	"endpointslices":  {Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"},
	"daemonsets":      {Group: "apps", Version: "v1", Kind: "DaemonSet"},
	"networkpolicies": {Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"},
	clusterPolicies:   {Group: "policy.networking.k8s.io", Version: "v1beta1", Kind: "ClusterNetworkPolicy"},

	"certificatesigningrequests": {Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest"},
}

// Server is an API server: get, list, watch, and what our programs write, of a few
// kinds over HTTP, with the encodings, bookmarks and streamed lists of a real one. The
// test writes by [Server.Put] and [Server.Delete], and sees what programs wrote by
// [Server.Object] and [Server.Events]. It refuses nobody, checks no objects, and keeps every
// version of an object, so that a watch may begin at any.
type Server struct {
	// Who says who made a request, where a test cares: it goes into
	// CertificateSigningRequests. Set it before Serve.
	Who func(*http.Request) (username string, extra map[string][]string)

	mu sync.Mutex
	// log has every change; the resource version of one is its place, from 1.
	log []change
	// objects are what there is now, by resource and name.
	objects map[string]map[string]object
	// changed is closed and made anew with each change.
	changed chan struct{}
	// held are the watches that wait, by resource: see Hold.
	held map[string]*hold
	// defined are the versions of ClusterNetworkPolicies that are served.
	defined []string
	http    *http.Server // nil while the server is away
}

// change is what became of an object.
type change struct {
	resource string
	kind     watch.EventType
	object   object
}

type object interface {
	runtime.Object
	metav1.Object
}

// hold is watches that are not answered until open is closed.
type hold struct {
	open    chan struct{}
	waiting int
}

// NewServer makes a server that is away until Serve.
func NewServer() *Server {
	s := &Server{changed: make(chan struct{}), objects: map[string]map[string]object{}, held: map[string]*hold{}, defined: ClusterPolicyVersions}
	for resource := range kinds {
		s.objects[resource] = map[string]object{}
	}
	return s
}

// Serve answers on l until Away or Close, and returns at once.
func (s *Server) Serve(l net.Listener) {
	h := &http.Server{Handler: s}
	s.mu.Lock()
	s.http = h
	s.mu.Unlock()
	go func() { _ = h.Serve(l) }() // ends with Away
}

// Away ends all connections and answers nobody any more. What was put stays.
func (s *Server) Away() error {
	s.mu.Lock()
	h := s.http
	s.http = nil
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	return h.Close()
}

// Put makes the object what is given, which belongs to the server from then on.
func (s *Server) Put(o runtime.Object) error {
	c, err := changeOf(o)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(c)
	return nil
}

// put is Put with the lock held.
func (s *Server) put(c change) {
	if _, had := s.objects[c.resource][keyOf(c.object)]; had {
		c.kind = watch.Modified
	}
	s.objects[c.resource][keyOf(c.object)] = c.object
	s.append(c)
}

// Object is the one of a resource, such as "secrets", as it is now; nil where there is
// none. It is not to be changed.
func (s *Server) Object(resource, namespace, name string) runtime.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, there := s.objects[resource][namespace+"/"+name]; there {
		return o
	}
	return nil
}

// Delete takes the object away.
func (s *Server) Delete(o runtime.Object) error {
	c, err := changeOf(o.DeepCopyObject())
	if err != nil {
		return err
	}
	c.kind = watch.Deleted
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects[c.resource], keyOf(c.object))
	s.append(c)
	return nil
}

// changeOf has the object say its kind.
func changeOf(o runtime.Object) (change, error) {
	gvks, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return change{}, err
	}
	plural, _ := meta.UnsafeGuessKindToResource(gvks[0])
	o.GetObjectKind().SetGroupVersionKind(gvks[0])
	it, ok := o.(object)
	if _, known := kinds[plural.Resource]; !known || !ok {
		return change{}, fmt.Errorf("the test's API server has no %s", plural.Resource)
	}
	return change{plural.Resource, watch.Added, it}, nil
}

func keyOf(o object) string { return o.GetNamespace() + "/" + o.GetName() }

func (s *Server) append(c change) {
	s.log = append(s.log, c)
	c.object.SetResourceVersion(strconv.Itoa(len(s.log)))
	s.tellAll()
}

// tellAll wakes all watches, with the lock held.
func (s *Server) tellAll() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Hold lets watches of these resources that begin now wait until release is
// called; waiting says how many do.
func (s *Server) Hold(resources ...string) (waiting func() int, release func()) {
	h := &hold{open: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range resources {
		s.held[r] = h
	}
	waiting = func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return h.waiting
	}
	return waiting, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range resources {
			delete(s.held, r)
		}
		close(h.open)
	})
}

// wait returns when nobody holds watches of the resource; false when ctx ended first.
func (s *Server) wait(ctx context.Context, resource string) bool {
	s.mu.Lock()
	h := s.held[resource]
	if h != nil {
		h.waiting++
	}
	s.mu.Unlock()
	if h == nil {
		return true
	}
	select {
	case <-h.open:
		return true
	case <-ctx.Done():
		s.mu.Lock()
		h.waiting--
		s.mu.Unlock()
		return false
	}
}

// request is what a URL asks for.
type request struct {
	version, resource, namespace, name string
	// part is a subresource: status or approval.
	part   string
	labels labels.Selector
	fields fields.Selector
	writer *writer
}

// ServeHTTP is the API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/"+definitionsResource.Resource) {
		s.define(newWriter(w, r, metav1.SchemeGroupVersion.WithKind("Status")), r)
		return
	}
	q, err := parse(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	q.writer = newWriter(w, r, kinds[q.resource])
	if q.resource == clusterPolicies {
		q.writer.version = q.version
	}
	if !s.serves(q) {
		q.writer.fail(http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
		return
	}
	if r.Method != http.MethodGet {
		s.write(q, r)
		return
	}
	switch values := r.URL.Query(); {
	case q.name != "":
		s.get(q)
	case values.Get("watch") == "true" || values.Get("watch") == "1":
		s.watch(r.Context(), q, values.Get("resourceVersion"), values.Get("sendInitialEvents") == "true")
	default:
		s.list(q)
	}
}

// parse reads /api/v1/[namespaces/NAMESPACE/]RESOURCE[/NAME], and the same below
// /apis/GROUP/VERSION.
func parse(r *http.Request) (request, error) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	skip := map[string]int{"api": 2, "apis": 3}[parts[0]]
	if skip == 0 || len(parts) <= skip {
		return request{}, errors.New("no such path")
	}
	q := request{version: parts[skip-1]}
	parts = parts[skip:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		q.namespace, parts = parts[1], parts[2:]
	}
	q.resource = parts[0]
	if len(parts) > 1 {
		q.name = parts[1]
	}
	if len(parts) > 2 {
		q.part = parts[2]
	}
	if _, known := kinds[q.resource]; !known || len(parts) > 3 {
		return request{}, errors.New("no such resource")
	}
	var err error
	if q.labels, err = labels.Parse(r.URL.Query().Get("labelSelector")); err != nil {
		return request{}, err
	}
	q.fields, err = fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	return q, err
}

func (q request) matches(o object) bool {
	selectable := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	switch o := o.(type) {
	case *corev1.Pod:
		selectable["spec.nodeName"] = o.Spec.NodeName
	case *certificatesv1.CertificateSigningRequest:
		selectable["spec.signerName"] = o.Spec.SignerName
	}
	return (q.namespace == "" || q.namespace == o.GetNamespace()) && q.labels.Matches(labels.Set(o.GetLabels())) && q.fields.Matches(selectable)
}

// selected are the objects that a request is about, by name, and the place of
// the newest change.
func (s *Server) selected(q request) (objects []object, at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects[q.resource] {
		if q.matches(o) {
			objects = append(objects, o)
		}
	}
	slices.SortFunc(objects, func(a, b object) int { return strings.Compare(keyOf(a), keyOf(b)) })
	return objects, len(s.log)
}

func (s *Server) get(q request) {
	s.mu.Lock()
	o, there := s.objects[q.resource][q.namespace+"/"+q.name]
	s.mu.Unlock()
	if !there {
		q.writer.fail(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", q.resource, q.name))
		return
	}
	q.writer.one(o)
}

func (s *Server) list(q request) {
	objects, at := s.selected(q)
	gvk := kinds[q.resource]
	gvk.Kind += "List"
	list, err := scheme.Scheme.New(gvk)
	if err == nil {
		list.GetObjectKind().SetGroupVersionKind(gvk)
		items := make([]runtime.Object, len(objects))
		for i, o := range objects {
			items[i] = o
		}
		err = meta.SetList(list, items)
	}
	if err != nil {
		q.writer.fail(http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		return
	}
	list.(metav1.ListInterface).SetResourceVersion(strconv.Itoa(at))
	q.writer.one(list)
}

// watch tells of changes after a resource version, or of all there is, a bookmark
// that says that this was all, and changes after that (KEP-3157).
func (s *Server) watch(ctx context.Context, q request, after string, initial bool) {
	if !s.wait(ctx, q.resource) {
		return
	}
	at, err := strconv.Atoi(after)
	if after != "" && err != nil {
		q.writer.fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, "resourceVersion: "+err.Error())
		return
	}
	q.writer.begin()
	if initial {
		var objects []object
		objects, at = s.selected(q)
		for _, o := range objects {
			q.writer.event(watch.Added, o)
		}
		q.writer.event(watch.Bookmark, bookmark(q.resource, at))
	}
	for q.writer.flush() == nil {
		s.mu.Lock()
		fresh, changed := s.log[min(at, len(s.log)):], s.changed
		at = len(s.log)
		s.mu.Unlock()
		for _, c := range fresh {
			if c.resource == q.resource && q.matches(c.object) {
				q.writer.event(c.kind, c.object)
			}
		}
		switch {
		case len(fresh) > 0:
			continue
		case !s.serves(q):
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// bookmark is an object that only says where a watch is.
func bookmark(resource string, at int) object {
	o, err := scheme.Scheme.New(kinds[resource])
	if err != nil {
		panic(err) // client-go knows all kinds
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[resource])
	b := o.(object)
	b.SetResourceVersion(strconv.Itoa(at))
	b.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return b
}
