// Package namesakes knows which Kubernetes Namespace a pod of this node is of: a name may have
// been another Namespace's when the pod came. It writes down the UIDs of Namespaces of which
// nobody had noted them, says which pods have outlived theirs, and asks the API server about
// those that may not have.
//
// It changes no flows: that a pod which outlived its Namespace has none is package nodeflows'
// doing, at once, whatever is found out here later.
package namesakes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// lookEvery is how often pods are looked at though the records are the same: one may have come
// while they changed, and the API server may answer again.
const lookEvery = 5 * time.Second

// Source reads a pod from the API server, not from a memory of it; [kube.Client] does.
type Source interface {
	Pod(ctx context.Context, nodeName string, key kube.PodKey) (kube.Pod, error)
}

// Attached are the pods of the node; [attach.Attacher] has them.
type Attached interface {
	List() []attach.Attachment
	// Bind says in which Namespaces attachments are, by their UIDs.
	Bind(ctx context.Context, uids map[cniapi.Attachment]string) error
}

// Namesakes follows the records that are in the flows.
type Namesakes struct {
	api  Source
	node string
	pods Attached
	log  *slog.Logger
	wake chan struct{}
	// outlived are the pods that are known to have outlived their Namespaces, with the UIDs
	// of those that have the names now. It belongs to Run.
	outlived map[cniapi.Attachment]string
	trouble  backoff.Trouble

	mu      sync.Mutex
	records topology.Snapshot
}

// New makes the Namesakes of the node called node, which do nothing before Run.
func New(api Source, node string, pods Attached, log *slog.Logger) *Namesakes {
	return &Namesakes{api: api, node: node, pods: pods, log: log, wake: make(chan struct{}, 1), outlived: map[cniapi.Attachment]string{}}
}

// Applied says that s is in the flows.
func (n *Namesakes) Applied(s topology.Snapshot) {
	n.mu.Lock()
	n.records = s
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run looks at the node's pods whenever the records change, and every few seconds, until ctx
// ends, whose error it returns.
func (n *Namesakes) Run(ctx context.Context) error {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.wake:
		case <-again.C:
		}
		if err := n.look(ctx); ctx.Err() == nil && n.trouble.News(err) {
			n.log.Warn("it is not known of which Namespaces some pods are; those that may have outlived theirs have no network meanwhile; trying again", "error", err)
		}
	}
}

// look binds each pod to the Namespace that it is of, where that is news.
func (n *Namesakes) look(ctx context.Context) error {
	n.mu.Lock()
	records := n.records
	n.mu.Unlock()
	var errs []error
	bind, outlived := map[cniapi.Attachment]string{}, map[cniapi.Attachment]string{}
	for _, at := range n.pods.List() {
		uid := records.Namespaces[at.Namespace].UID
		switch {
		case uid == "":
		case at.UIDs.Namespace == "":
			// It came before anybody noted that.
			bind[at.Attachment] = uid
		case !records.Namesake(at.Namespace, at.UIDs.Namespace):
		case n.outlived[at.Attachment] == uid:
			outlived[at.Attachment] = uid
		default:
			switch is, err := n.isOf(ctx, at); {
			case err != nil:
				errs = append(errs, err)
			case is:
				n.log.Info("a pod came before the record of its Namespace, which has the name of one that is gone: it is of the one that there is now", "tenant", at.Namespace, "pod", at.Pod, "sandbox", at.Netns)
				bind[at.Attachment] = uid
			default:
				n.log.Error("a pod has outlived its Namespace, and another one has that name: it has no network, as it is not that one's; delete the pod (its runtime has not called DEL)",
					"tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "sandbox", at.Netns, "namespaceUID", at.UIDs.Namespace, "namesakeUID", uid)
				outlived[at.Attachment] = uid
			}
		}
	}
	n.outlived = outlived
	if len(bind) > 0 {
		errs = append(errs, n.pods.Bind(ctx, bind))
	}
	return errors.Join(errs...)
}

// isOf reports whether a pod is of the Namespace that has the name now, though it came when the
// records still had another one's UID: the API server has it. All pods of a Namespace are gone
// before it is, so one that is there after the record of the namesake was is the namesake's.
func (n *Namesakes) isOf(ctx context.Context, at attach.Attachment) (bool, error) {
	if at.UIDs.Pod == "" {
		return false, nil
	}
	pod, err := n.api.Pod(ctx, n.node, kube.PodKey{Namespace: at.Namespace, Name: at.Pod})
	switch {
	case errors.Is(err, kube.ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("whether pod %s/%s has outlived its Namespace: %w", at.Namespace, at.Pod, err)
	}
	return pod.Is(at.UIDs.Pod), nil
}
