package options

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// parse resolves args and env into an Etcd and completes it. FILE in args is
// an existing file with content.
func parse(t *testing.T, content string, env map[string]string, args ...string) (*Etcd, *pflag.FlagSet, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "FILE", file)
	}
	e := &Etcd{}
	fs := pflag.NewFlagSet("program", pflag.ContinueOnError)
	e.Register(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := resolve(fs, nil, environ(env)); err != nil {
		t.Fatal(err)
	}
	err := e.Complete()
	for _, path := range []*string{&e.CAFile, &e.CertFile, &e.KeyFile} {
		if *path == file {
			*path = "FILE"
		}
	}
	return e, fs, err
}

func TestEtcdComplete(t *testing.T) {
	plain := Etcd{Endpoints: []string{}, Prefix: store.DefaultPrefix, DialTimeout: store.DefaultDialTimeout}
	with := func(change func(*Etcd)) Etcd { e := plain; change(&e); return e }
	tests := []struct {
		name string
		args []string
		env  map[string]string
		file string
		want Etcd
	}{
		{name: "defaults", want: plain},
		{
			name: "all forms of endpoints",
			args: []string{"--etcd-endpoints", "192.0.2.1:2379, http://n2:2379/,unix:///run/etcd.sock,[2001:db8::1]:2379"},
			want: with(func(e *Etcd) {
				e.Endpoints = []string{"http://192.0.2.1:2379", "http://n2:2379", "unix:///run/etcd.sock", "http://[2001:db8::1]:2379"}
			}),
		},
		{
			name: "a bare endpoint is encrypted where TLS is asked for",
			args: []string{"--etcd-endpoints=n1:2379,https://n2:2379,unix:///s", "--etcd-cacert=FILE", "--etcd-cert=FILE", "--etcd-key=FILE", "--etcd-server-name=etcd"},
			want: with(func(e *Etcd) {
				e.Endpoints = []string{"https://n1:2379", "https://n2:2379", "unix:///s"}
				e.CAFile, e.CertFile, e.KeyFile, e.ServerName = "FILE", "FILE", "FILE", "etcd"
			}),
		},
		{
			name: "https needs no further flag",
			args: []string{"--etcd-endpoints=https://n1:2379"},
			want: with(func(e *Etcd) { e.Endpoints = []string{"https://n1:2379"} }),
		},
		{
			name: "password from a file",
			args: []string{"--etcd-username=root", "--etcd-password-file=FILE"},
			file: "s3cret pass\r\n",
			want: with(func(e *Etcd) { e.Username, e.Password = "root", "s3cret pass" }),
		},
		{
			name: "password from the environment",
			env:  map[string]string{"K8S_OVS_ETCD_USERNAME": "root", "K8S_OVS_ETCD_PASSWORD": "s3cret"},
			want: with(func(e *Etcd) { e.Username, e.Password = "root", "s3cret" }),
		},
		{
			name: "prefix and timeout",
			args: []string{"--etcd-prefix=/a/b/", "--etcd-dial-timeout=200ms"},
			want: with(func(e *Etcd) { e.Prefix, e.DialTimeout = "/a/b", 200*time.Millisecond }),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := parse(t, tt.file, tt.env, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, *got); diff != "" {
				t.Errorf("Etcd (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEtcdErrors(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"no port", []string{"--etcd-endpoints=n1:2379,n2"}, []string{"--etcd-endpoints", `"n2"`, "port"}},
		{"no host", []string{"--etcd-endpoints=:2379"}, []string{"host and a port"}},
		{"empty one", []string{"--etcd-endpoints=n1:2379,,n2:2379"}, []string{"--etcd-endpoints", "empty"}},
		{"other scheme", []string{"--etcd-endpoints=ftp://n1:2379"}, []string{"ftp://", "https://"}},
		{"relative socket", []string{"--etcd-endpoints=unix://etcd.sock"}, []string{"whole path"}},
		{"path", []string{"--etcd-endpoints=http://n1:2379/v3"}, []string{"host and a port only"}},
		{"password in the URL", []string{"--etcd-endpoints=http://root:x@n1:2379"}, []string{"host and a port only"}},
		{"plain endpoint with TLS flags", []string{"--etcd-endpoints=http://n1:2379", "--etcd-cacert=FILE"}, []string{"http://n1:2379", "not encrypted", "https://"}},
		{"certificate without key", []string{"--etcd-cert=FILE"}, []string{"--etcd-cert", "without --etcd-key"}},
		{"key without certificate", []string{"--etcd-key=FILE"}, []string{"--etcd-key", "without --etcd-cert"}},
		{"no such file", []string{"--etcd-cacert=/nonexistent/ca.pem"}, []string{"--etcd-cacert", "/nonexistent/ca.pem"}},
		{"user without password", []string{"--etcd-username=root"}, []string{"--etcd-username", "--etcd-password-file"}},
		{"password without user", []string{"--etcd-password=s3cret"}, []string{"without --etcd-username"}},
		{"two passwords", []string{"--etcd-username=root", "--etcd-password=s3cret", "--etcd-password-file=FILE"}, []string{"both"}},
		{"password file is missing", []string{"--etcd-username=root", "--etcd-password-file=/nonexistent/p"}, []string{"--etcd-password-file", "/nonexistent/p"}},
		{"password file is empty", []string{"--etcd-username=root", "--etcd-password-file=FILE"}, []string{"--etcd-password-file", "is empty"}},
		{"prefix without slash", []string{"--etcd-prefix=a/b"}, []string{"--etcd-prefix", `"a/b"`, "slash"}},
		{"prefix is everything", []string{"--etcd-prefix=/"}, []string{"--etcd-prefix"}},
		{"no time to connect", []string{"--etcd-dial-timeout=0s"}, []string{"--etcd-dial-timeout"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := parse(t, "\n", nil, tt.args...)
			if err == nil {
				t.Fatalf("no error; endpoints are %q", got.Endpoints)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %q shows the password", err)
			}
		})
	}
}

// TestPasswordIsNeverPrinted goes through every way in which programs print values.
func TestPasswordIsNeverPrinted(t *testing.T) {
	e, fs, err := parse(t, "", nil, "--etcd-username=root", "--etcd-password=s3cret")
	if err != nil {
		t.Fatal(err)
	}
	if string(e.Password) != "s3cret" {
		t.Fatal("the password did not arrive")
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %+v %#v %s %q %x\n", *e, *e, *e, e.Password, e.Password, e.Password)
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("options", "etcd", e, "copy", *e, "password", e.Password)
	slog.New(slog.NewTextHandler(&out, nil)).Info("options", "etcd", e, "copy", *e, "password", e.Password)
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(data)
	fs.VisitAll(func(f *pflag.Flag) { fmt.Fprintln(&out, f.Name, f.Value, f.DefValue) })
	out.WriteString(fs.FlagUsages())
	for _, leak := range []string{"s3cret", fmt.Sprintf("%x", "s3cret")} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("output shows the password:\n%s", out.String())
		}
	}
	if !strings.Contains(out.String(), "(hidden)") {
		t.Errorf("output does not say that there is a password")
	}
}

func TestRegisterKeepsDefaults(t *testing.T) {
	e := Etcd{Endpoints: []string{"127.0.0.1:2379"}, Prefix: "/p"}
	fs := pflag.NewFlagSet("program", pflag.ContinueOnError)
	e.Register(fs)
	if err := fs.Parse([]string{"--etcd-endpoints=n1:1"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"n1:1"}, e.Endpoints); diff != "" {
		t.Errorf("the default must be replaced, not added to:\n%s", diff)
	}
	if e.Prefix != "/p" {
		t.Errorf("prefix is %q, want the default /p", e.Prefix)
	}
}

// TestConfigCarriesEverything: a field that is forgotten would be a flag that
// does nothing.
func TestConfigCarriesEverything(t *testing.T) {
	e := Etcd{
		Endpoints: []string{"https://n1:2379"}, Prefix: "/p", CAFile: "ca", CertFile: "cert", KeyFile: "key",
		CA: []byte("a"), Cert: []byte("b"), Key: []byte("c"),
		ServerName: "etcd", InsecureSkipVerify: true, Username: "root", Password: "s3cret", DialTimeout: time.Second,
	}
	log := slog.New(slog.DiscardHandler)
	got := reflect.ValueOf(e.Config(log))
	for i := range got.NumField() {
		// By is no flag: a program says itself who its user is.
		if name := got.Type().Field(i).Name; got.Field(i).IsZero() && name != "By" {
			t.Errorf("store.Config.%s is not filled in", name)
		}
	}
	want := store.Config{
		Endpoints: []string{"https://n1:2379"}, Prefix: "/p", CAFile: "ca", CertFile: "cert", KeyFile: "key",
		CA: []byte("a"), Cert: []byte("b"), Key: []byte("c"),
		ServerName: "etcd", InsecureSkipVerify: true, Username: "root", Password: "s3cret", DialTimeout: time.Second,
	}
	if diff := cmp.Diff(want, e.Config(nil)); diff != "" {
		t.Errorf("Config (-want +got):\n%s", diff)
	}
}
