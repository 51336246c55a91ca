// Podstart measures how long pods take from their creation to Ready, on every
// node of the cluster that KUBECONFIG names, one pod at a time. It prints one
// JSON line, a Run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// Run is what one call measured.
type Run struct {
	Network string `json:"network"`
	// Starts from the create call to the Ready condition as a watch sees it, in
	// milliseconds, by node.
	Starts map[string][]float64 `json:"starts"`
}

const (
	image = "registry.k8s.io/e2e-test-images/agnhost:2.56"
	// limit of one pod's start.
	limit = time.Minute
)

func main() {
	pods := flag.Int("pods", 5, "pods started on each node, after one that is not counted")
	network := flag.String("network", "", "name of the network, for the results")
	flag.Parse()
	run, err := measure(context.Background(), *network, *pods)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(run)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "podstart:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, network string, pods int) (run Run, err error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return Run{}, fmt.Errorf("KUBECONFIG: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return Run{}, fmt.Errorf("KUBECONFIG: %w", err)
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return Run{}, fmt.Errorf("list the nodes: %w", err)
	}
	namespace, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "podstart-"}}, metav1.CreateOptions{})
	if err != nil {
		return Run{}, fmt.Errorf("make a namespace: %w", err)
	}
	defer func() {
		err = errors.Join(err, client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}))
	}()
	run = Run{Network: network, Starts: map[string][]float64{}}
	for i := range pods + 1 {
		for _, node := range nodes.Items {
			took, err := start(ctx, client, namespace.Name, node.Name)
			if err != nil {
				return Run{}, fmt.Errorf("pod %d on node %s: %w", i, node.Name, err)
			}
			if i > 0 {
				run.Starts[node.Name] = append(run.Starts[node.Name], float64(took.Microseconds())/1000)
			}
		}
	}
	return run, nil
}

// start makes a pod, waits until it is Ready and deletes it.
func start(ctx context.Context, client kubernetes.Interface, namespace, node string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pods := client.CoreV1().Pods(namespace)
	watcher, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	defer watcher.Stop()
	no := false
	begin := time.Now()
	pod, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "start-"},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			AutomountServiceAccountToken:  &no,
			TerminationGracePeriodSeconds: new(int64),
			Containers:                    []corev1.Container{{Name: "pause", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"pause"}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	if err := await(watcher, pod.Name, ready); err != nil {
		return 0, fmt.Errorf("not Ready after %v: %w", time.Since(begin).Round(time.Second), err)
	}
	took = time.Since(begin)
	if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		return 0, err
	}
	// The next start must not share the node with the end of this pod.
	return took, await(watcher, pod.Name, gone)
}

// await reads the watch until an event about the named pod is the wanted one.
func await(watcher watch.Interface, name string, wanted func(watch.Event) bool) error {
	for event := range watcher.ResultChan() {
		if pod, ok := event.Object.(*corev1.Pod); ok && pod.Name == name && wanted(event) {
			return nil
		}
	}
	return errors.New("the watch ended")
}

func gone(event watch.Event) bool { return event.Type == watch.Deleted }

func ready(event watch.Event) bool {
	for _, c := range event.Object.(*corev1.Pod).Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
