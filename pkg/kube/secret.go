package kube

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// WatchEtcdAccess tells what the Secret ref (NAMESPACE/NAME) says, now and
// whenever it says something else that is whole. The channel is closed when ctx
// ends, or at once when ref is none: see [ParseRef].
func (c *Client) WatchEtcdAccess(ctx context.Context, ref string) <-chan EtcdAccess {
	p := newPicture()
	secrets := newTable(p, func(s *corev1.Secret) (string, map[string][]byte) { return s.Name, s.Data })
	w := accessWatch{
		client: c, ref: ref, absent: errors.New("there is no such Secret: whoever runs the external etcd makes it"),
		follow: func(ctx context.Context, namespace, name string) {
			follow(ctx, c, "secret", c.api.Core.Secrets(namespace), &corev1.Secret{}, named(name), secrets)
		},
		read: func(name string) (EtcdAccess, error) { return ParseEtcdAccess(secrets.items[name]) },
		has:  func(name string) bool { _, there := secrets.items[name]; return there },
	}
	return w.start(ctx, p)
}

// accessWatch tells what one object says of etcd. It remembers what was told and
// logged.
type accessWatch struct {
	client *Client
	ref    string
	absent error
	follow func(ctx context.Context, namespace, name string)
	// has and read are called with the picture's lock held.
	has  func(name string) bool
	read func(name string) (EtcdAccess, error)
	told EtcdAccess
	// trouble is why there is nothing to tell.
	trouble backoff.Trouble
}

func (w *accessWatch) start(ctx context.Context, p *picture) <-chan EtcdAccess {
	out := make(chan EtcdAccess)
	namespace, name, err := ParseRef(w.ref)
	if err != nil {
		close(out)
		return out
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.follow(ctx, namespace, name)
	}()
	go func() {
		defer close(out)
		defer func() { <-done }()
		var ready chan<- EtcdAccess
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				p.mu.Lock()
				a, err := EtcdAccess{}, w.absent
				if w.has(name) {
					a, err = w.read(name)
				}
				p.mu.Unlock()
				if w.take(a, err) {
					ready = out
				}
			case ready <- w.told:
				ready = nil
			}
		}
	}()
	return out
}

// take takes in what the object says; true when there is something new to tell.
func (w *accessWatch) take(a EtcdAccess, err error) bool {
	if w.trouble.News(err) {
		w.client.log.Info("waiting for access to etcd", "object", w.ref, "reason", err)
	}
	if err != nil || a.Equal(w.told) {
		return false
	}
	w.told = a
	return true
}

// Secret reads the data of the Secret ref (NAMESPACE/NAME); ErrNotFound where
// there is none.
func (c *Client) Secret(ctx context.Context, ref string) (map[string][]byte, error) {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.api.Core.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", ref, classify(err))
	}
	return s.Data, nil
}

// DeleteSecret takes the Secret ref (NAMESPACE/NAME) away; one that is not there is
// no error.
func (c *Client) DeleteSecret(ctx context.Context, ref string) error {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = c.api.Core.Secrets(namespace).Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Secret %s: %w", ref, err)
	}
	return nil
}

// classify makes errors of the API server recognisable without client-go.
func classify(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return err
}
