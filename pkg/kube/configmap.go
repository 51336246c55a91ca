package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ParseEtcdPlace reads the data of the ConfigMap that says where etcd is: an
// EtcdAccess without a client certificate. The error names the key that is missing or wrong.
func ParseEtcdPlace(data map[string]string) (EtcdAccess, error) {
	public := map[string][]byte{}
	for _, key := range []string{EndpointsKey, CAKey, PrefixKey} {
		public[key] = []byte(data[key])
	}
	a, err := ParseEtcdAccess(public)
	if err != nil {
		return EtcdAccess{}, err
	}
	a.Cert, a.Key = nil, nil
	return a, nil
}

// WatchEtcdPlace tells where the ConfigMap ref (NAMESPACE/NAME) says that etcd is, now
// and whenever it says something else that is whole. The channel is closed when ctx
// ends, or at once when ref is none: see [ParseRef].
func (c *Client) WatchEtcdPlace(ctx context.Context, ref string) <-chan EtcdAccess {
	p := newPicture()
	maps := newTable(p, func(m *corev1.ConfigMap) (string, map[string]string) { return m.Name, m.Data })
	w := accessWatch{
		client: c, ref: ref, absent: errors.New("there is no such ConfigMap: the controller makes it"),
		follow: func(ctx context.Context, namespace, name string) {
			follow(ctx, c, "configmap", c.api.Core.ConfigMaps(namespace), &corev1.ConfigMap{}, named(name), maps)
		},
		read: func(name string) (EtcdAccess, error) { return ParseEtcdPlace(maps.items[name]) },
		has:  func(name string) bool { _, there := maps.items[name]; return there },
	}
	return w.start(ctx, p)
}

// ConfigMap reads the data of the ConfigMap ref (NAMESPACE/NAME); ErrNotFound where
// there is none.
func (c *Client) ConfigMap(ctx context.Context, ref string) (map[string]string, error) {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, err := c.api.Core.ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s: %w", ref, classify(err))
	}
	return m.Data, nil
}

// PutConfigMap makes data all that the ConfigMap ref (NAMESPACE/NAME) has, whether
// or not there is one. It reports whether it had to write.
func (c *Client) PutConfigMap(ctx context.Context, ref string, data map[string]string) (bool, error) {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	configMaps := c.api.Core.ConfigMaps(namespace)
	have, err := configMaps.Get(ctx, name, metav1.GetOptions{})
	switch err = classify(err); {
	case errors.Is(err, ErrNotFound):
		_, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}, metav1.CreateOptions{})
	case err != nil:
	case maps.Equal(have.Data, data) && len(have.BinaryData) == 0:
		return false, nil
	default:
		// On the version that was read: labels and annotations are others'.
		have.Data, have.BinaryData = data, nil
		_, err = configMaps.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return false, fmt.Errorf("write ConfigMap %s: %w", ref, classify(err))
	}
	return true, nil
}
