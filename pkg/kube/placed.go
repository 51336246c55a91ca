package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// PlacedPods are the pods of all namespaces with nothing but their metadata and the names of
// their nodes.
type PlacedPods interface {
	List(ctx context.Context, o metav1.ListOptions) (*corev1.PodList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

const (
	// asTable asks for what kubectl prints. An object's metadata alone does not say on which node a
	// pod is, and its specification has what containers are given; a row of a table has the node
	// and, where asked for, the metadata
	// (https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables).
	asTable = "application/json;as=Table;v=v1;g=meta.k8s.io"
	// nodeColumn is the column that has the node's name.
	nodeColumn = "Node"
	// rowsAtOnce bounds what of a list is in memory at once as text.
	rowsAtOnce = 500
)

// podTables are the pods of a real API server, read as tables.
type podTables struct{ api rest.Interface }

func (p podTables) request(o metav1.ListOptions) *rest.Request {
	return p.api.Get().Resource("pods").VersionedParams(&o, scheme.ParameterCodec).
		Param("includeObject", string(metav1.IncludeMetadata)).SetHeader("Accept", asTable)
}

// IsWatchListSemanticsUnSupported says to client-go that lists do not come as watches: the end of
// such a list is told by an annotation, and the documentation of tables promises none.
func (podTables) IsWatchListSemanticsUnSupported() bool { return true }

// List implements PlacedPods. It reads all chunks of the list.
func (p podTables) List(ctx context.Context, o metav1.ListOptions) (*corev1.PodList, error) {
	// Only the newest list comes in chunks.
	o.ResourceVersion, o.ResourceVersionMatch, o.Limit = "", "", rowsAtOnce
	all := &corev1.PodList{}
	for {
		text, err := p.request(o).Do(ctx).Raw()
		if err != nil {
			return nil, err
		}
		var t metav1.Table
		if err := json.Unmarshal(text, &t); err != nil {
			return nil, fmt.Errorf("pods as a table: %w", err)
		}
		pods, err := placed(t, columnOf(t))
		if err != nil {
			return nil, err
		}
		all.Items = append(all.Items, pods...)
		all.ResourceVersion = t.ResourceVersion
		if o.Continue = t.Continue; o.Continue == "" {
			return all, nil
		}
	}
}

// Watch implements PlacedPods.
func (p podTables) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	body, err := p.request(o).Stream(ctx)
	if err != nil {
		return nil, err
	}
	return watch.NewStreamWatcher(&rowDecoder{body: body, events: json.NewDecoder(body), column: -1},
		apierrors.NewClientErrorReporter(http.StatusInternalServerError, http.MethodGet, "ClientWatchDecoding")), nil
}

// rowDecoder reads the events of a watch whose objects are tables of one row.
type rowDecoder struct {
	body   io.Closer
	events *json.Decoder
	// column is that of nodes. Only the first event names columns; -1 before it.
	column int
}

// Close implements watch.Decoder.
func (d *rowDecoder) Close() { _ = d.body.Close() } // it was read, and nothing depends on its end

// Decode implements watch.Decoder.
func (d *rowDecoder) Decode() (watch.EventType, runtime.Object, error) {
	var e struct {
		Type   watch.EventType `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if err := d.events.Decode(&e); err != nil {
		return "", nil, err
	}
	if e.Type == watch.Error {
		status := &metav1.Status{}
		return e.Type, status, json.Unmarshal(e.Object, status)
	}
	var t metav1.Table
	if err := json.Unmarshal(e.Object, &t); err != nil {
		return "", nil, fmt.Errorf("a pod as a table: %w", err)
	}
	if len(t.ColumnDefinitions) > 0 {
		d.column = columnOf(t)
	}
	if e.Type == watch.Bookmark && len(t.Rows) == 0 {
		return e.Type, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: t.ResourceVersion}}, nil
	}
	pods, err := placed(t, d.column)
	if err == nil && len(pods) != 1 {
		err = fmt.Errorf("a watch of pods shows a table of %d rows", len(pods))
	}
	if err != nil {
		return "", nil, err
	}
	return e.Type, &pods[0], nil
}

// columnOf is the column of nodes; -1 where there is none.
func columnOf(t metav1.Table) int {
	return slices.IndexFunc(t.ColumnDefinitions, func(c metav1.TableColumnDefinition) bool { return c.Name == nodeColumn })
}

// placed are the pods of a table's rows.
func placed(t metav1.Table, column int) ([]corev1.Pod, error) {
	pods := make([]corev1.Pod, len(t.Rows))
	for i, row := range t.Rows {
		if column < 0 || column >= len(row.Cells) {
			return nil, errors.New("the API server's tables of pods have no column " + nodeColumn)
		}
		var m metav1.PartialObjectMetadata
		if err := json.Unmarshal(row.Object.Raw, &m); err != nil {
			return nil, fmt.Errorf("a row of the table of pods: %w", err)
		}
		m.ManagedFields = nil // most of the text
		pods[i].ObjectMeta = m.ObjectMeta
		pods[i].Spec.NodeName, _ = row.Cells[column].(string)
	}
	return pods, nil
}
