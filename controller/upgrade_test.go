package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestNotRoot: the records that a controller of root's left are those of one that is
// nobody in particular, once the folder was given to it.
func TestNotRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to be another user")
	}
	// t.TempDir is root's alone.
	dir, err := os.MkdirTemp("", "k8s-ovs-controller-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin, data, run := filepath.Join(dir, "k8s-ovs-controller"), filepath.Join(dir, "data"), filepath.Join(dir, "run")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	const nobody = 65532
	if err := os.Chown(run, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	serves := func(uid uint32) (bool, string) {
		var log bytes.Buffer
		cmd := exec.Command(bin, "--data-dir", data, "--listen-client-urls", "unix://"+run+"/etcd.sock", "--metrics-address", "unix://"+run+"/metrics.sock")
		cmd.Stderr = &log
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		ok := becomesReady(t, run+"/metrics.sock", ended)
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return ok, log.String()
	}
	if ok, log := serves(0); !ok {
		t.Fatalf("root's controller does not get ready:\n%s", log)
	}
	if ok, _ := serves(nobody); ok {
		t.Error("anybody's controller uses root's records")
	}
	if out, err := exec.Command(bin, "give-data", "--data-dir", data, "--to", "65532:65532").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if ok, log := serves(nobody); !ok {
		t.Errorf("the controller does not get ready after the folder was given to it:\n%s", log)
	}
}

// becomesReady waits until the program behind the socket says that it is ready; false when it
// ended before.
func becomesReady(t *testing.T, socket string, ended <-chan struct{}) bool {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		resp, err := client.Get("http://controller/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return true
			}
		}
		select {
		case <-ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
	return false
}
