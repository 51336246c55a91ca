package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

const (
	// readTimeout bounds the reading of a Secret.
	readTimeout = 10 * time.Second
	// largestAnswer is more than any Secret has: 1 MiB of data, in base64.
	largestAnswer = 4 << 20
)

// ErrNotFound: there is no such object.
var ErrNotFound = errors.New("not found")

// RESTConfig is how the API server is reached: as the file kubeconfig says, with the service account
// of the pod where it is empty.
func RESTConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("--kubernetes: this is not a pod with a service account; give --kubeconfig FILE: %w", err)
		}
		return rc, nil
	}
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	return rc, nil
}

// ReadSecret reads the data of the Secret ref (NAMESPACE/NAME) from the API server of
// [RESTConfig]; ErrNotFound where there is none.
func ReadSecret(ctx context.Context, kubeconfig, ref string) (map[string][]byte, error) {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	rc, err := RESTConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	rc.UserAgent = "k8s-ovs/" + version.String()
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	defer client.CloseIdleConnections()
	server, _, err := rest.DefaultServerUrlFor(rc)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	data, err := readSecret(ctx, client, server.JoinPath("api/v1/namespaces", namespace, "secrets", name).String())
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", ref, err)
	}
	return data, nil
}

func readSecret(ctx context.Context, client *http.Client, url string) (map[string][]byte, error) {
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	ask.Header.Set("Accept", "application/json")
	answer, err := client.Do(ask)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	// A Secret, or a Status that says why there is none.
	var object struct {
		Data    map[string][]byte `json:"data"`
		Message string            `json:"message"`
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, largestAnswer))
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(body, &object)
	switch {
	case answer.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, object.Message)
	case answer.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the API server says %s: %s", answer.Status, object.Message)
	case err != nil:
		return nil, fmt.Errorf("the API server's answer: %w", err)
	}
	return object.Data, nil
}
