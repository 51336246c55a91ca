package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// accessSource is the API server, as far as the way to etcd stands in it.
type accessSource interface {
	// WatchEtcdAccess tells what the Secret says as soon as it is there and whole,
	// and then whenever it says something else.
	WatchEtcdAccess(ctx context.Context, ref string) <-chan kube.EtcdAccess
}

// access is how the agent reaches etcd in Kubernetes: as a Secret says, of which
// it keeps a copy for a start while the API server is away.
type access struct {
	// ref is the Secret, NAMESPACE/NAME; now tells what it says.
	ref  string
	now  <-chan kube.EtcdAccess
	path string
	// patience is how long the API server may take where there is a copy.
	patience time.Duration
	log      *slog.Logger
}

// newAccess watches the Secret until ctx ends.
func newAccess(ctx context.Context, source accessSource, ref, stateDir string, log *slog.Logger) *access {
	return &access{
		ref: ref, now: source.WatchEtcdAccess(ctx, ref), path: filepath.Join(stateDir, "etcd-access.json"), patience: etcdPatience, log: log,
	}
}

// first is what to start with: what the Secret says, or the copy where the API
// server does not say in time.
func (a *access) first(ctx context.Context) (kube.EtcdAccess, error) {
	copied, held := a.load()
	var late <-chan time.Time
	if held {
		late = time.After(a.patience)
	}
	select {
	case now, open := <-a.now:
		if !open {
			return kube.EtcdAccess{}, ctx.Err()
		}
		a.save(now)
		return now, nil
	case <-late:
		a.log.Warn("Secret with the access to etcd cannot be read: going on with the copy on disk", "secret", a.ref)
		return copied, nil
	}
}

// follow returns an error when the Secret says something else than what is used:
// the agent starts anew with it.
func (a *access) follow(ctx context.Context, used kube.EtcdAccess) error {
	for now := range a.now {
		a.save(now)
		if !now.Equal(used) {
			return fmt.Errorf("the access to etcd in Secret %s changed: a new start takes it over (pods keep their network)", a.ref)
		}
	}
	return ctx.Err()
}

// load is the copy on disk; held is false where there is none that can be used.
func (a *access) load() (copied kube.EtcdAccess, held bool) {
	data, err := os.ReadFile(a.path)
	if err == nil {
		err = json.Unmarshal(data, &copied)
	}
	if err == nil {
		err = copied.CheckEncrypted() // an earlier version took others
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return kube.EtcdAccess{}, false
	case err != nil:
		a.log.Warn("starting without the copy of the access to etcd", "path", a.path, "error", err)
		return kube.EtcdAccess{}, false
	}
	return copied, len(copied.Endpoints) > 0
}

// save replaces the copy. It holds a private key.
func (a *access) save(e kube.EtcdAccess) {
	data, err := json.Marshal(e)
	if err == nil {
		err = atomicfile.Write(a.path, data, 0o600)
	}
	if err != nil {
		a.log.Error("the copy of the access to etcd is out of date: a start without the API server would use the old one", "error", err)
	}
}
