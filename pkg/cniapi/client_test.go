package cniapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// answering listens on a new socket and runs serve for each connection.
func answering(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func reply(text string) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := ReadRequest(c); err != nil {
			panic(err)
		}
		fmt.Fprint(c, text)
	}
}

func TestCall(t *testing.T) {
	sent := make(chan Request, 1)
	path := answering(t, func(c net.Conn) {
		req, err := ReadRequest(c)
		if err != nil {
			t.Error(err)
		}
		sent <- req
		_ = WriteResponse(c, Response{Result: goodResult()})
	})
	req := valid(Add)
	req.Version = 0 // Call's own
	res, err := Call(context.Background(), path, req)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goodResult(), res, compare); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(valid(Add), <-sent, compare); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

// TestCallErrors has every way in which an agent can fail its callers.
func TestCallErrors(t *testing.T) {
	stale := filepath.Join(t.TempDir(), "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	missing := filepath.Join(t.TempDir(), "missing")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const gone = "the k8s-ovs agent is not answering on "
	for _, tc := range []struct {
		name   string
		socket string
		serve  func(net.Conn)
		cmd    Command
		code   uint
		want   string
	}{
		{name: "no socket", socket: missing, cmd: Add, code: CodeTryAgain, want: gone + missing},
		{name: "no socket in DEL", socket: missing, cmd: Del, code: CodeTryAgain, want: gone},
		{name: "no socket in STATUS", socket: missing, cmd: Status, code: CodeNotAvailable, want: gone},
		{name: "dead socket", socket: stale, cmd: Add, code: CodeTryAgain, want: "nobody listens"},
		{name: "a file", socket: file, cmd: Add, code: CodeTryAgain, want: gone + file},
		{name: "closes at once", serve: func(net.Conn) {}, cmd: Add, code: CodeTryAgain, want: "closed the connection"},
		{name: "closes after the request", serve: reply(""), cmd: Del, code: CodeTryAgain, want: "closed the connection"},
		{name: "closes in the middle", serve: reply(`{"version":1,"res`), cmd: Add, code: CodeTryAgain, want: "closed the connection"},
		{name: "closes in STATUS", serve: reply(""), cmd: Status, code: CodeNotAvailable, want: "closed the connection"},
		{name: "speaks something else", serve: reply("HTTP/1.1 400 Bad Request\r\n"), cmd: Add, code: CodeInternal, want: "cannot be understood"},
		{name: "no result", serve: reply(`{"version":1}`), cmd: Add, code: CodeInternal, want: "without a result"},
		{name: "half a result", serve: reply(`{"version":1,"result":{"hostIfName":"x"}}`), cmd: Add, code: CodeInternal, want: "lacks"},
		{name: "its own error", serve: reply(`{"version":1,"error":{"code":11,"msg":"subnet is full"}}`), cmd: Add, code: CodeTryAgain, want: "subnet is full"},
		{name: "newer answer", serve: reply(`{"version":9,"news":{},"error":{"code":7,"msg":"x"}}`), cmd: Del, code: CodeInvalidConfig, want: "x"},
		{name: "bad request", socket: missing, cmd: "FROB", code: CodeInvalidEnv, want: "CNI_COMMAND"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			socket := tc.socket
			if tc.serve != nil {
				socket = answering(t, tc.serve)
			}
			res, err := Call(context.Background(), socket, valid(tc.cmd))
			var e *Error
			if res != nil || !errors.As(err, &e) {
				t.Fatalf("Call = %v, %v; want an *Error", res, err)
			}
			if e.Code != tc.code || !strings.Contains(e.Msg, tc.want) {
				t.Errorf("Call = code %d, %q; want code %d and %q", e.Code, e.Msg, tc.code, tc.want)
			}
			if strings.Contains(e.Msg, gone) && !strings.Contains(e.Details, "k8s-ovs-agent") {
				t.Errorf("details %q do not say what to look at", e.Details)
			}
		})
	}
}

func TestCallEndsWithContext(t *testing.T) {
	asked := make(chan struct{})
	release := make(chan struct{})
	path := answering(t, func(c net.Conn) {
		_, _ = ReadRequest(c)
		close(asked)
		<-release
	})
	defer close(release)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-asked; cancel() }()
	_, err := Call(ctx, path, valid(Add))
	if e := AsError(err); e == nil || e.Code != CodeTryAgain || !strings.Contains(e.Msg, "no answer in time") {
		t.Errorf("Call = %v, want that there was no answer in time", err)
	}
}

// TestCallWaitsForFullQueue: an agent that is slow to accept is not an agent
// that is gone.
func TestCallWaitsForFullQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil { // a queue of one
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	defer l.Close()
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := net.Dial("unix", path); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("a second connection: %v; the queue should be full", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	if _, err := Call(ctx, path, valid(Del)); AsError(err) == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("with a full queue: %v; it did not wait", err)
	}
	cancel()

	result := make(chan error, 1)
	go func() { _, err := Call(context.Background(), path, valid(Del)); result <- err }()
	for range 2 { // the one that fills the queue, and Call's
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer conn.Close()
			if _, err := ReadRequest(conn); err == nil {
				_ = WriteResponse(conn, Response{})
			}
		}()
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}
