package kubetest

import (
	"cmp"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// writer answers one request, in protobuf where the client takes it.
type writer struct {
	w    http.ResponseWriter
	info runtime.SerializerInfo
	gv   schema.GroupVersion
	// as is what the client takes instead of objects: their metadata, or a table.
	as string
	// headed is that a watch has named the columns of its tables.
	headed bool
	// version, if not empty, is that in which objects are shown.
	version string
	// framed is where a watch's events go.
	framed io.Writer
	err    error // the first of a watch: whoever asked is gone
}

func newWriter(w http.ResponseWriter, r *http.Request, gvk schema.GroupVersionKind) *writer {
	mediaType, as := accepted(r.Header.Get("Accept"))
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
	return &writer{w: w, info: info, gv: gvk.GroupVersion(), as: as}
}

// What a client may take instead of objects.
const (
	partial = "PartialObjectMetadata"
	tables  = "Table"
)

// accepted is the first of what the client takes that there is: an encoding, of whole
// objects, of their metadata or of tables.
func accepted(accept string) (mediaType, as string) {
	for clause := range strings.SplitSeq(accept, ",") {
		mediaType, params, err := mime.ParseMediaType(clause)
		if err != nil || mediaType != runtime.ContentTypeProtobuf && mediaType != runtime.ContentTypeJSON {
			continue
		}
		as := schema.GroupVersionKind{Group: params["g"], Version: params["v"], Kind: params["as"]}
		switch as.Kind {
		case "":
			return mediaType, ""
		case partial, partial + "List", tables:
			if as.GroupVersion() == metav1.SchemeGroupVersion {
				return mediaType, strings.TrimSuffix(as.Kind, "List")
			}
		}
	}
	return runtime.ContentTypeJSON, ""
}

// shown is the object as the client takes it.
func (w *writer) shown(o runtime.Object) (runtime.Object, error) {
	switch {
	case w.version != "":
		return inVersion(o, w.version)
	case w.as == tables:
		return w.table(o)
	case w.as == "":
		return o, nil
	}
	if !meta.IsListType(o) {
		return metadataOf(o)
	}
	items, err := meta.ExtractList(o)
	if err != nil {
		return nil, err
	}
	list := &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: o.(metav1.ListInterface).GetResourceVersion()}}
	list.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadataList"))
	for _, item := range items {
		m, err := metadataOf(item)
		if err != nil {
			return nil, err
		}
		list.Items = append(list.Items, *m)
	}
	return list, nil
}

// table shows pods as rows, with the columns that this project reads. As the API server does, a
// watch names columns once.
func (w *writer) table(o runtime.Object) (runtime.Object, error) {
	t := &metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: tables}}
	if !w.headed {
		t.ColumnDefinitions = []metav1.TableColumnDefinition{{Name: "Name", Type: "string"}, {Name: "Node", Type: "string", Priority: 1}}
	}
	w.headed = true
	pods := []corev1.Pod{}
	switch o := o.(type) {
	case *corev1.PodList:
		t.ResourceVersion, pods = o.ResourceVersion, o.Items
	case *corev1.Pod:
		t.ResourceVersion, pods = o.ResourceVersion, append(pods, *o)
	default:
		return nil, fmt.Errorf("a %T is not shown as a table", o)
	}
	for i := range pods {
		m, err := metadataOf(&pods[i])
		if err != nil {
			return nil, err
		}
		t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{pods[i].Name, cmp.Or(pods[i].Spec.NodeName, "<none>")}, Object: runtime.RawExtension{Object: m}})
	}
	return t, nil
}

// metadataOf is an object's metadata.
func metadataOf(o runtime.Object) (*metav1.PartialObjectMetadata, error) {
	it, err := meta.Accessor(o)
	if err != nil {
		return nil, err
	}
	m := meta.AsPartialObjectMetadata(it)
	m.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
	return m, nil
}

// one answers with one object, which says its kind. An encoder that converts would write
// into it, and others may be reading it.
func (w *writer) one(o runtime.Object) {
	o, err := w.shown(o)
	if err != nil {
		w.fail(http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		return
	}
	w.w.Header().Set("Content-Type", w.info.MediaType)
	_ = w.info.Serializer.Encode(o, w.w) // whoever asked may be gone
}

func (w *writer) fail(code int32, reason metav1.StatusReason, message string) {
	w.w.Header().Set("Content-Type", w.info.MediaType)
	w.w.WriteHeader(int(code))
	status := &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}
	_ = scheme.Codecs.EncoderForVersion(w.info.Serializer, metav1.SchemeGroupVersion).Encode(status, w.w)
}

// begin begins the answer to a watch.
func (w *writer) begin() {
	contentType := w.info.MediaType
	if contentType == runtime.ContentTypeProtobuf {
		contentType += ";stream=watch"
	}
	w.w.Header().Set("Content-Type", contentType)
	w.framed = w.info.StreamSerializer.Framer.NewFrameWriter(w.w)
}

// event sends what became of an object, which says its kind. It may stay in a buffer
// until flush.
func (w *writer) event(kind watch.EventType, o runtime.Object) {
	if w.err != nil {
		return
	}
	var raw []byte
	o, err := w.shown(o)
	if err == nil {
		raw, err = runtime.Encode(w.info.Serializer, o)
	}
	if err == nil {
		err = scheme.Codecs.EncoderForVersion(w.info.StreamSerializer.Serializer, w.gv).Encode(&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: raw}}, w.framed)
	}
	w.err = err
}

// flush sends what is in the buffer. Its error is the first there was.
func (w *writer) flush() error {
	if w.err == nil {
		w.err = http.NewResponseController(w.w).Flush()
	}
	return w.err
}
