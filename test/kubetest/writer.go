package kubetest

import (
	"io"
	"net/http"
	"strings"

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
	// framed is where a watch's events go.
	framed io.Writer
	err    error // the first of a watch: whoever asked is gone
}

func newWriter(w http.ResponseWriter, r *http.Request, gvk schema.GroupVersionKind) *writer {
	mediaType := runtime.ContentTypeJSON
	if strings.Contains(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		mediaType = runtime.ContentTypeProtobuf
	}
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
	return &writer{w: w, info: info, gv: gvk.GroupVersion()}
}

// one answers with one object, which says its kind. An encoder that converts would write
// into it, and others may be reading it.
func (w *writer) one(o runtime.Object) {
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
	raw, err := runtime.Encode(w.info.Serializer, o)
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
