package cniserver

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

var discard = slog.New(slog.NewTextHandler(io.Discard, nil))

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
	}
	return info.Mode()
}

// TestListenMakesItRootsAlone: whatever the directory was.
func TestListenMakesItRootsAlone(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"none":     func(*testing.T, string) {},
		"as it is": func(t *testing.T, dir string) { must(t, os.Mkdir(dir, 0o700)) },
		"open to all, with things in it": func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o777))
			must(t, os.Chmod(dir, 0o777))
			// Someone waits to be taken for the agent, and to be followed.
			must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "cni.sock")))
			must(t, os.Symlink("/etc/shadow", filepath.Join(dir, "cni.sock.lock")))
			must(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
		},
		"someone else's": func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.Chown(dir, 65534, 65534))
		},
		"a mount point": func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			must(t, unix.Mount("cniserver-test", dir, "tmpfs", 0, "size=16k,mode=0755"))
			t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
		},
		"a dead socket": func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "cni.sock"), Net: "unix"})
			must(t, err)
			l.SetUnlinkOnClose(false)
			must(t, l.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			prepare(t, dir)
			s := serve(t, Config{Attacher: &attacher{}, Socket: filepath.Join(dir, "cni.sock")})
			if got := mode(t, dir); got != fs.ModeDir|0o700 {
				t.Errorf("directory has %s", got)
			}
			if got := mode(t, s.socket); got != fs.ModeSocket|0o600 {
				t.Errorf("socket has %s", got)
			}
			if got := mode(t, s.socket+".lock"); got != 0o600 {
				t.Errorf("lock has %s", got)
			}
			if _, e := s.call(request(cniapi.Status, "")); e != nil {
				t.Error(e)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestListenRefuses(t *testing.T) {
	taken := serve(t, Config{Attacher: &attacher{}})
	base := t.TempDir()
	foreign := filepath.Join(base, "foreign", "s")
	must(t, os.Mkdir(filepath.Dir(foreign), 0o700))
	l, err := net.Listen("unix", foreign)
	must(t, err)
	defer l.Close()
	file := filepath.Join(base, "file", "s")
	must(t, os.Mkdir(filepath.Dir(file), 0o700))
	must(t, os.WriteFile(file, []byte("precious"), 0o600))
	must(t, os.Symlink(base, filepath.Join(base, "link")))
	for name, tc := range map[string]struct{ socket, want string }{
		"another agent":       {taken.socket, "another k8s-ovs-agent serves it"},
		"another program":     {foreign, "another process listens on it"},
		"a file in its place": {file, "not a socket"},
		"directory is a file": {file + "/s", "is not a directory"},
		"directory is a link": {base + "/link/s", "is not a directory"},
		"the system's":        {"/run/k8s-ovs-test.sock", "a directory of its own"},
		"the root":            {"/k8s-ovs-test.sock", "a directory of its own"},
		"relative":            {"cni.sock", "not an absolute path"},
		"too long":            {"/run/" + strings.Repeat("a", 120), "at most 107 bytes"},
		"none":                {"", "not an absolute path"},
	} {
		s, err := Listen(Config{Attacher: &attacher{}, Socket: tc.socket, Log: discard})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if s != nil {
			s.Close()
		}
	}
	// None of them has come to harm.
	if _, e := taken.call(request(cniapi.Status, "")); e != nil {
		t.Error(e)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file: %q, %v", data, err)
	}
	if info, err := os.Stat("/run"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("/run has %v, %v", info.Mode(), err)
	}
	if _, err := Listen(Config{Socket: base + "/x/s", Log: discard}); err == nil {
		t.Error("a server without attacher")
	}
}

const crashEnv = "CNISERVER_TEST_CRASH_SOCKET"

// TestAfterCrash: what an agent that was killed leaves does not stop the next.
func TestAfterCrash(t *testing.T) {
	if socket := os.Getenv(crashEnv); socket != "" {
		if _, err := Listen(Config{Attacher: &attacher{}, Socket: socket, Log: discard}); err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString("up\n")
		select {}
	}
	socket := filepath.Join(t.TempDir(), "run", "cni.sock")
	cmd := exec.Command(os.Args[0], "-test.run=^TestAfterCrash$")
	cmd.Env = append(os.Environ(), crashEnv+"="+socket)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Config{Attacher: &attacher{}, Socket: socket, Log: discard}); err == nil {
		t.Error("two agents on one socket")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("the crash left no socket: %v", err)
	}
	s := serve(t, Config{Attacher: &attacher{}, Socket: socket})
	if _, e := s.call(request(cniapi.Add, "c1")); e != nil {
		t.Error(e)
	}
}

// TestCloseWithoutServe frees the socket for the next.
func TestCloseWithoutServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "cni.sock")
	for range 2 {
		s, err := Listen(Config{Attacher: &attacher{}, Socket: socket, Log: discard})
		must(t, err)
		s.Close()
		s.Close()
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	}
}

// TestKeep: the socket is back where plugins look for it, whatever was deleted, for root alone as before, and
// calls that are under way meanwhile come to their end.
func TestKeep(t *testing.T) {
	for name, remove := range map[string]func(t *testing.T, socket string){
		"nothing":     func(*testing.T, string) {},
		"the socket":  func(t *testing.T, socket string) { must(t, os.Remove(socket)) },
		"the lock":    func(t *testing.T, socket string) { must(t, os.Remove(socket+".lock")) },
		"both":        func(t *testing.T, socket string) { must(t, errors.Join(os.Remove(socket), os.Remove(socket+".lock"))) },
		"its folder":  func(t *testing.T, socket string) { must(t, os.RemoveAll(filepath.Dir(socket))) },
		"it is moved": func(t *testing.T, socket string) { must(t, os.Rename(socket, socket+".old")) },
		"a dead one in its place": func(t *testing.T, socket string) {
			must(t, os.Remove(socket))
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			must(t, err)
			l.SetUnlinkOnClose(false)
			must(t, l.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			began, finish := make(chan struct{}), make(chan struct{})
			s := serve(t, Config{Attacher: &attacher{add: func(_ context.Context, req cniapi.Request) error {
				if req.ContainerID == "early" {
					close(began)
					<-finish
				}
				return nil
			}}})
			early := make(chan *cniapi.Error, 1)
			go func() { _, e := s.call(request(cniapi.Add, "early")); early <- e }()
			<-began
			// Nobody has accepted this one yet, perhaps.
			waiting, err := net.Dial("unix", s.socket)
			must(t, err)
			defer waiting.Close()
			remove(t, s.socket)
			for range 2 {
				must(t, s.server.Keep())
				if _, e := s.call(request(cniapi.Add, "late")); e != nil {
					t.Error(e)
				}
			}
			if got := mode(t, filepath.Dir(s.socket)); got != fs.ModeDir|0o700 {
				t.Errorf("directory has %s", got)
			}
			if got := mode(t, s.socket); got != fs.ModeSocket|0o600 {
				t.Errorf("socket has %s", got)
			}
			if _, err := Listen(Config{Attacher: &attacher{}, Socket: s.socket, Log: discard}); err == nil || !strings.Contains(err.Error(), "another k8s-ovs-agent") {
				t.Errorf("a second agent: %v", err)
			}
			must(t, cniapi.WriteRequest(waiting, request(cniapi.Status, "")))
			if resp, err := cniapi.ReadResponse(waiting); err != nil || resp.Error != nil {
				t.Errorf("who had connected before: %v, %v", resp.Error, err)
			}
			close(finish)
			if e := <-early; e != nil {
				t.Errorf("the call under way: %v", e)
			}
			s.stop()
			must(t, <-s.done)
			if _, err := os.Lstat(s.socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is there after the end: %v", err)
			}
			must(t, s.server.Keep())
			if _, err := os.Lstat(s.socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is back after the end: %v", err)
			}
		})
	}
}

// TestKeepRefuses: what somebody else put in the socket's place stays, and is named until it is gone.
func TestKeepRefuses(t *testing.T) {
	s := serve(t, Config{Attacher: &attacher{}})
	must(t, os.Remove(s.socket))
	must(t, os.WriteFile(s.socket, []byte("precious"), 0o600))
	for range 2 {
		if err := s.server.Keep(); err == nil || !strings.Contains(err.Error(), s.socket+": there is something that is not a socket") {
			t.Errorf("a file in its place: %v", err)
		}
	}
	if data, err := os.ReadFile(s.socket); err != nil || string(data) != "precious" {
		t.Errorf("the file: %q, %v", data, err)
	}
	must(t, os.Remove(s.socket))
	must(t, s.server.Keep())
	if _, e := s.call(request(cniapi.Status, "")); e != nil {
		t.Error(e)
	}
	// Another agent took what was free.
	must(t, errors.Join(os.Remove(s.socket), os.Remove(s.socket+".lock")))
	serve(t, Config{Attacher: &attacher{}, Socket: s.socket})
	if err := s.server.Keep(); err == nil || !strings.Contains(err.Error(), "another k8s-ovs-agent serves it") {
		t.Errorf("another agent: %v", err)
	}
}

// TestKeepDetached: a new socket in a folder that was deleted under its mount would be seen by nobody.
func TestKeepDetached(t *testing.T) {
	source, dir := filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "run")
	must(t, errors.Join(os.Mkdir(source, 0o700), os.Mkdir(dir, 0o700)))
	must(t, unix.Mount(source, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	s := serve(t, Config{Attacher: &attacher{}, Socket: filepath.Join(dir, "cni.sock")})
	must(t, os.RemoveAll(source))
	must(t, os.Mkdir(source, 0o700))
	if err := s.server.Keep(); !errors.Is(err, detached.Err) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Keep: %v", err)
	}
}
